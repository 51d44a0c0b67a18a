package authz

import (
	"errors"
	"fmt"
	"time"
)

// The default times of a rule.
const (
	DefaultTimeout     = Endless
	DefaultIdleTimeout = Span(time.Minute)
	DefaultMaxDuration = Span(time.Hour)
)

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
