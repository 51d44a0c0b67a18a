package portal

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// loginForm is the data of the login page.
type loginForm struct {
	Notice   string
	Token    string // of a valid link
	User     string // the user of the link
	OtherURL string // of your own login; empty: none
}

// loginPage answers GET /api/-/login. It does not use up the link, because mail scanners open links
// too.
func (p *page) loginPage(r *request) (answer, error) {
	query := r.URL.Query()
	form := loginForm{OtherURL: p.config.LoginURL}
	if query.Has("out") {
		form.Notice = r.text.LoggedOut
	}
	if !query.Has("token") {
		return p.loginAnswer(r, http.StatusOK, form), nil
	}
	token, err := p.config.Links.Parse(query.Get("token"))
	if err == nil {
		form.User, err = p.config.Directory.FindLink(r.Context(), token.Digest())
	} else {
		err = ErrLink
	}
	switch {
	case errors.Is(err, ErrLink):
		form.Notice, form.User = r.text.LinkInvalid, ""
		return p.loginAnswer(r, http.StatusNotFound, form), nil
	case err != nil:
		return answer{}, err
	}
	form.Token = token.Reveal()
	return p.loginAnswer(r, http.StatusOK, form), nil
}

// loginAnswer is always HTML, because only people open it.
func (p *page) loginAnswer(r *request, status int, form loginForm) answer {
	return answer{status: status, template: "login", data: p.view(r, r.text.LoginTitle, form)}
}

// login answers POST /api/-/login, the button of the form. It always creates a new session.
func (p *page) login(r *request) (answer, error) {
	if p.losesCookies(r) {
		p.log.Warn("a login by plain HTTP is refused, as browsers would not keep its cookie: " +
			"let users reach the page by https://, or serve with --insecure-cookies to try it out")
		return p.loginAnswer(r, http.StatusForbidden, loginForm{Notice: r.text.LoginInsecure, OtherURL: p.config.LoginURL}), nil
	}
	session, expires, err := p.useLink(r)
	switch {
	case errors.Is(err, ErrLink):
		return p.loginAnswer(r, http.StatusNotFound, loginForm{Notice: r.text.LinkInvalid, OtherURL: p.config.LoginURL}), nil
	case err != nil:
		return answer{}, err
	}
	cookie := p.cookie(session.Reveal())
	cookie.MaxAge = int(time.Until(expires) / time.Second)
	return answer{status: http.StatusSeeOther, header: map[string]string{"Location": p.at.Overview}, cookie: cookie}, nil
}

// useLink exchanges the login link of a form for a session. It ends the browser's previous session:
// the cookie is about to be replaced, and copies of it must not stay valid. An invalid or expired
// link leaves the previous session alone.
func (p *page) useLink(r *request) (session apikey.Token, expires time.Time, err error) {
	token, malformed := p.config.Links.Parse(r.PostFormValue("token"))
	if malformed != nil {
		return session, expires, ErrLink
	}
	previous, err := p.liveSession(r)
	if err != nil {
		return session, expires, err
	}
	return p.config.Directory.UseLink(r.Context(), token.Digest(), previous)
}

// liveSession returns the digest of the request's own session, or zero if it has no live one.
func (p *page) liveSession(r *request) (apikey.Digest, error) {
	login, reason, err := p.sessions.Identify(r.Context(), r.Header.Values("Cookie"), nil)
	if err != nil || reason != authz.Allowed {
		return apikey.Digest{}, err
	}
	return login.Session, nil
}

// losesCookies reports whether the browser that sent a form would drop our cookie. Browsers accept
// a cookie for HTTPS only over HTTPS or from this machine. The Origin header tells how the browser
// connected, because another proxy may stand in front of Envoy.
func (p *page) losesCookies(r *request) bool {
	origin, err := url.Parse(r.Header.Get("Origin"))
	if err != nil || origin.Scheme != "http" || p.config.Sessions.InsecureCookies {
		return false
	}
	host := origin.Hostname()
	address, err := netip.ParseAddr(host)
	return host != "localhost" && !strings.HasSuffix(host, ".localhost") && (err != nil || !address.IsLoopback())
}

// logout answers POST /api/-/logout, which needs no live session. It redirects to a page of our
// own, because form-action allows no other target, not even for a redirect.
func (p *page) logout(r *request) (answer, error) {
	session, err := p.liveSession(r)
	if err == nil && session != (apikey.Digest{}) {
		err = p.config.Directory.EndSession(r.Context(), session)
	}
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusSeeOther, header: map[string]string{"Location": p.at.Login + "?out=1"}, cookie: p.expiredCookie()}, nil
}

// cookie returns the session cookie. The prefix of its name makes browsers accept it only from this
// host and over TLS.
func (p *page) cookie(value string) *http.Cookie {
	insecure := p.config.Sessions.InsecureCookies
	name := authz.SessionCookie
	if insecure {
		name = authz.InsecureSessionCookie
	}
	return &http.Cookie{Name: name, Value: value, Path: "/", HttpOnly: true, Secure: !insecure, SameSite: http.SameSiteLaxMode}
}

// expiredCookie returns a cookie that deletes the session cookie.
func (p *page) expiredCookie() *http.Cookie {
	cookie := p.cookie("")
	cookie.MaxAge = -1
	return cookie
}
