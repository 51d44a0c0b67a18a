package load

import (
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/protobuf/encoding/protowire"
)

// Answer is the required answer to every Check of a load.
type Answer int

// Allow is the answer that admits a request; any other Answer is the HTTP status of a denial. A
// denial may have status 200: an authorizer answers a request itself in that way.
const Allow Answer = 1

func (a Answer) String() string {
	if a == Allow {
		return "allow"
	}
	return fmt.Sprintf("deny with %d", int(a))
}

var errWrongAnswer = errors.New("wrong answer")

// verify reads only the fields of an encoded CheckResponse that determine the answer.
func (a Answer) verify(message []byte) error {
	got, err := parseAnswer(message)
	if err != nil {
		return fmt.Errorf("%w: %x is no CheckResponse: %w", errWrongAnswer, message, err)
	}
	if got != a {
		return fmt.Errorf("%w: %s, expected %s: %q", errWrongAnswer, got, a, message)
	}
	return nil
}

// Numbers of the fields on the path to the answer, in envoy/service/auth/v3/external_auth.proto and
// its imports.
const (
	fieldStatus     = 1 // CheckResponse.status
	fieldDenied     = 2 // CheckResponse.denied_response
	fieldStatusCode = 1 // google.rpc.Status.code
	fieldHTTPStatus = 1 // DeniedHttpResponse.status
	fieldHTTPCode   = 1 // HttpStatus.code
)

// parseAnswer avoids the generated types, which would cost the load client more than all its other
// work.
func parseAnswer(message []byte) (Answer, error) {
	status, err := bytesField(message, fieldStatus)
	if err != nil {
		return 0, err
	}
	code, err := varintField(status, fieldStatusCode)
	if err != nil {
		return 0, err
	}
	if code == 0 {
		return Allow, nil
	}
	denied, err := bytesField(message, fieldDenied)
	if err != nil {
		return 0, err
	}
	httpStatus, err := bytesField(denied, fieldHTTPStatus)
	if err != nil {
		return 0, err
	}
	httpCode, err := varintField(httpStatus, fieldHTTPCode)
	if err != nil {
		return 0, err
	}
	if httpCode == 0 {
		return http.StatusForbidden, nil // Envoy's default
	}
	return Answer(httpCode), nil
}

// bytesField returns the last field with this number, or nil if there is none.
func bytesField(message []byte, number protowire.Number) (value []byte, err error) {
	err = eachField(message, func(n protowire.Number, t protowire.Type, field []byte) {
		if n == number && t == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(field)
		}
	})
	return value, err
}

// varintField returns the last field with this number, or 0 if there is none.
func varintField(message []byte, number protowire.Number) (value uint64, err error) {
	err = eachField(message, func(n protowire.Number, t protowire.Type, field []byte) {
		if n == number && t == protowire.VarintType {
			value, _ = protowire.ConsumeVarint(field)
		}
	})
	return value, err
}

// eachField calls visit with the value of each field. The values are well-formed.
func eachField(message []byte, visit func(protowire.Number, protowire.Type, []byte)) error {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		size = protowire.ConsumeFieldValue(number, kind, message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		visit(number, kind, message[:size])
		message = message[size:]
	}
	return nil
}
