package usage

import (
	"errors"
	"fmt"
)

// RefundRule is a route's rule for refunds. The zero RefundRule refunds credits if the upstream
// fails.
type RefundRule struct {
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

// ParseRefundRule parses a rule that needs no codes.
func ParseRefundRule(s string) (RefundRule, error) {
	switch s {
	case refundNever:
		return RefundRule{Never: true}, nil
	case refundUpstreamFailure:
		return RefundRule{}, nil
	}
	return RefundRule{}, fmt.Errorf("%.80q: want %s, %s or {codes: [500, 503]}", s, refundNever, refundUpstreamFailure)
}

// IsZero reports whether r is the zero RefundRule: a refund if the upstream fails.
func (r RefundRule) IsZero() bool { return !r.Never && len(r.Codes) == 0 }

// Check returns an error if r is invalid.
func (r RefundRule) Check() error {
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
