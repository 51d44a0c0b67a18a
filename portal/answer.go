package portal

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/keyporter/keyporter/authz"
)

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

// problem rejects a request. Programs get text; people get localized, in their language.
func (p *page) problem(r *request, status int, code, text, localized string) answer {
	if r.html {
		return answer{status: status, template: "message", data: p.view(r, r.text.Refused, messagePage{Text: localized})}
	}
	return answer{status: status, json: problem{Error: text, Code: code}}
}

func (p *page) denial(r *request, reason authz.Reason) answer {
	o := reason.Outcome()
	localized := r.text.NotFound
	switch o.Status {
	case http.StatusUnauthorized:
		localized = r.text.LoginNeeded
	case http.StatusMethodNotAllowed:
		localized = r.text.MethodNotAllowed
	case http.StatusServiceUnavailable:
		localized = r.text.Unavailable
	}
	a := p.problem(r, o.Status, o.Code, o.Text, localized)
	if o.Status == http.StatusServiceUnavailable {
		a.header = map[string]string{"Retry-After": "1"}
	}
	return a
}

// recovered turns a panic into a 503. It does not log the panic's value, which may hold secrets.
func (p *page) recovered(name string, r *request, serve func() answer) (a answer) {
	defer func() {
		if value := recover(); value != nil {
			p.log.Error("the page panicked", "page", name, "type", fmt.Sprintf("%T", value))
			a = p.denial(r, authz.Undecided)
		}
	}()
	return serve()
}

// policy lets the page load its own resources and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func (p *page) write(w http.ResponseWriter, r *request, a answer) {
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
	if r.secure && !p.config.Sessions.InsecureCookies {
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
		header.Set("Content-Language", r.text.Language)
	}
	w.WriteHeader(a.status)
	if r.Method != http.MethodHead {
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
