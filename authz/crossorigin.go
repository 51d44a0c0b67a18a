package authz

import (
	"errors"
	"slices"
)

// WithCORS returns a copy of the table with c for pages of other origins. The error joins all
// problems of c.
func (t *RouteTable) WithCORS(c CORS) (*RouteTable, error) {
	if c.IsZero() {
		return t, nil
	}
	if err := errors.Join(c.Problems()...); err != nil {
		return nil, err
	}
	with := *t
	with.cors = newSharing(c)
	return &with, nil
}

// SpeaksCORS reports whether t needs CORS in Envoy's configuration: some answer has a CORS header,
// or some preflight goes to the upstream.
func (t *RouteTable) SpeaksCORS() bool { return t.cors != nil || t.PassesPreflights() }

// PassesPreflights reports whether any preflight goes to the upstream.
func (t *RouteTable) PassesPreflights() bool {
	return slices.ContainsFunc(t.rules, func(r Rule) bool { return r.CORS == CORSUpstream })
}

// CORS returns the settings for pages of other origins.
func (t *RouteTable) CORS() CORS {
	if t.cors == nil {
		return CORS{}
	}
	return t.cors.config
}

// crossOrigin returns the CORS headers of the answer to r.
func (t *RouteTable) crossOrigin(rule *Rule, r *Request) (c CrossOrigin) {
	if t.cors == nil || rule.CORS == CORSOff || !rule.maySpeakCORS() {
		return c
	}
	c.Vary = true
	switch {
	case r.Origin == "":
		return c
	case t.cors.anybody:
		c.Origin = "*"
	case t.cors.origins[r.Origin]:
		c.Origin = r.Origin
	}
	return c
}

// answerPreflight adds the values for a preflight to c.
func (t *RouteTable) answerPreflight(c *CrossOrigin, rule *Rule, r *Request) {
	if c.Origin == "" {
		return
	}
	c.Methods, c.Headers, c.MaxAge = rule.preflightMethods(r.RequestMethod), t.cors.headers, t.cors.maxAge
}
