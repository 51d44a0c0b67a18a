package authz

import (
	"context"
	"time"
)

// KeyQuestion asks what a key is, without a request.
type KeyQuestion struct {
	Key string // as the client sent it, in any place
	// Rule names the rule of kind [KindAPIKey] that the key is asked for. If empty, there is none,
	// and a request costs 1 credit.
	Rule string
	// Charge makes the question count like a request. The Request names it: a repeated question is
	// charged once, like a repeated Check of a caller who waits for CallerTimeout.
	Charge        bool
	Request       string
	CallerTimeout time.Duration // 0: without one
}

// AuthorizeKey decides about a key as [Authorizer.Authorize] does about a request to the rule, from
// the same memory and in the same order. Without Charge it counts nothing, and looks at no limit.
func (a *Authorizer) AuthorizeKey(ctx context.Context, q KeyQuestion) (d Decision, err error) {
	table := a.routes.Load() // once: SetRoutes may replace it meanwhile
	d.Rule = &Rule{Kind: KindAPIKey}
	if q.Rule != "" {
		d.Rule = table.named[q.Rule]
	}
	if d.Rule == nil || d.Rule.Kind != KindAPIKey {
		return d.deny(UnknownRule), nil
	}
	reason, err := a.identifyValue(ctx, table.foreign, q.Key, true, &d)
	if err == nil && reason == Allowed && q.Charge {
		reason, err = a.take(ctx, q.Request, q.CallerTimeout, &d)
	}
	if err != nil {
		return d.deny(Undecided), err
	}
	if reason != Allowed {
		return d.deny(reason), nil
	}
	d.Reason = Allowed
	return d, nil
}
