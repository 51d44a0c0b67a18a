// Package authz is the decision: it maps a [Request] to a [Decision]. It has the route table, the
// precedence of credentials and the table of reasons. It does not depend on Envoy, SQL, HTTP or
// Prometheus. Apart from the look-ups and the
// [Meter], it consists of pure functions. The Check server and the command `keyporter check` call
// it.
package authz

import (
	"sync/atomic"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/usage"
)

// Decision is the answer to a [Request]. The zero Decision denies.
type Decision struct {
	Reason    Reason
	Problem   Problem      // the problem with the request, if that is the reason
	Why       error        // the problem with a token of the web app, if that is the reason
	Principal Principal    // zero if nobody was identified
	Rule      *Rule        // the matched rule; nil if none matched
	Place     Place        // where the key was found
	Imported  bool         // it has one of the table's key formats, not our own
	Rewrite   Rewrite      // the changes for the upstream; only if allowed
	Charge    usage.Charge // the amount charged, and the user's usage after it
	// Location redirects a browser that asks for the page without a session; only set if denied.
	Location string
	// CrossOrigin holds the answer's CORS headers, for Keyporter's answers and the upstream's
	// alike.
	CrossOrigin CrossOrigin
}

// Allowed reports whether the request may pass.
func (d *Decision) Allowed() bool { return d.Reason == Allowed }

// Outcome returns the client's view of d.
func (d *Decision) Outcome() Outcome {
	o := d.Reason.Outcome()
	if d.Problem != NoProblem {
		o = d.Problem.Outcome()
	}
	switch d.Reason {
	case RateLimited:
		o.Text = rateLimitedText(d.Charge.Rate)
	case CreditsExhausted:
		credits := d.Charge.Credits // a copy, so that only this decision moves to the heap
		o.Text, o.Credits = creditsExhaustedText(credits), &credits
	}
	if d.Location != "" {
		o.Status = 303 // See Other
	}
	return o
}

// Rewrite lists the changes to an allowed request that hide every credential from the upstream.
type Rewrite struct {
	Path                string // the new path with its query; empty: unchanged
	RemoveAPIKey        bool   // remove x-api-key
	RemoveAuthorization bool   // remove authorization: it contains a value shaped like a key
	RemoveCookie        bool   // remove cookie: it held only our session
	Cookie              string // the new cookie header; empty: unchanged
	Protocols           string // the new sec-websocket-protocol header; empty: unchanged
	RemoveOverrides     bool   // remove headers that override the method (x-http-method-override)
}

// Config configures an [Authorizer]. All fields are required but FindImported, LoginURL and
// PassPreflight.
type Config struct {
	Routes  *RouteTable
	Keys    *apikey.Format
	FindKey FindFunc
	// FindImported finds keys of the table's key formats. They have no tag, so that each guess gets
	// here. Nil: FindKey.
	FindImported FindFunc
	Sessions     *Sessions
	Meter        Meter
	LoginURL     string // redirect target for browsers without a session; empty: no redirect
	// PassPreflight reports whether one more preflight may go to the upstream now, for rules with
	// [CORSUpstream]. If it is nil, no preflight may. It must be safe for concurrent use.
	PassPreflight func() bool
}

// Authorizer decides requests. It is safe for concurrent use.
type Authorizer struct {
	config Config
	cookie string
	routes atomic.Pointer[RouteTable]
}

// New returns an Authorizer that is configured by c.
func New(c Config) *Authorizer {
	if c.FindImported == nil {
		c.FindImported = c.FindKey
	}
	a := &Authorizer{config: c, cookie: cookieName(c.Sessions.InsecureCookies)}
	a.SetRoutes(c.Routes)
	return a
}

// SetRoutes replaces the route table. Each request is decided by one table only. Requests that
// arrive after SetRoutes returns use the new one.
func (a *Authorizer) SetRoutes(t *RouteTable) { a.routes.Store(t) }
