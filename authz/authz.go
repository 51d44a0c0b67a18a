// Package authz is the decision: it maps a [Request] to a [Decision]. It defines the types that the
// rest of Keyporter shares, the route table, the precedence of credentials and the table of
// reasons. It does not depend on Envoy, SQL, HTTP or Prometheus. Apart from the look-ups and the
// [Meter], it consists of pure functions. The Check server and the command `keyporter check` call
// it.
package authz

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/usage"
)

// Request holds the input of a decision as plain strings, so that it does not depend on how the
// wire is decoded. It holds secrets: never log one.
type Request struct {
	Method        string   // as sent, such as GET
	Host          string   // the value of host or :authority
	Path          string   // the path with its query, as sent
	Rule          string   // the name of the rule that Envoy's route asks for; empty: match by path
	APIKey        []string // the values of x-api-key, in order
	Authorization []string // the values of authorization, in order
	Cookie        []string // the values of cookie, in order
	Accept        string   // the value of accept
	ID            string   // Envoy's request ID, which no client can choose

	// Protocols are the values of sec-websocket-protocol, in order. Some pages send their key
	// there, because browsers let a page set no other header on a WebSocket.
	Protocols []string
	// Origin and RequestMethod are the values of origin and access-control-request-method.
	Origin, RequestMethod string
	// Length and TransferEncoding are the values of content-length and transfer-encoding.
	Length, TransferEncoding string
	// UnclearPath reports that a '!' in Path may stand for a byte sent by the client that is not
	// UTF-8.
	UnclearPath bool
}

// Principal is the owner of a key or session, with the state of their account and plan.
type Principal struct {
	KeyID   string // empty for a session
	User    string
	Account string
	Plan    string

	UserActive    bool
	AccountActive bool
	APIAccess     bool

	RateLimit  usage.Limit    // of the plan: requests in any RateWindow
	RateWindow time.Duration  // positive
	Credits    usage.Limit    // of the plan: credits per month
	Pool       usage.PoolKind // of the plan: who shares the credits

	// NotBefore is the earliest valid issue time of the web app's tokens; older ones are rejected.
	NotBefore time.Time

	// Epoch numbers the database state that the principal was read from. A higher number is newer.
	Epoch int64
}

// Decision is the answer to a [Request]. The zero Decision denies.
type Decision struct {
	Reason    Reason
	Problem   Problem      // the problem with the request, if that is the reason
	Why       error        // the problem with a token of the web app, if that is the reason
	Principal Principal    // zero if nobody was identified
	Rule      *Rule        // the matched rule; nil if none matched
	Place     Place        // where the key was found
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

// Look-ups return these errors for a definite no. Any other error means that they could not decide.
var (
	ErrUnknown = errors.New("unknown")
	ErrRevoked = errors.New("revoked")
)

// RevokedError is an [ErrRevoked] that names the key and its owner, so that the user can see which
// client still sends an old key.
type RevokedError struct{ User, KeyID string }

func (e RevokedError) Error() string { return "of user " + e.User + ": " + ErrRevoked.Error() }

// Is reports whether the target is [ErrRevoked].
func (e RevokedError) Is(target error) bool { return target == ErrRevoked }

// A FindFunc resolves the digest of a key or a session. It returns [ErrUnknown] or [ErrRevoked],
// possibly wrapped, for a definite no, and any other error if it could not decide. It must respect
// ctx and be safe for concurrent use.
type FindFunc func(ctx context.Context, d apikey.Digest) (Principal, error)

// Config configures an [Authorizer]. All fields but LoginURL and PassPreflight are required.
type Config struct {
	Routes   *RouteTable
	Keys     *apikey.Format
	FindKey  FindFunc
	Sessions *Sessions
	Meter    Meter
	LoginURL string // redirect target for browsers without a session; empty: no redirect
	// PassPreflight reports whether one more preflight may go to the upstream now, for rules with
	// [CORSUpstream]. If it is nil, no preflight may. It must be safe for concurrent use.
	PassPreflight func() bool
}

// The names of the session cookie.
const (
	SessionCookie         = "__Host-keyporter_session"
	InsecureSessionCookie = "keyporter_session"
)

// Authorizer decides requests. It is safe for concurrent use.
type Authorizer struct {
	config Config
	cookie string
	routes atomic.Pointer[RouteTable]
}

// New returns an Authorizer that is configured by c.
func New(c Config) *Authorizer {
	a := &Authorizer{config: c, cookie: cookieName(c.Sessions.InsecureCookies)}
	a.SetRoutes(c.Routes)
	return a
}

// SetRoutes replaces the route table. Each request is decided by one table only. Requests that
// arrive after SetRoutes returns use the new one.
func (a *Authorizer) SetRoutes(t *RouteTable) { a.routes.Store(t) }
