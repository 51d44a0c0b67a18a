// Package portal is what a user sees of Keyporter: their key, masked until they ask for it, the way to a
// new one, and what they use; as a page for people and as JSON for programs. It stands behind Envoy but
// trusts nothing that comes from there: it checks the session itself and believes no other header. It is
// the only package that hands a key to a user, and the only one that unseals one.
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

// maxBody is the longest request body that is read, in bytes.
const maxBody = 4 << 10

// page serves the users' page.
type page struct {
	config   Config
	origin   *http.CrossOriginProtection
	log      *slog.Logger
	requests *prometheus.CounterVec
	at       addresses
	static   map[string]file // name → what is served under addresses.Static
	version  string          // of all static files together, part of their URLs
	brand    brand
	openAPI  []byte

	sessions  *authz.Sessions
	shares    shares
	gathering chan struct{} // has an element for each view that is being gathered, of all users
}

// New returns the handler of the page's own listener, or an error that says what is wrong with c.
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
	public bool   // it needs no session
	get    func(*visit) (answer, error)
	post   func(*visit) (answer, error) // from the page's own origin only
}

// routes returns the handler. It is no ServeMux: that redirects a path that is not clean, in HTML and
// without our headers.
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
		found, ok := routes[strings.TrimSuffix(r.URL.Path, "/")] // the route table has one trailing slash, too
		if !ok {
			found = route{name: "other", public: true}
		}
		r = r.WithContext(r.Context()) // a copy: by its own body the server sees who still waits to send it
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		v := newVisit(r)
		a := p.recovered(found.name, v, func() answer { return p.answer(found, v) })
		p.requests.WithLabelValues(found.name, fmt.Sprint(a.status)).Inc()
		p.write(w, v, a)
	})
}

// recovered turns a panic into a 503. The panic's value is not logged, as it may hold anything.
func (p *page) recovered(name string, v *visit, serve func() answer) (a answer) {
	defer func() {
		if value := recover(); value != nil {
			p.log.Error("the page panicked", "page", name, "type", fmt.Sprintf("%T", value))
			a = p.denial(v, authz.Undecided)
		}
	}()
	return serve()
}

// answer is what all requests go through: method, origin, session.
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

// failed answers a request with what kept it from an answer. What users bring about is told to them
// alone.
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

// noSession sends a browser to the login page, and refuses a program. A cookie that opens nothing is taken
// back, lest the browser go on sending it.
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

// answer is what a handler wants said: JSON, a template, or bytes as they are.
type answer struct {
	status int
	header map[string]string
	cookie *http.Cookie
	// cached says that the answer is the same for everybody, and may be kept for ever.
	cached bool

	json     any
	template string // for a browser, and what it is filled with
	data     any
	raw      []byte
}

// problem is the body of an answer that is a refusal.
type problem struct {
	Success bool   `json:"success"`
	Error   string `json:"error"`
	Code    string `json:"code"`
}

// problem refuses: a program gets the text, a person the one in their language.
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

// policy lets the page load what comes from itself, and nothing else.
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
	// With no-referrer, browsers send the Origin null from a page that came by plain HTTP, and no
	// Sec-Fetch-Site: its own buttons would be refused. This tells others the host at most.
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
		w.Write(body) // a browser that left is no error of ours
	}
}

// render makes the body of an answer before anything of it is sent.
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
