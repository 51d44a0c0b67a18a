// Package authz is the decision: from a [Request] to a [Decision]. It holds the words that the rest
// of Keyporter shares, the route table, the precedence of credentials and the table of reasons.
// It knows nothing of Envoy, SQL, HTTP or Prometheus, and everything but the two look-ups is a pure
// function of its input. The Check server calls it, and so does the command `keyporter check`.
package authz

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/apikey"
)

// Request is what a decision depends on, as plain strings, so that whoever decodes the wire is free
// in how. It holds secrets: never log one.
type Request struct {
	Method        string   // as sent, such as GET
	Host          string   // the value of host, or of :authority
	Path          string   // the path with the query, as sent
	Rule          string   // the name of the rule that Envoy's route asks for; empty: the rule is found by path
	APIKey        []string // the values of x-api-key, in order
	Authorization []string // the values of authorization, in order
	Cookie        []string // the values of cookie, in order
	Accept        string   // the value of accept
	ID            string   // what Envoy calls the request; no client can choose it

	// Protocols are the values of sec-websocket-protocol, in order: a page can send no other header
	// with a WebSocket, so some put their key there.
	Protocols []string
	// Origin and RequestMethod are the values of origin and access-control-request-method.
	Origin, RequestMethod string
	// Length and TransferEncoding are the values of content-length and transfer-encoding.
	Length, TransferEncoding string
	// UnclearPath says that a '!' in Path may stand for a byte that is not UTF-8, which the client
	// has sent.
	UnclearPath bool
}

// Principal is what a key or a session resolves to.
type Principal struct {
	KeyID   string // empty for a session
	User    string
	Account string
	Plan    string

	UserActive    bool
	AccountActive bool
	APIAccess     bool

	RateLimit  Limit         // of the plan: requests in any RateWindow
	RateWindow time.Duration // longer than 0
	Credits    Limit         // of the plan: credits per month
	Pool       Pool          // of the plan: whose the credits are

	// NotBefore is since when the web app's tokens count: those that were issued before open nothing.
	NotBefore time.Time

	// Epoch numbers the state of the database in which this was read: of two that differ, the one with
	// the higher number is the newer.
	Epoch int64
}

// Decision is the answer to a [Request]. The zero Decision denies.
type Decision struct {
	Reason    Reason
	Problem   Problem   // what is wrong with the request, where it is refused for that
	Why       error     // what is wrong with a token of the web app, where it is refused for that
	Principal Principal // who; zero where nobody was identified
	Rule      *Rule     // the route rule that matched, nil if none did
	Place     Place     // where the key was found
	Rewrite   Rewrite   // what to change before the upstream sees the request; only when allowed
	Charge    Charge    // what was taken, and where the user stands
	// Location is where a browser is sent that asks for the page without a session; only when denied.
	Location string
	// CrossOrigin is what the answer says to pages of other origins, whoever gives it.
	CrossOrigin CrossOrigin
}

// Allowed reports whether the request may pass.
func (d *Decision) Allowed() bool { return d.Reason == Allowed }

// Outcome returns what the client sees of d.
func (d *Decision) Outcome() Outcome {
	o := d.Reason.Outcome()
	if d.Problem != NoProblem {
		o = d.Problem.Outcome()
	}
	switch d.Reason {
	case RateLimited:
		o.Text = d.Charge.Rate.text()
	case CreditsExhausted:
		credits := d.Charge.Credits // a copy, so that no other decision has to be kept in memory of its own
		o.Text, o.Credits = credits.text(), &credits
	}
	if d.Location != "" {
		o.Status = 303 // See Other
	}
	return o
}

// Rewrite is what must change in an allowed request, so that the upstream sees no credential.
type Rewrite struct {
	Path                string // the new path with query; empty: unchanged
	RemoveAPIKey        bool   // remove x-api-key
	RemoveAuthorization bool   // remove authorization: it contains a value of the shape of a key
	RemoveCookie        bool   // remove cookie: nothing but our session was in it
	Cookie              string // the new cookie header; empty: unchanged
	Protocols           string // the new sec-websocket-protocol header; empty: unchanged
	RemoveOverrides     bool   // remove the headers that name another method (x-http-method-override)
}

// What a look-up returns when there is an answer and it is no. Any other error means that it could
// not be decided.
var (
	ErrUnknown = errors.New("unknown")
	ErrRevoked = errors.New("revoked")
)

// RevokedError is an [ErrRevoked] that knows whose key it was, so that a user can be told who still tries
// an old one.
type RevokedError struct{ User, KeyID string }

func (e RevokedError) Error() string { return "of user " + e.User + ": " + ErrRevoked.Error() }

// Is reports whether the target is [ErrRevoked].
func (e RevokedError) Is(target error) bool { return target == ErrRevoked }

// A FindFunc resolves the digest of a key or of a session. It returns [ErrUnknown] or [ErrRevoked],
// possibly wrapped, when the answer is no, and any other error when it could not tell. It must
// respect ctx, and is called from many goroutines.
type FindFunc func(ctx context.Context, d apikey.Digest) (Principal, error)

// Config says what an [Authorizer] decides by. All fields but LoginURL and PassPreflight are
// required.
type Config struct {
	Routes   *RouteTable
	Keys     *apikey.Format
	FindKey  FindFunc
	Sessions *Sessions
	Meter    Meter
	LoginURL string // where a browser without a session is sent; "": nowhere
	// PassPreflight reports whether one more preflight may go to the upstream right now, where a
	// rule says so ([CORSUpstream]). Nil: none may. It is called from many goroutines.
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

// New returns an Authorizer.
func New(c Config) *Authorizer {
	a := &Authorizer{config: c, cookie: cookieName(c.Sessions.InsecureCookies)}
	a.SetRoutes(c.Routes)
	return a
}

// SetRoutes replaces the route table. A request is decided by the old table or by the new one,
// never by both; one that comes after SetRoutes has returned, by the new one.
func (a *Authorizer) SetRoutes(t *RouteTable) { a.routes.Store(t) }
