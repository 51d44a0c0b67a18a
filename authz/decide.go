package authz

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyporter/keyporter/apikey"
)

// Authorize decides r. There are three outcomes: a Decision that allows; a Decision that denies,
// with its reason; and an error if it could not decide. The error comes with a Decision whose
// Reason is [Undecided], so that a caller that ignores the error denies as well.
//
// Clients can rely on the order of the checks below.
func (a *Authorizer) Authorize(ctx context.Context, r *Request) (d Decision, err error) {
	t, problem := parseTarget(r.Path)
	if problem != NoProblem {
		return d.refuse(problem), nil
	}
	table := a.routes.Load() // once: SetRoutes may replace it meanwhile
	protocols, problem := a.withoutKey(table.foreign, r.Protocols)
	if problem != NoProblem {
		return d.refuse(problem), nil
	}
	reason, problem := a.route(table, r, &t, &d)
	if problem != NoProblem {
		return d.refuse(problem), nil
	}
	if reason != Allowed {
		return d.deny(reason), nil
	}
	if reason, err = a.identify(ctx, table.foreign, r, &t, &d); err != nil {
		return d.deny(Undecided), err
	}
	if reason != Allowed {
		return d.deny(reason), nil
	}
	if reason, err = a.charge(ctx, r, &d); err != nil {
		return d.deny(Undecided), err
	}
	if reason != Allowed {
		return d.deny(reason), nil
	}
	d.Rewrite = a.rewrite(table.foreign, r, &t, d.Rule)
	d.Rewrite.Protocols = protocols
	d.Reason = Allowed
	return d, nil
}

// route finds the rule of a request, and the CORS headers of its answer.
func (a *Authorizer) route(table *RouteTable, r *Request, t *target, d *Decision) (Reason, Problem) {
	host, problem := hostOf(r.Host)
	if problem != NoProblem {
		return BadHeader, problem
	}
	routes := table.For(host)
	rule, known := table.rule(routes, host, r.Rule, t.path)
	if !known {
		return UnknownRule, NoProblem
	}
	if t.shape.encoded {
		if problem := routes.escapesProblem(rule, t.path); problem != NoProblem {
			return BadPath, problem
		}
	}
	if d.Rule = rule; rule == nil || rule.Kind == KindNone {
		return NoRoute, NoProblem
	}
	shared := table.crossOrigin(rule, r)
	preflight, method := r.isPreflight() && (shared.Vary || rule.CORS == CORSUpstream), r.Method
	if preflight {
		method = r.RequestMethod // the method that the preflight asks about
	}
	if !routes.opens(rule, t.path, method, t.shape.odd) {
		return OtherSpelling, NoProblem
	}
	if r.UnclearPath && t.changes(rule) {
		return BadPath, PathUnclear
	}
	if d.CrossOrigin = shared; preflight {
		return a.preflight(table, r, d)
	}
	if !rule.Permits(r.Method) {
		return MethodNotAllowed, NoProblem
	}
	return Allowed, NoProblem
}

// rule returns the rule with this name, if Envoy's route asks for one, or else the rule of the
// path. It returns nil if none applies. The result known is false if no rule has this name. A name
// opens neither the page nor paths that are answered with 404.
func (t *RouteTable) rule(routes *HostRoutes, host, name, path string) (rule *Rule, known bool) {
	if rule = routes.Match(path); name == "" || rule.isReserved() {
		return rule, true
	}
	if rule, known = t.named[name]; known && !rule.hasHost(host) {
		return nil, true
	}
	return rule, known
}

// preflight decides a CORS preflight. Keyporter answers it for the upstream, or lets it pass
// without a credential and without a charge.
func (a *Authorizer) preflight(table *RouteTable, r *Request, d *Decision) (Reason, Problem) {
	if d.Rule.CORS != CORSUpstream {
		table.answerPreflight(&d.CrossOrigin, d.Rule, r)
		return Preflight, NoProblem
	}
	if r.TransferEncoding != "" || r.Length != "" && r.Length != "0" {
		return BadHeader, PreflightBody
	}
	if a.config.PassPreflight == nil || !a.config.PassPreflight() {
		return TooManyPreflights, NoProblem
	}
	d.CrossOrigin.Origin = "" // only the upstream may consent; its silence means no
	return Allowed, NoProblem
}

// refuse denies because of problem. It never allows, not even for [NoProblem].
func (d *Decision) refuse(problem Problem) Decision {
	d.Problem = problem
	return d.deny(problems[problem.known()].reason)
}

// deny denies with reason. It never allows, not even for [Allowed].
func (d *Decision) deny(reason Reason) Decision {
	if reason == Allowed {
		reason = Undecided
	}
	d.Reason = reason
	return *d
}

// identify checks the credential that the rule's kind requires, and no other: a key never opens a
// session route, nor a session an API route.
func (a *Authorizer) identify(ctx context.Context, foreign *apikey.Foreign, r *Request, t *target, d *Decision) (Reason, error) {
	if d.Rule.passesPreflight(r) {
		return Allowed, nil // browsers send no credential with it, and rewrite removes any
	}
	switch d.Rule.Kind {
	case KindPublic:
		return Allowed, nil
	case KindSession:
		return a.identifySession(ctx, r, d)
	case KindAPIKey:
		return a.identifyKey(ctx, foreign, r, t, d)
	}
	return NoRoute, nil
}

func (a *Authorizer) identifyKey(ctx context.Context, foreign *apikey.Foreign, r *Request, t *target, d *Decision) (Reason, error) {
	place, value, reason := credential(r, t)
	d.Place = place
	if reason != Allowed {
		return reason, nil
	}
	return a.identifyValue(ctx, foreign, value, place == PlaceHeader, d)
}

// identifyValue identifies the owner of a value that should be a key. A key of another system
// without a prefix counts only if bare is set.
func (a *Authorizer) identifyValue(ctx context.Context, foreign *apikey.Foreign, value string, bare bool, d *Decision) (Reason, error) {
	find := a.config.FindKey
	token, err := a.config.Keys.Parse(value)
	if err != nil {
		if token, d.Imported = foreign.Parse(value, bare); !d.Imported {
			return keyProblem(err), nil
		}
		find = a.config.FindImported
	}
	p, err := find(ctx, token.Digest())
	switch {
	case errors.Is(err, ErrUnknown):
		return UnknownKey, nil
	case errors.Is(err, ErrRevoked):
		if owner := (RevokedError{}); errors.As(err, &owner) {
			d.Principal = Principal{User: owner.User, KeyID: owner.KeyID}
		}
		return RevokedKey, nil
	case err != nil:
		return Undecided, fmt.Errorf("looking up a key: %w", err)
	}
	switch d.Principal = p; {
	case !p.UserActive:
		return UserDisabled, nil
	case !p.AccountActive:
		return AccountInactive, nil
	case !p.APIAccess:
		return NoAPIAccess, nil
	}
	return Allowed, nil
}

// identifySession does not require API access in the plan, so that a user without it can open the
// page and read why.
func (a *Authorizer) identifySession(ctx context.Context, r *Request, d *Decision) (Reason, error) {
	login, reason, err := a.config.Sessions.Identify(ctx, r.Cookie, r.Authorization)
	if d.Principal = login.Principal; err == nil && reason != Allowed {
		d.Why = login.Why
		d.Location = a.login(r, d.Rule)
	}
	return reason, err
}

// login returns where to redirect a browser that asks for the page without a session; empty for all
// other requests.
func (a *Authorizer) login(r *Request, rule *Rule) string {
	if rule.To == ToPage && (r.Method == "GET" || r.Method == "HEAD") && WantsHTML(r.Accept) {
		return a.config.LoginURL
	}
	return ""
}

// charge meters a request with a key. It comes last, so that a request denied for another reason
// costs nothing.
func (a *Authorizer) charge(ctx context.Context, r *Request, d *Decision) (reason Reason, err error) {
	if d.Rule.Kind != KindAPIKey || d.Rule.passesPreflight(r) {
		return Allowed, nil
	}
	return a.take(ctx, r.ID, r.CallerTimeout, d)
}

// take meters a request to the rule of d, under the name id. Its caller may repeat it for as long
// as the timeout says, as in [Request].
func (a *Authorizer) take(ctx context.Context, id string, timeout time.Duration, d *Decision) (reason Reason, err error) {
	d.Charge, reason, err = a.config.Meter.Take(ctx, Use{
		Principal: d.Principal, Request: id, CallerTimeout: timeout, Cost: max(1, d.Rule.Cost), Refund: d.Rule.Refund,
	})
	if err != nil {
		return Undecided, fmt.Errorf("metering a request: %w", err)
	}
	return reason, nil
}

// rewrite returns the changes that hide our credentials from the upstream. It removes them on every
// kind of route and from every place.
func (a *Authorizer) rewrite(foreign *apikey.Foreign, r *Request, t *target, rule *Rule) Rewrite {
	w := Rewrite{Path: t.rewritten(rule), RemoveAPIKey: len(r.APIKey) > 0}
	if rule.passesPreflight(r) {
		w.RemoveAuthorization, w.RemoveCookie, w.RemoveOverrides = len(r.Authorization) > 0, len(r.Cookie) > 0, true
		return w
	}
	for _, value := range r.Authorization {
		if a.config.Keys.FoundIn(value) || foreign.FoundIn(value) {
			w.RemoveAuthorization = true
		}
	}
	if rule.To != ToPage {
		w.Cookie, w.RemoveCookie = a.withoutSession(r.Cookie)
	}
	return w
}
