// Package portal is the users' page, for people and, as JSON, for programs. It shows a user's usage
// and their key, masked until they ask for it, and replaces the key. It stands behind Envoy but
// does not trust its headers: it checks the session itself. No other package shows a key to a user
// or opens a sealed one.
package portal

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
)

// maxBody limits request bodies, in bytes.
const maxBody = 4 << 10

// page serves the users' page.
type page struct {
	config   Config
	origin   *http.CrossOriginProtection
	log      *slog.Logger
	requests *prometheus.CounterVec
	at       addresses
	static   map[string]file // name → file, served under addresses.Static
	version  string          // of all static files together, part of their URLs
	brand    brand
	openAPI  []byte

	sessions  *authz.Sessions
	shares    shares
	gathering chan struct{} // one element per view being gathered, for all users
}

// New returns the handler of the page's own listener, or an error if c is invalid.
func New(c Config) (http.Handler, error) {
	p := &page{config: c, at: addressesAt(c.Path), origin: http.NewCrossOriginProtection(), log: c.Log, gathering: make(chan struct{}, mostGathering), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_page_requests_total",
		Help: "Requests to the users' page, by what was asked and the answer's status.",
	}, []string{"page", "status"})}
	if p.log == nil {
		p.log = slog.Default()
	}
	p.shares.all = map[string]*share{}
	p.sessions = p.shares.sharing(*c.Sessions)
	if err := errors.Join(authz.CheckPagePath(p.at.Overview), p.loadStatic()); err != nil {
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
	get    func(*visit) (answer, error)
	post   func(*visit) (answer, error) // from the page's own origin only
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
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		found, ok := routes[strings.TrimSuffix(r.URL.Path, "/")] // like the route table
		if !ok {
			found = route{name: "other", public: true}
		}
		// A copy: the server checks the original body for clients that wait to send it.
		r = r.WithContext(r.Context())
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		v := newVisit(r)
		a := p.recovered(found.name, v, func() answer { return p.answer(found, v) })
		p.requests.WithLabelValues(found.name, fmt.Sprint(a.status)).Inc()
		p.write(w, v, a)
	})
}

// recovered turns a panic into a 503. It does not log the panic's value, which may hold secrets.
func (p *page) recovered(name string, v *visit, serve func() answer) (a answer) {
	defer func() {
		if value := recover(); value != nil {
			p.log.Error("the page panicked", "page", name, "type", fmt.Sprintf("%T", value))
			a = p.denial(v, authz.Undecided)
		}
	}()
	return serve()
}

// answer checks method, origin and session before it calls the handler.
func (p *page) answer(found route, v *visit) answer {
	serve := found.get
	switch {
	case found.get == nil && found.post == nil:
		return p.denial(v, authz.NoRoute)
	case v.request.Method == http.MethodPost:
		serve = found.post
	case v.request.Method != http.MethodGet && v.request.Method != http.MethodHead:
		serve = nil
	}
	if serve == nil {
		a := p.denial(v, authz.MethodNotAllowed)
		a.header = map[string]string{"Allow": allowed(found)}
		return a
	}
	if err := p.origin.Check(v.request); err != nil {
		return p.problem(v, http.StatusForbidden, "cross_origin", "A request from another site is refused.", v.text.CrossOrigin)
	}
	if !found.public {
		login, reason, err := p.sessions.Identify(v.request.Context(), v.request.Header.Values("Cookie"), v.request.Header.Values("Authorization"))
		switch {
		case err != nil:
			return p.failed(found, v, err)
		case reason != authz.Allowed:
			return p.noSession(v, reason)
		}
		name := "user " + login.Principal.User
		if v.share, err = p.shares.enter(name); err != nil {
			return p.failed(found, v, err)
		}
		defer p.shares.leave(name)
		v.login = login
	}
	a, err := serve(v)
	if err != nil {
		return p.failed(found, v, err)
	}
	return a
}

// failed maps an error to an answer. Errors caused by users appear in the answer only, not in the
// log.
func (p *page) failed(found route, v *visit, err error) answer {
	switch {
	case errors.Is(err, errTooMany):
		a := p.problem(v, http.StatusTooManyRequests, "too_many_at_once", "Too many requests at once. Please retry.", v.text.TooMany)
		a.header = map[string]string{"Retry-After": "1"}
		return a
	case errors.Is(err, ErrCursor):
		return p.problem(v, http.StatusBadRequest, "bad_request", "The parameter before is not the next of an earlier answer.", v.text.BadCursor)
	}
	p.log.Error("the page could not answer", "page", found.name, "user", v.login.Principal.User, "error", err)
	return p.denial(v, authz.Undecided)
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

// noSession redirects a browser to the login page and rejects a program. It deletes an invalid
// cookie, so that the browser stops sending it.
func (p *page) noSession(v *visit, reason authz.Reason) answer {
	get := v.request.Method == http.MethodGet || v.request.Method == http.MethodHead
	a := answer{status: http.StatusSeeOther, header: map[string]string{"Location": p.loginURL()}}
	if !v.html || !get {
		a = p.denial(v, reason)
		a.header = map[string]string{"WWW-Authenticate": `Bearer realm="keyporter"`}
	}
	if reason != authz.MissingSession {
		a.cookie = p.noCookie()
	}
	return a
}

func (p *page) loginURL() string {
	if p.config.LoginURL == "" {
		return p.at.Login
	}
	return p.config.LoginURL
}

// answer is the result of a handler: JSON, a template or raw bytes.
type answer struct {
	status int
	header map[string]string
	cookie *http.Cookie
	// cached reports that the answer is the same for everybody and never changes.
	cached bool

	json     any
	template string // for a browser, filled with data
	data     any
	raw      []byte
}

// problem is the JSON body of a rejection.
type problem struct {
	Success bool   `json:"success"`
	Error   string `json:"error"`
	Code    string `json:"code"`
}

// problem rejects a request. Programs get text; people get shown, which is in their language.
func (p *page) problem(v *visit, status int, code, text, shown string) answer {
	if v.html {
		return answer{status: status, template: "message", data: p.view(v, v.text.Refused, saying{Text: shown})}
	}
	return answer{status: status, json: problem{Error: text, Code: code}}
}

func (p *page) denial(v *visit, reason authz.Reason) answer {
	o := reason.Outcome()
	shown := v.text.NotFound
	switch o.Status {
	case http.StatusUnauthorized:
		shown = v.text.LoginNeeded
	case http.StatusMethodNotAllowed:
		shown = v.text.NotThatWay
	case http.StatusServiceUnavailable:
		shown = v.text.Unavailable
	}
	a := p.problem(v, o.Status, o.Code, o.Text, shown)
	if o.Status == http.StatusServiceUnavailable {
		a.header = map[string]string{"Retry-After": "1"}
	}
	return a
}

// policy lets the page load its own resources and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func (p *page) write(w http.ResponseWriter, v *visit, a answer) {
	body, contentType, err := p.render(a)
	if err != nil {
		p.log.Error("encoding an answer", "error", err)
		a = answer{status: http.StatusServiceUnavailable}
		body, contentType = []byte(authz.Undecided.Outcome().Body()), "application/json"
	}
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	if a.cached {
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	header.Set("Content-Security-Policy", policy)
	// With no-referrer, browsers send the Origin null and no Sec-Fetch-Site from pages loaded over
	// plain HTTP, and the page's own buttons would be rejected. This policy tells other sites the
	// host at most.
	header.Set("Referrer-Policy", "strict-origin")
	if v.secure && !p.config.Sessions.InsecureCookies {
		header.Set("Strict-Transport-Security", "max-age=31536000")
	}
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	header.Set("Vary", "Accept, Accept-Language, Cookie")
	for name, value := range a.header {
		header.Set(name, value)
	}
	if a.cookie != nil {
		http.SetCookie(w, a.cookie)
	}
	if contentType != "" {
		header.Set("Content-Type", contentType)
	}
	if a.template != "" {
		header.Set("Content-Language", v.text.Language)
	}
	w.WriteHeader(a.status)
	if v.request.Method != http.MethodHead {
		w.Write(body) // ignores errors of browsers that left
	}
}

// render renders the whole body of an answer before anything is sent.
func (p *page) render(a answer) (body []byte, contentType string, err error) {
	switch {
	case a.template != "":
		body, err = execute(a.template, a.data)
		return body, "text/html; charset=utf-8", err
	case a.json != nil:
		body, err = json.Marshal(a.json)
		return body, "application/json", err
	case a.raw != nil:
		return a.raw, "", nil
	}
	return nil, "", nil
}
