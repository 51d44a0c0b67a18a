// Package portal is the users' page, for people and, as JSON, for programs. It shows a user's usage
// and their key, masked until they ask for it, and replaces the key. It stands behind Envoy but
// does not trust its headers: it checks the session itself. No other package shows a key to a user
// or opens a sealed one.
package portal

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
)

// New returns the handler of the page's own listener, or an error if c is invalid.
func New(c Config) (http.Handler, error) {
	p := &page{
		config: c, at: addressesAt(c.Path), origin: http.NewCrossOriginProtection(), log: c.Log,
		quotas: quotas{all: map[string]*quota{}}, gathering: make(chan struct{}, maxGathering),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyporter_page_requests_total",
			Help: "Requests to the users' page, by what was asked and the answer's status.",
		}, []string{"page", "status"}),
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	p.sessions = p.quotas.limited(*c.Sessions)
	var err error
	p.assets, err = loadAssets(c.Brand, p.at)
	if err := errors.Join(authz.CheckPagePath(p.at.Overview), err); err != nil {
		return nil, fmt.Errorf("making the page: %w", err)
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(p.requests)
	}
	return p.routes(), nil
}

// route is one address of the page.
type route struct {
	name   string // in metrics
	public bool   // needs no session
	get    func(*request) (answer, error)
	post   func(*request) (answer, error) // from the page's own origin only
}

// routes returns the handler. It is not a ServeMux, because that redirects unclean paths with an
// HTML body and without our headers.
func (p *page) routes() http.Handler {
	routes := map[string]route{
		p.at.Overview:   {name: "overview", get: p.overview},
		p.at.Regenerate: {name: "regenerate", post: p.regenerate},
		p.at.Confirm:    {name: "confirm", get: p.confirm},
		p.at.Reveal:     {name: "reveal", post: p.reveal},
		p.at.OpenAPI:    {name: "openapi", get: p.serveOpenAPI},
		p.at.Login:      {name: "login", public: true, get: p.loginPage, post: p.login},
		p.at.Logout:     {name: "logout", public: true, post: p.logout},
	}
	for name := range p.static {
		routes[p.at.Static+name] = route{name: "static", public: true, get: p.serveStatic}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, received *http.Request) {
		found, ok := routes[strings.TrimSuffix(received.URL.Path, "/")] // like the route table
		if !ok {
			found = route{name: "other", public: true}
		}
		r := newRequest(w, received)
		a := p.recovered(found.name, r, func() answer { return p.answer(found, r) })
		p.requests.WithLabelValues(found.name, fmt.Sprint(a.status)).Inc()
		p.write(w, r, a)
	})
}

// answer checks method, origin and session before it calls the handler.
func (p *page) answer(found route, r *request) answer {
	serve := found.get
	switch {
	case found.get == nil && found.post == nil:
		return p.denial(r, authz.NoRoute)
	case r.Method == http.MethodPost:
		serve = found.post
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		serve = nil
	}
	if serve == nil {
		a := p.denial(r, authz.MethodNotAllowed)
		a.header = map[string]string{"Allow": allowed(found)}
		return a
	}
	if err := p.origin.Check(r.Request); err != nil {
		return p.problem(r, http.StatusForbidden, "cross_origin", "A request from another site is refused.", r.text.CrossOrigin)
	}
	if !found.public {
		login, reason, err := p.sessions.Identify(r.Context(), r.Header.Values("Cookie"), r.Header.Values("Authorization"))
		switch {
		case err != nil:
			return p.failed(found, r, err)
		case reason != authz.Allowed:
			return p.unauthenticated(r, reason)
		}
		name := "user " + login.Principal.User
		if r.quota, err = p.quotas.enter(name); err != nil {
			return p.failed(found, r, err)
		}
		defer p.quotas.leave(name)
		r.login = login
	}
	a, err := serve(r)
	if err != nil {
		return p.failed(found, r, err)
	}
	return a
}

// failed maps an error to an answer. Errors caused by users appear in the answer only, not in the
// log.
func (p *page) failed(found route, r *request, err error) answer {
	switch {
	case errors.Is(err, errTooMany):
		a := p.problem(r, http.StatusTooManyRequests, "too_many_at_once", "Too many requests at once. Please retry.", r.text.TooMany)
		a.header = map[string]string{"Retry-After": "1"}
		return a
	case errors.Is(err, ErrCursor):
		return p.problem(r, http.StatusBadRequest, "bad_request", "The parameter before is not the next of an earlier answer.", r.text.BadCursor)
	}
	p.log.Error("the page could not answer", "page", found.name, "user", r.login.Principal.User, "error", err)
	return p.denial(r, authz.Undecided)
}

func allowed(found route) string {
	var methods []string
	if found.get != nil {
		methods = append(methods, http.MethodGet)
	}
	if found.post != nil {
		methods = append(methods, http.MethodPost)
	}
	return (&authz.Rule{Methods: methods}).Allow()
}

// unauthenticated redirects a browser to the login page and rejects a program. It deletes an
// invalid cookie, so that the browser stops sending it.
func (p *page) unauthenticated(r *request, reason authz.Reason) answer {
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	a := answer{status: http.StatusSeeOther, header: map[string]string{"Location": p.loginURL()}}
	if !r.html || !get {
		a = p.denial(r, reason)
		a.header = map[string]string{"WWW-Authenticate": `Bearer realm="keyporter"`}
	}
	if reason != authz.MissingSession {
		a.cookie = p.expiredCookie()
	}
	return a
}

func (p *page) loginURL() string {
	if p.config.LoginURL == "" {
		return p.at.Login
	}
	return p.config.LoginURL
}
