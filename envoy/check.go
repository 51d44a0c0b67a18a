package envoy

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/usage"
)

// guard must be deferred. If reading a Check or writing its answer panics, the reply is a denial
// with 503, and the charge of d is undone.
func (s *Server) guard(d *authz.Decision, reply func(*codec.Answer)) {
	p := recover()
	if p == nil {
		return
	}
	s.metrics.panics.Inc()
	s.panicked("a Check panicked while it was read or answered, and was answered 503: report this stack, it is a fault of Keyporter", p)
	s.config.Void(d.Charge)
	var unavailable codec.Answer
	unavailable.Fill(&codec.Call{}, &authz.Decision{})
	reply(&unavailable)
}

// answer decides c, which came at a time, and fills a. The result ok is false, and nothing is
// counted, if the decision would have to wait and ctx is of [nowait.Context].
func (s *Server) answer(ctx *lazyDeadline, c *codec.Call, came time.Time, d *authz.Decision, a *codec.Answer) (ok bool) {
	reason, ended := authz.Undecided, came
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			s.panicked("a Check panicked and was answered 503: report this stack, it is a fault of Keyporter", p)
			s.config.Void(d.Charge)
			reason, ended = authz.Undecided, time.Now()
			*a, *d = codec.Answer{}, authz.Decision{}
			a.Fill(&codec.Call{}, d)
			ok = true
		}
		if ok {
			s.metrics.decided(reason, ended.Sub(came))
		}
	}()
	if c.TooLarge {
		d.Reason = authz.TooLarge
	} else if ended, ok = s.decide(ctx, &c.Request, d); !ok {
		return false
	}
	a.Selection = s.config.Selection
	a.Fill(c, d)
	s.unreported.charged(&c.Request, d)
	reason = d.Reason
	return true
}

// decide asks Config.Authorize. An error, and an answer that comes too late, is a denial. It
// returns the time of the decision; ok is false if there is none because it would have to wait.
func (s *Server) decide(ctx *lazyDeadline, r *authz.Request, d *authz.Decision) (ended time.Time, ok bool) {
	defer ctx.release()
	var err error
	*d, err = s.config.Authorize(ctx, r)
	if err != nil && errors.Is(err, nowait.ErrWouldWait) {
		return ended, false
	}
	ended = time.Now()
	if err == nil {
		err = ctx.at(ended) // a decision made before a long pause may no longer be right
	}
	if err != nil {
		s.failed(ctx.Context, r, d, err)
		s.config.Void(d.Charge)
		d.Reason, d.Charge, d.Location = authz.Undecided, usage.Charge{}, ""
	}
	return ended, true
}

// budget returns the maximum time for a decision: Config.Timeout, but at most three quarters of the
// caller's time-out, so that our 503 arrives in time. Callers with a time-out of 0 have none.
func (s *Server) budget(timeout time.Duration) time.Duration {
	if timeout == 0 {
		return s.config.Timeout
	}
	return min(s.config.Timeout, timeout/4*3)
}

// failed counts an undecided call and logs it, unless its caller hung up.
func (s *Server) failed(ctx context.Context, r *authz.Request, d *authz.Decision, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		s.metrics.errors[causeCanceled].count.Inc()
		return
	}
	name := s.config.Cause(err)
	if name == "" && errors.Is(err, context.DeadlineExceeded) {
		name = causeDeadline
	}
	s.undecided(s.metrics.cause(name), short(r.ID), routeOf(d.Rule), err)
}

// undecided counts a call that got 503, and logs it at most once a second for each cause.
func (s *Server) undecided(cause *failures, request, route string, err error) {
	cause.count.Inc()
	if suppressed, ok := cause.lines.allow(time.Now()); ok {
		s.log.Error("check not decided, answered 503", "cause", cause.name, "request", request, "route", route,
			"error", err, "suppressed", suppressed)
	}
}

// routeOf names a rule as the configuration does: by its path, not that of the request.
func routeOf(rule *authz.Rule) string {
	if rule == nil {
		return ""
	}
	return rule.Path + rule.Name
}

// short keeps a caller's text from filling the log. Envoy's ids of requests are 20 digits long.
func short(id string) string { return strings.ToValidUTF8(id[:min(len(id), 64)], "") }
