package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Envoy numbers a request twice: with a random 64-bit number as decimal text in the field id, and
// with a UUID in the header x-request-id. An encoded Check has both at their full length, so that a
// new number changes no length around them.
const (
	idDigits      = 19
	idPlaceholder = "9999999999999999999"

	uuidPrefix      = "b5f1c7de-4d2a-4c3b-9a7e-"
	uuidPlaceholder = "999999999999"
	uuidDigits      = len(uuidPlaceholder)
)

// Check is one encoded CheckRequest, to be sent many times, each time under a new number. It is not
// safe for concurrent use.
type Check struct {
	frame []byte // a gRPC message: its prefix of five bytes and the CheckRequest
	id    []byte // part of frame
	uuid  []byte // part of frame
	key   []byte // part of frame; nil without a key
}

const grpcPrefix = 5

// NewCheck encodes Envoy's Check for a GET of path, with `encode_raw_headers` on, as in the output
// of `keyporter envoy`. An empty key means a request without one.
func NewCheck(path, key string) (*Check, error) { return newCheck(checkRequest(path, key), key) }

// NewJoinedCheck is [NewCheck] without `encode_raw_headers`, Envoy's default, and with the key as a
// Bearer token.
func NewJoinedCheck(path, key string) (*Check, error) {
	request := checkRequest(path, "")
	http := request.GetAttributes().GetRequest().GetHttp()
	http.Headers = map[string]string{"authorization": "Bearer " + key}
	for _, h := range http.GetHeaderMap().GetHeaders() {
		http.Headers[h.GetKey()] = string(h.GetRawValue())
	}
	http.HeaderMap = nil
	return newCheck(request, key)
}

func newCheck(request *authv3.CheckRequest, key string) (*Check, error) {
	message, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("encoding a Check: %w", err)
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	c := &Check{frame: append(frame, message...)}
	if c.id, err = onlyOne(c.frame, idPlaceholder); err != nil {
		return nil, err
	}
	if c.uuid, err = onlyOne(c.frame, uuidPrefix+uuidPlaceholder); err != nil {
		return nil, err
	}
	c.uuid = c.uuid[len(uuidPrefix):]
	if key != "" {
		c.key, err = onlyOne(c.frame, key)
	}
	return c, err
}

var errPlaceholder = errors.New("a Check must hold each of its numbers, and its key, once")

// onlyOne returns the only occurrence of text in frame.
func onlyOne(frame []byte, text string) ([]byte, error) {
	at := bytes.Index(frame, []byte(text))
	if at < 0 || bytes.Count(frame, []byte(text)) != 1 {
		return nil, fmt.Errorf("looking for %s: %w", text, errPlaceholder)
	}
	return frame[at : at+len(text)], nil
}

// Number sets the number of the Check and returns it as a gRPC message, which is valid only until
// the next call.
func (c *Check) Number(n uint64) []byte {
	putDecimal(c.id, n)
	putDecimal(c.uuid, n)
	return c.frame
}

var errKeyLength = errors.New("another key must be as long as the first")

// SetKey replaces the key of the Check. One Check can therefore send a million keys, which as
// separate Checks would not fit into memory.
func (c *Check) SetKey(key string) error {
	if len(key) != len(c.key) {
		return fmt.Errorf("a key of %d bytes in place of one of %d: %w", len(key), len(c.key), errKeyLength)
	}
	copy(c.key, key)
	return nil
}

// putDecimal fills text with the last decimal digits of n.
func putDecimal(text []byte, n uint64) {
	for i := len(text) - 1; i >= 0; i-- {
		text[i] = '0' + byte(n%10)
		n /= 10
	}
}

// checkRequest returns a Check as observed from Envoy 1.40 for a request of a small HTTP client.
func checkRequest(path, key string) *authv3.CheckRequest {
	headers := []*corev3.HeaderValue{
		header(":authority", "api.example.com"),
		header(":path", path),
		header(":method", "GET"),
		header(":scheme", "http"),
		header("user-agent", "Mozilla/5.0 (X11; Linux x86_64) example-client/3.1"),
		header("accept", "application/json"),
		header("accept-encoding", "gzip, deflate, br"),
	}
	if key != "" {
		headers = append(headers, header("x-api-key", key))
	}
	headers = append(headers,
		header("x-forwarded-for", "203.0.113.57"),
		header("x-forwarded-proto", "http"),
		header("x-envoy-external-address", "203.0.113.57"),
		header("x-request-id", uuidPrefix+uuidPlaceholder))
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source:      peer("203.0.113.57", 51312),
		Destination: peer("10.0.0.12", 8080),
		Request: &authv3.AttributeContext_Request{
			Time: &timestamppb.Timestamp{Seconds: 1_795_000_000, Nanos: 123_456_000},
			Http: &authv3.AttributeContext_HttpRequest{
				Id:        idPlaceholder,
				Method:    "GET",
				HeaderMap: &corev3.HeaderMap{Headers: headers},
				Path:      path,
				Host:      "api.example.com",
				Scheme:    "http",
				Protocol:  "HTTP/1.1",
			},
		},
		MetadataContext:      &corev3.Metadata{},
		RouteMetadataContext: &corev3.Metadata{},
	}}
}

func header(name, value string) *corev3.HeaderValue {
	return &corev3.HeaderValue{Key: name, RawValue: []byte(value)}
}

func peer(ip string, port uint32) *authv3.AttributeContext_Peer {
	return &authv3.AttributeContext_Peer{Address: &corev3.Address{
		Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address:       ip,
			PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}},
	}}
}
