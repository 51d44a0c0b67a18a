package authz

import (
	"fmt"
	"strings"
	"time"
)

// Span is a time limit, or [Endless]. The zero Span selects the default.
type Span time.Duration

// Endless is the [Span] without a limit.
const Endless Span = -1

// MaxSpan is the longest time that a rule can name, apart from [Endless].
const MaxSpan = Span(365 * 24 * time.Hour)

const endless = "unlimited"

// ParseSpan parses a duration such as 30s or 1h30m, or "unlimited".
func ParseSpan(s string) (Span, error) {
	if s == endless {
		return Endless, nil
	}
	d, err := time.ParseDuration(s)
	if span := Span(d); err == nil && span > 0 && span.problem() == nil {
		return span, nil
	}
	return 0, fmt.Errorf("%.80q: want a duration such as 30s or 5m, from 1ms to %v, or %s", s, MaxSpan, endless)
}

// String returns the form that [ParseSpan] parses.
func (s Span) String() string {
	if s == Endless {
		return endless
	}
	text := time.Duration(s).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// problem returns an error if s is not a valid time of a rule. Envoy counts in milliseconds.
func (s Span) problem() error {
	if s != Endless && (s < 0 || s > MaxSpan || s%Span(time.Millisecond) != 0) {
		return fmt.Errorf("%v is not in whole milliseconds up to %v", time.Duration(s), MaxSpan)
	}
	return nil
}

func (s Span) or(standard Span) Span {
	if s == 0 {
		return standard
	}
	return s
}
