package portal

import (
	"errors"
	"net/http"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// loginForm is the page that a login link opens.
type loginForm struct {
	Notice    string
	Token     string // of a link that is good
	User      string // whose it is
	Elsewhere string // where else one can log in
}

// loginPage answers GET /api/-/login. It spends nothing: links are opened by scanners of mail as well.
func (p *page) loginPage(v *visit) (answer, error) {
	query := v.request.URL.Query()
	form := loginForm{Elsewhere: p.config.LoginURL}
	if query.Has("out") {
		form.Notice = v.text.LoggedOut
	}
	if !query.Has("token") {
		return p.loginAnswer(v, http.StatusOK, form), nil
	}
	token, err := p.config.Links.Parse(query.Get("token"))
	if err == nil {
		form.User, err = p.config.FindLink(v.request.Context(), token.Digest())
	} else {
		err = ErrLink
	}
	switch {
	case errors.Is(err, ErrLink):
		form.Notice, form.User = v.text.LoginBad, ""
		return p.loginAnswer(v, http.StatusNotFound, form), nil
	case err != nil:
		return answer{}, err
	}
	form.Token = token.Reveal()
	return p.loginAnswer(v, http.StatusOK, form), nil
}

// loginAnswer is HTML also for who takes anything: nobody but a person opens it.
func (p *page) loginAnswer(v *visit, status int, form loginForm) answer {
	return answer{status: status, template: "login", data: p.view(v, v.text.LoginTitle, form)}
}

// login answers POST /api/-/login: the button. Whoever presses it gets a session that nobody had before.
func (p *page) login(v *visit) (answer, error) {
	session, expires, err := apikey.Token{}, time.Time{}, ErrLink
	if token, malformed := p.config.Links.Parse(v.request.PostFormValue("token")); malformed == nil {
		session, expires, err = p.config.UseLink(v.request.Context(), token.Digest())
	}
	switch {
	case errors.Is(err, ErrLink):
		return p.loginAnswer(v, http.StatusNotFound, loginForm{Notice: v.text.LoginBad, Elsewhere: p.config.LoginURL}), nil
	case err != nil:
		return answer{}, err
	}
	cookie := p.cookie(session.Reveal())
	cookie.MaxAge = int(time.Until(expires) / time.Second)
	return answer{status: http.StatusSeeOther, header: map[string]string{"Location": p.at.Overview}, cookie: cookie}, nil
}

// logout answers POST /api/-/logout, which is open to who has no session any more. It goes to a page of our
// own: form-action lets a form lead nowhere else, not even by a redirect.
func (p *page) logout(v *visit) (answer, error) {
	login, reason, err := p.config.Sessions.Identify(v.request.Context(), v.request.Header.Values("Cookie"), nil)
	if err == nil && reason == authz.Allowed && login.Session != (apikey.Digest{}) {
		err = p.config.Logout(v.request.Context(), login.Session)
	}
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusSeeOther, header: map[string]string{"Location": p.at.Login + "?out=1"}, cookie: p.noCookie()}, nil
}

// cookie holds a session. Its name's prefix makes browsers refuse it from anybody but this host, with TLS.
func (p *page) cookie(value string) *http.Cookie {
	insecure := p.config.Sessions.InsecureCookies
	name := authz.SessionCookie
	if insecure {
		name = authz.InsecureSessionCookie
	}
	return &http.Cookie{Name: name, Value: value, Path: "/", HttpOnly: true, Secure: !insecure, SameSite: http.SameSiteLaxMode}
}

// noCookie takes the session's cookie back.
func (p *page) noCookie() *http.Cookie {
	cookie := p.cookie("")
	cookie.MaxAge = -1
	return cookie
}
