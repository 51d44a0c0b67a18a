package authz_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
)

// webApp makes a world accept tokens: "good.for.ada" is a token of ada's, issued at the given time.
func (w *world) webApp(issued time.Time) {
	w.Sessions.TokenCookie = "app"
	w.Sessions.Verify = func(_ context.Context, token string) (authz.WebToken, error) {
		switch token {
		case "good.for.ada":
			return authz.WebToken{Subject: "sub-ada", IssuedAt: issued}, nil
		case "good.for.nobody":
			return authz.WebToken{Subject: "sub-nobody", IssuedAt: issued}, nil
		case "cannot.be.told":
			return authz.WebToken{}, errors.New("the keys cannot be read")
		}
		return authz.WebToken{}, fmt.Errorf("%w: forged", authz.ErrUnknown)
	}
	w.Sessions.FindSubject = func(_ context.Context, subject string) (authz.Principal, error) {
		if subject != "sub-ada" {
			return authz.Principal{}, authz.ErrUnknown
		}
		return ada, w.err
	}
}

// A token of the web app, in its cookie or as a bearer, logs its user in on session routes only.
// Our own cookie comes first, and an invalid one does not prevent the others from being tried.
func TestTokensOfAWebAppLogIn(t *testing.T) {
	ours := func(w *world) string { return authz.SessionCookie + "=" + w.session }
	dead := authz.SessionCookie + "=" + "ks_"
	request := func(path, cookie, bearer string) authz.Request {
		r := authz.Request{Method: "GET", Path: path}
		if cookie != "" {
			r.Cookie = []string{cookie}
		}
		if bearer != "" {
			r.Authorization = []string{bearer}
		}
		return r
	}
	w := newWorld(t)
	for _, row := range []struct {
		name, path, cookie, bearer string
		want                       authz.Reason
	}{
		{"a token in its cookie", "/api/x", "app=good.for.ada", "", authz.Allowed},
		{"a token as a bearer", "/api/x", "", "Bearer good.for.ada", authz.Allowed},
		{"a token as a bearer, in capitals", "/api/x", "", "BEARER good.for.ada", authz.Allowed},
		{"our own session beside a token that is none", "/api/x", ours(w) + "; app=x.y.z", "", authz.Allowed},
		{"a dead session of ours beside a good token", "/api/x", dead + "; app=good.for.ada", "", authz.Allowed},
		{"a token that is none in the cookie, a good bearer", "/api/x", "app=x.y.z", "Bearer good.for.ada", authz.Allowed},
		{"a token that is none", "/api/x", "app=x.y.z", "", authz.BadSession},
		{"a token of nobody", "/api/x", "app=good.for.nobody", "", authz.UnknownSession},
		{"two tokens", "/api/x", "app=good.for.ada; app=good.for.ada", "", authz.BadSession},
		{"a bearer that is no token", "/api/x", "", "Bearer abc", authz.MissingSession},
		{"a bearer that is a key", "/api/x", "", "Bearer " + w.ada, authz.MissingSession},
		{"a token with another scheme", "/api/x", "", "Basic good.for.ada", authz.MissingSession},
		{"a token under another name", "/api/x", "application=good.for.ada", "", authz.MissingSession},
		{"nothing", "/api/x", "", "", authz.MissingSession},
		{"a token at the API", "/api/v1/brands", "", "Bearer good.for.ada", authz.MalformedKey},
		{"a token in its cookie at the API", "/api/v1/brands", "app=good.for.ada", "", authz.MissingKey},
	} {
		w.webApp(time.Now())
		w.expect(t, row.name, request(row.path, row.cookie, row.bearer), row.want)
	}
	for _, r := range []authz.Request{request("/api/x", "app=cannot.be.told", ""), request("/api/x", dead+"; app=cannot.be.told", "")} {
		if d, err := w.decide(t, r); err == nil || d.Reason != authz.Undecided {
			t.Errorf("a token of which it cannot be told: %v, %v", d.Reason, err)
		}
	}
	without := newWorld(t)
	without.expect(t, "a token where none are taken", request("/api/x", "app=good.for.ada", "Bearer good.for.ada"), authz.MissingSession)
}

// A revocation ends the tokens issued before it. A disabled user has no session.
func TestTokensOfAWebAppCanBeRevoked(t *testing.T) {
	w, revoked := newWorld(t), time.Now()
	find := func(p authz.Principal) func(context.Context, string) (authz.Principal, error) {
		return func(context.Context, string) (authz.Principal, error) { return p, nil }
	}
	r := authz.Request{Method: "GET", Path: "/api/x", Cookie: []string{"app=good.for.ada"}}
	for _, row := range []struct {
		name   string
		issued time.Time
		change func(*authz.Principal)
		want   authz.Reason
	}{
		{"issued before a revocation", revoked.Add(-time.Millisecond), func(p *authz.Principal) { p.NotBefore = revoked }, authz.RevokedSession},
		{"issued after a revocation", revoked, func(p *authz.Principal) { p.NotBefore = revoked }, authz.Allowed},
		{"of a disabled user", revoked, func(p *authz.Principal) { p.UserActive = false }, authz.RevokedSession},
		{"of a user whose plan has no API access", revoked, func(p *authz.Principal) { p.APIAccess = false }, authz.Allowed},
	} {
		p := ada
		row.change(&p)
		w.webApp(row.issued)
		w.Sessions.FindSubject = find(p)
		w.expect(t, row.name, r, row.want)
	}
}

// Only a browser without a session that asks for the page is redirected to the login, and not while
// the session is undecided.
func TestABrowserIsSentToTheLogin(t *testing.T) {
	w := newWorld(t)
	w.LoginURL = "https://login.example.com/"
	const browser = "text/html,application/xhtml+xml,*/*;q=0.8"
	for _, row := range []struct {
		name, method, path, accept string
		sent                       bool
	}{
		{"a browser at the page", "GET", "/api", browser, true},
		{"its HEAD", "HEAD", "/api", browser, true},
		{"a browser that wants to regenerate", "GET", "/api/-/regenerate", browser, true},
		{"a form", "POST", "/api/regenerate", browser, false},
		{"a program at the page", "GET", "/api", "application/json", false},
		{"a program that takes anything", "GET", "/api", "*/*", false},
		{"a program that prefers JSON", "GET", "/api", "application/json, text/html;q=0.5", false},
		{"who says nothing", "GET", "/api", "", false},
		{"a browser at a session route of the upstream", "GET", "/api/x", browser, false},
		{"a browser at the API", "GET", "/api/v1/brands", browser, false},
	} {
		d, err := w.decide(t, authz.Request{Method: row.method, Path: row.path, Accept: row.accept})
		if err != nil || d.Allowed() || (d.Location == w.LoginURL) != row.sent || (d.Outcome().Status == 303) != row.sent {
			t.Errorf("%s: to %q with %d, %v", row.name, d.Location, d.Outcome().Status, err)
		}
	}
	w.err = errors.New("away")
	d, err := w.decide(t, authz.Request{Method: "GET", Path: "/api", Accept: browser, Cookie: []string{authz.SessionCookie + "=" + w.session}})
	if err == nil || d.Location != "" || d.Outcome().Status != 503 {
		t.Errorf("while it cannot be told: to %q with %d", d.Location, d.Outcome().Status)
	}
}
