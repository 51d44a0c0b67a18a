package authz

import (
	"errors"
	"fmt"
)

// Refund is a route's rule for when a request's credits come back. The zero Refund is that they do when
// the upstream fails.
type Refund struct {
	// Never says that they do not come back, whatever happens to the request.
	Never bool
	// Codes are the HTTP statuses with which they come back, from 400 to 599, each once; in place of
	// the failures of the upstream.
	Codes []int
}

// The names of the rules that need no codes.
const (
	refundNever           = "never"
	refundUpstreamFailure = "upstream_failure"
)

// ParseRefund reads a rule that needs no codes.
func ParseRefund(s string) (Refund, error) {
	switch s {
	case refundNever:
		return Refund{Never: true}, nil
	case refundUpstreamFailure:
		return Refund{}, nil
	}
	return Refund{}, fmt.Errorf("%.80q: want %s, %s or {codes: [500, 503]}", s, refundNever, refundUpstreamFailure)
}

// IsZero reports whether credits come back when the upstream fails.
func (r Refund) IsZero() bool { return !r.Never && len(r.Codes) == 0 }

// problem says what is wrong with r, or returns nil.
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

// Failure is why a request brought its client nothing. The zero Failure is that it did.
type Failure uint8

// The failures.
const (
	NoFailure       Failure = iota
	Answered5xx             // the upstream answered 5xx, or with a gRPC status that means as much
	NoAnswer                // it was asked, and did not answer: refused, reset, too slow
	NotAsked                // nobody was asked: no upstream is healthy, or Envoy itself refused after our yes
	ClientGone              // the client left before the upstream was asked
	HeadersTooLarge         // there was no room for our headers beside the client's
	InvalidAnswer           // Envoy could not do what we told it, for another reason
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

// Failures lists all failures but none.
func Failures() []Failure {
	return []Failure{Answered5xx, NoAnswer, NotAsked, ClientGone, HeadersTooLarge, InvalidAnswer}
}

// Voids reports whether the charge comes back whatever the route's rule says: our yes had no
// effect.
func (f Failure) Voids() bool { return f == HeadersTooLarge || f == InvalidAnswer }

// Ending is how a request with a key came to its end, as Envoy's access log tells.
type Ending struct {
	Receipt string // [Charge.Receipt], from the metadata of the request; "": nothing was charged
	Status  int    // what the client got; 0: nothing
	Failure Failure
	Record  Record // what the user is shown of it, but for what it has cost
}
