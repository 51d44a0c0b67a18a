package envoy

import (
	"context"
	"errors"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/usage"
)

// Check implements the ext_authz service. It never returns a gRPC error: Envoy would treat that as
// a failure, and an operator may have told it to let failures pass. An undecided request is denied
// with 503.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (reply *authv3.CheckResponse, _ error) {
	var d authz.Decision
	defer s.guard(&d, func(unavailable *codec.Answer) { reply = unavailable.Response() })
	var c codec.Call
	if c.TooLarge = proto.Size(in) > codec.MaxMessageSize; !c.TooLarge {
		c.Decode(in)
	}
	var a codec.Answer
	s.answer(&lazyDeadline{Context: ctx}, &c, &d, &a)
	return a.Response(), nil
}

// checkInPlace is [Server.Check] without the generated types for question and answer.
func (s *Server) checkInPlace(_ any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (reply any, _ error) {
	var d authz.Decision
	defer s.guard(&d, func(unavailable *codec.Answer) {
		k := &codec.Check{}
		k.Answer(unavailable, s.buffers)
		reply = k
	})
	x := &exchange{}
	if err := read(&x.Check); err != nil {
		return nil, err
	}
	var a codec.Answer
	x.bound.Context = ctx
	s.answer(&x.bound, &x.Call, &d, &a)
	x.Answer(&a, s.buffers)
	return &x.Check, nil
}

// exchange is one Check and its deadline, in one object.
type exchange struct {
	codec.Check
	bound lazyDeadline
}

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

// answer decides c, and fills a. It sets the deadline of ctx.
func (s *Server) answer(ctx *lazyDeadline, c *codec.Call, d *authz.Decision, a *codec.Answer) {
	began, reason := time.Now(), authz.Undecided
	ended := began
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			s.panicked("a Check panicked and was answered 503: report this stack, it is a fault of Keyporter", p)
			s.config.Void(d.Charge)
			reason, ended = authz.Undecided, time.Now()
			*a, *d = codec.Answer{}, authz.Decision{}
			a.Fill(&codec.Call{}, d)
		}
		s.metrics.decided(reason, ended.Sub(began))
	}()
	if c.TooLarge {
		d.Reason = authz.TooLarge
	} else {
		ended = s.decide(ctx, &c.Request, d, began)
	}
	a.Fill(c, d)
	s.unreported.charged(&c.Request, d)
	reason = d.Reason
}

// decide asks Config.Authorize. An error, and an answer that comes too late, is a denial. It
// returns the time of the decision.
func (s *Server) decide(ctx *lazyDeadline, r *authz.Request, d *authz.Decision, began time.Time) time.Time {
	ctx.end = began.Add(s.budget(ctx.Context, began))
	defer ctx.release()
	var err error
	*d, err = s.config.Authorize(ctx, r)
	ended := time.Now()
	if err == nil {
		err = ctx.at(ended) // a decision made before a long pause may no longer be right
	}
	if err != nil {
		s.failed(ctx.Context, r, d, err)
		s.config.Void(d.Charge)
		d.Reason, d.Charge, d.Location = authz.Undecided, usage.Charge{}, ""
	}
	return ended
}

// budget returns the maximum time for a decision: Config.Timeout, but at most three quarters of the
// caller's deadline, so that our 503 arrives in time.
func (s *Server) budget(ctx context.Context, now time.Time) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return s.config.Timeout
	}
	return min(s.config.Timeout, deadline.Sub(now)*3/4)
}

// failed counts an undecided call and logs it, at most once a second for each cause. A caller that
// hung up is not logged.
func (s *Server) failed(ctx context.Context, r *authz.Request, d *authz.Decision, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		s.metrics.errors[causeCanceled].count.Inc()
		return
	}
	name := s.config.Cause(err)
	if name == "" && errors.Is(err, context.DeadlineExceeded) {
		name = causeDeadline
	}
	cause := s.metrics.cause(name)
	cause.count.Inc()
	if suppressed, ok := cause.lines.allow(time.Now()); ok {
		s.log.Error("check not decided, answered 503", "cause", cause.name, "request", short(r.ID), "route", routeOf(d.Rule),
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
