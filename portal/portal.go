// Package portal is what a user sees of Keyporter: whose key they have, and the way to a new one. In
// this version it answers JSON. It stands behind Envoy but trusts nothing that comes from there: it
// checks the session itself and believes no header. It is the only package that hands a key to a user.
package portal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// regenerateTimeout bounds a regeneration, which goes on when the browser leaves. It is longer than the
// longest lease that a silent replica may have.
const regenerateTimeout = 45 * time.Second

// maxBody is the longest request body that is read, in bytes.
const maxBody = 64 << 10

// ErrNoKey is returned by [Config.Regenerate] for a user without a live key.
var ErrNoKey = errors.New("the user has no live key")

// ErrIdempotencyKey is returned by [Config.Regenerate] for an idempotency key that cannot be used.
var ErrIdempotencyKey = errors.New("the idempotency key cannot be used")

// Key is what the page tells of a key.
type Key struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
}

// Regenerated is the result of a regeneration.
type Regenerated struct {
	KeyID string
	// Key is the new key; zero where an earlier call with the same idempotency key has returned it.
	Key apikey.Token
	// Confirmed says that the old key is dead on every replica.
	Confirmed bool
	Replicas  Replicas
}

// Replicas counts the replicas on which the old key is dead: those that have said so, and those that
// were silent until they may not answer from memory any more.
type Replicas struct {
	Total        int `json:"total"`
	Acknowledged int `json:"acknowledged"`
	Expired      int `json:"expired"`
}

// Config says where the page's facts come from. The functions are required, are called from many
// goroutines and must respect their context.
type Config struct {
	// Sessions asks the store itself, not a cache: the page is where a user looks right after a change.
	Sessions *authz.Sessions
	// LiveKey returns the live key of a user, and whether there is one.
	LiveKey func(ctx context.Context, user string) (Key, bool, error)
	// Regenerate replaces the live key of a user, or returns [ErrNoKey]. Repeated with the same
	// idempotency key, it confirms again and replaces nothing; it returns [ErrIdempotencyKey] for one that
	// cannot be. The empty one is none.
	Regenerate func(ctx context.Context, user, idempotencyKey string) (Regenerated, error)

	LoginURL string                // where a browser without a session is sent; "": it gets 401
	Log      *slog.Logger          // nil: slog.Default()
	Metrics  prometheus.Registerer // nil: not registered
}

// page serves the users' page. All its answers are JSON.
type page struct {
	config   Config
	origin   *http.CrossOriginProtection
	log      *slog.Logger
	requests *prometheus.CounterVec
}

// New returns the handler of the page's own listener.
func New(c Config) http.Handler {
	p := &page{config: c, origin: http.NewCrossOriginProtection(), log: c.Log, requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_page_requests_total",
		Help: "Requests to the users' page, by what was asked and the answer's status.",
	}, []string{"page", "status"})}
	if p.log == nil {
		p.log = slog.Default()
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(p.requests)
	}
	overview := p.handler("overview", http.MethodGet, p.overview)
	regenerate := p.handler("regenerate", http.MethodPost, p.regenerate)
	other := p.handler("other", "", nil)
	// No ServeMux: it redirects a path that is not clean, in HTML and without our headers.
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api":
			overview.ServeHTTP(w, r)
		case "/api/regenerate":
			regenerate.ServeHTTP(w, r)
		default:
			other.ServeHTTP(w, r)
		}
	})
}

// answer is what a handler wants said.
type answer struct {
	status int
	body   any
	header map[string]string
}

// handler is what all requests go through: recovery, method, origin, session, the answer's headers.
func (p *page) handler(name, method string, serve func(*http.Request, authz.Principal) (answer, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		a := p.recovered(name, func() answer { return p.answer(method, serve, r) })
		p.requests.WithLabelValues(name, fmt.Sprint(a.status)).Inc()
		p.write(w, r, a)
	})
}

// recovered turns a panic into a 503. The panic's value is not logged, as it may hold anything.
func (p *page) recovered(name string, serve func() answer) (a answer) {
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("the page panicked", "page", name, "type", fmt.Sprintf("%T", v))
			a = denial(authz.Undecided)
		}
	}()
	return serve()
}

func (p *page) answer(method string, serve func(*http.Request, authz.Principal) (answer, error), r *http.Request) answer {
	if serve == nil {
		return denial(authz.NoRoute)
	}
	if r.Method != method && !(r.Method == http.MethodHead && method == http.MethodGet) {
		a := denial(authz.MethodNotAllowed)
		a.header = map[string]string{"Allow": (&authz.Rule{Methods: []string{method}}).Allow()}
		return a
	}
	if err := p.origin.Check(r); err != nil {
		return answer{status: http.StatusForbidden, body: problem{Error: "A request from another site is refused.", Code: "cross_origin"}}
	}
	login, reason, err := p.config.Sessions.Identify(r.Context(), r.Header.Values("Cookie"), r.Header.Values("Authorization"))
	switch {
	case err != nil:
		p.log.Error("looking up a session", "error", err)
		return denial(authz.Undecided)
	case reason != authz.Allowed:
		return p.noSession(r, reason)
	}
	a, err := serve(r, login.Principal)
	if err != nil {
		p.log.Error("the page could not answer", "user", login.Principal.User, "error", err)
		return denial(authz.Undecided)
	}
	return a
}

// noSession sends a browser to the login page, if there is one, and refuses a program.
func (p *page) noSession(r *http.Request, reason authz.Reason) answer {
	browser := r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html")
	if browser && p.config.LoginURL != "" {
		return answer{status: http.StatusSeeOther, header: map[string]string{"Location": p.config.LoginURL}}
	}
	a := denial(reason)
	a.header = map[string]string{"WWW-Authenticate": `Bearer realm="keyporter"`}
	return a
}

// problem is the body of an answer that is a refusal.
type problem struct {
	Success bool   `json:"success"`
	Error   string `json:"error"`
	Code    string `json:"code"`
}

func denial(reason authz.Reason) answer {
	o := reason.Outcome()
	a := answer{status: o.Status, body: problem{Error: o.Text, Code: o.Code}}
	if o.Status == http.StatusServiceUnavailable {
		a.header = map[string]string{"Retry-After": "1"}
	}
	return a
}

func (p *page) overview(r *http.Request, who authz.Principal) (answer, error) {
	key, found, err := p.config.LiveKey(r.Context(), who.User)
	if err != nil {
		return answer{}, err
	}
	body := struct {
		Success   bool   `json:"success"`
		User      string `json:"user"`
		Account   string `json:"account"`
		Plan      string `json:"plan"`
		APIAccess bool   `json:"api_access"`
		Key       *Key   `json:"key"`
	}{true, who.User, who.Account, who.Plan, who.APIAccess && who.AccountActive, nil}
	if found {
		body.Key = &key
	}
	return answer{status: http.StatusOK, body: body}, nil
}

// regenerate goes on when the browser leaves: half a regeneration helps nobody.
func (p *page) regenerate(r *http.Request, who authz.Principal) (answer, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), regenerateTimeout)
	defer cancel()
	began := time.Now()
	made, err := p.config.Regenerate(ctx, who.User, r.Header.Get("Idempotency-Key"))
	switch {
	case errors.Is(err, ErrNoKey):
		return answer{status: http.StatusConflict, body: problem{Error: "There is no key to replace.", Code: "no_key"}}, nil
	case errors.Is(err, ErrIdempotencyKey):
		return answer{status: http.StatusBadRequest, body: problem{Error: "The Idempotency-Key cannot be used.", Code: "bad_request"}}, nil
	case err != nil:
		return answer{}, err
	}
	p.log.Info("key regenerated", "user", who.User, "key", made.KeyID, "confirmed", made.Confirmed)
	body := struct {
		Success   bool     `json:"success"`
		Key       *string  `json:"key"`
		Code      string   `json:"code,omitempty"`
		Confirmed bool     `json:"confirmed"`
		Replicas  Replicas `json:"replicas"`
		TookMS    int64    `json:"took_ms"`
	}{true, nil, "key_shown_once", made.Confirmed, made.Replicas, time.Since(began).Milliseconds()}
	if made.Key != (apikey.Token{}) {
		key := made.Key.Reveal()
		body.Key, body.Code = &key, ""
	}
	return answer{status: http.StatusOK, body: body}, nil
}

func (p *page) write(w http.ResponseWriter, r *http.Request, a answer) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	for name, value := range a.header {
		header.Set(name, value)
	}
	if a.body == nil {
		w.WriteHeader(a.status)
		return
	}
	body, err := json.Marshal(a.body)
	if err != nil {
		p.log.Error("encoding an answer", "error", err)
		a.status, body = http.StatusServiceUnavailable, []byte(authz.Undecided.Outcome().Body())
	}
	header.Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	if r.Method != http.MethodHead {
		w.Write(body) // a browser that left is no error of ours
	}
}
