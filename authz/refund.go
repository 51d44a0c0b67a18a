package authz

import (
	"errors"
	"fmt"
)

// Refund is a route's rule for refunds. The zero Refund refunds credits if the upstream fails.
type Refund struct {
	// Never excludes refunds, regardless of the outcome.
	Never bool
	// Codes are the HTTP statuses that cause a refund, from 400 to 599, each once. They replace the
	// failures of the upstream.
	Codes []int
}

// The names of the rules that need no codes.
const (
	refundNever           = "never"
	refundUpstreamFailure = "upstream_failure"
)

// ParseRefund parses a rule that needs no codes.
func ParseRefund(s string) (Refund, error) {
	switch s {
	case refundNever:
		return Refund{Never: true}, nil
	case refundUpstreamFailure:
		return Refund{}, nil
	}
	return Refund{}, fmt.Errorf("%.80q: want %s, %s or {codes: [500, 503]}", s, refundNever, refundUpstreamFailure)
}

// IsZero reports whether r is the zero Refund: a refund if the upstream fails.
func (r Refund) IsZero() bool { return !r.Never && len(r.Codes) == 0 }

// problem returns an error if r is invalid.
func (r Refund) problem() error {
	if r.Never && len(r.Codes) > 0 {
		return errors.New("refund: either never, or with codes")
	}
	seen := map[int]bool{}
	for _, code := range r.Codes {
		if code < 400 || code > 599 {
			return fmt.Errorf("refund: %d is no status from 400 to 599", code)
		}
		if seen[code] {
			return fmt.Errorf("refund: the code %d is there twice", code)
		}
		seen[code] = true
	}
	return nil
}

// Failure is the reason why a request gave its client no result. The zero Failure means success.
type Failure uint8

// The failures.
const (
	NoFailure       Failure = iota
	Answered5xx             // the upstream answered 5xx, or an equivalent gRPC status
	NoAnswer                // the upstream did not answer: refused, reset, too slow
	NotAsked                // no upstream was healthy, or Envoy itself refused after our allow
	ClientGone              // the client left before the upstream was asked
	HeadersTooLarge         // our headers did not fit beside the client's
	InvalidAnswer           // Envoy could not apply our answer, for another reason
	failureCount
)

var failureNames = [failureCount]string{"none", "answered_5xx", "no_answer", "not_asked", "client_gone", "headers_too_large", "invalid_answer"}

// String returns the name of f in metrics and in the ledger.
func (f Failure) String() string {
	if f >= failureCount {
		f = NoFailure
	}
	return failureNames[f]
}

// Failures returns all failures but NoFailure.
func Failures() []Failure {
	return []Failure{Answered5xx, NoAnswer, NotAsked, ClientGone, HeadersTooLarge, InvalidAnswer}
}

// Voids reports whether the charge is undone regardless of the route's rule: our allow had no
// effect.
func (f Failure) Voids() bool { return f == HeadersTooLarge || f == InvalidAnswer }

// Ending reports how a request with a key ended, from Envoy's access log.
type Ending struct {
	Receipt string // [Charge.Receipt], from the request's metadata; empty: no charge
	Status  int    // sent to the client; 0: none
	Failure Failure
	Record  Record // for the user's page, without the cost
}
