package authz

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Span is a time limit, or [Endless]. The zero Span selects the default.
type Span time.Duration

// Endless is the [Span] without a limit.
const Endless Span = -1

// The default times of a rule.
const (
	DefaultTimeout     = Endless
	DefaultIdleTimeout = Span(time.Minute)
	DefaultMaxDuration = Span(time.Hour)
)

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

// Times returns the times of r, with defaults for those that are not set.
func (r *Rule) Times() (timeout, idle, life Span) {
	return r.Timeout.or(DefaultTimeout), r.IdleTimeout.or(DefaultIdleTimeout), r.MaxDuration.or(DefaultMaxDuration)
}

// timeProblem returns an error if the times of r are invalid.
func (r *Rule) timeProblem() error {
	if r.Timeout == 0 && r.IdleTimeout == 0 && r.MaxDuration == 0 {
		return nil
	}
	if r.Kind == KindNone || r.Answer != AnswerDestination {
		return errors.New("timeout, idle_timeout and max_duration are for what the upstream or the page answers")
	}
	_, _, life := r.Times()
	for _, named := range []struct {
		name string
		span Span
	}{{"timeout", r.Timeout}, {"idle_timeout", r.IdleTimeout}, {"max_duration", r.MaxDuration}} {
		if err := named.span.problem(); err != nil {
			return fmt.Errorf("%s: %w", named.name, err)
		}
		if life != Endless && named.span > life {
			return fmt.Errorf("%s %v is longer than max_duration, which ends the answer after %v: set that too", named.name, named.span, life)
		}
	}
	return nil
}

// timeProblem returns an error if the times of r conflict with those of the other rules. Envoy
// cannot combine a timeout and a max_duration on one route, so all rules with a timeout share the
// one max_duration that Envoy applies to every request.
func (t *RouteTable) timeProblem(r *Rule) error {
	if r.Timeout.or(DefaultTimeout) == Endless {
		return nil
	}
	_, _, life := r.Times()
	if t.life == 0 {
		t.life = life
	}
	if t.life != life {
		return fmt.Errorf("max_duration %v: all rules with a timeout have the same one, and an earlier rule has %v; leave out timeout here, or make them equal", life, t.life)
	}
	return nil
}
