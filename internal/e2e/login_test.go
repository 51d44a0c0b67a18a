package e2e_test

import (
	"net/url"
	"strings"
	"testing"
)

// own is the origin of requests that a browser makes from the page itself; see [connection.send].
const own = "http://api.example.com"

// A login link logs in once, on the press of a button: opening it, as mail scanners do, does not
// spend it. A login creates a new session, and a logout ends it.
func TestLoginLinks(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	s.user("ann", "pro")
	link := s.link("ann")
	for range 5 { // a scanner
		if a := s.open(link); a.status != 200 || !strings.Contains(a.body, `id="login"`) || len(a.header.Values("Set-Cookie")) > 0 {
			t.Fatalf("opening a link: %d %v, want 200, a button, and no cookie", a.status, a.header)
		}
		if a := s.send(request{method: "HEAD", target: link.RequestURI()}); a.status != 200 {
			t.Errorf("asking for its headers: %d", a.status)
		}
	}
	token := link.Query().Get("token")
	if a := s.press(token, "Origin: http://evil.example.com"); a.status != 403 {
		t.Errorf("the button on another site's page: %d, want 403", a.status)
	}
	fixed := "keyporter_session=" + strings.Repeat("0", 48)
	a := s.press(token, "Origin: "+own, "Cookie: "+fixed)
	cookie, _, _ := strings.Cut(a.header.Get("Set-Cookie"), ";")
	if a.status != 303 || a.header.Get("Location") != "/api" || !strings.HasPrefix(cookie, "keyporter_session=") || cookie == fixed {
		t.Fatalf("pressing the button: %d %v, want 303 to the page with a new session", a.status, a.header)
	}
	if a := s.page(cookie); a.status != 200 {
		t.Errorf("the page after the login: %d", a.status)
	}
	for name, again := range map[string]string{"used": token, "unknown": s.link("ann").Query().Get("token")[:10] + strings.Repeat("0", 41), "empty": ""} {
		if a := s.press(again, "Origin: "+own); a.status == 303 && a.header.Get("Location") == "/api" || len(a.header.Values("Set-Cookie")) > 0 {
			t.Errorf("a link that is %s: %d %v, want a refusal", name, a.status, a.header)
		}
	}
	if a := s.send(request{method: "POST", target: "/api/-/logout", header: []string{"Cookie: " + cookie, "Origin: " + own, "Content-Length: 0"}}); a.status != 303 {
		t.Errorf("logging out: %d", a.status)
	}
	if a := s.page(cookie); a.status != 401 {
		t.Errorf("the page after the logout: %d, want 401", a.status)
	}
	// A login over another user's session ends that session, wherever else its cookie is in use.
	s.run("account", "set", "bob", "--plan", "pro")
	s.run("user", "set", "bob", "--account", "bob")
	anns := s.session("ann")
	if a := s.press(s.link("bob").Query().Get("token"), "Origin: "+own, "Cookie: "+anns); a.status != 303 || a.header.Get("Location") != "/api" {
		t.Errorf("a login over another session: %d", a.status)
	}
	if a := s.page(anns); a.status != 401 {
		t.Errorf("the session that was there before: %d, want 401", a.status)
	}
	late := s.link("ann")
	s.run("user", "set", "ann", "--status", "disabled")
	if a := s.press(late.Query().Get("token"), "Origin: "+own); a.status == 303 && a.header.Get("Location") == "/api" {
		t.Errorf("a link of a disabled user: %d", a.status)
	}
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), token, strings.TrimPrefix(cookie, "keyporter_session="))
}

// link creates a login link.
func (s *stack) link(user string) *url.URL {
	s.t.Helper()
	var made struct{ Link string }
	s.decode(s.run("session", "create", user, "--link", "--page-url", own, "--output", "json"), &made)
	link, err := url.Parse(made.Link)
	if err != nil || link.Host != "api.example.com" || link.Query().Get("token") == "" {
		s.t.Fatalf("a login link: %q, %v", made.Link, err)
	}
	return link
}

// open opens a link like a browser.
func (s *stack) open(link *url.URL) answer {
	s.t.Helper()
	return s.send(request{target: link.RequestURI(), header: []string{"Accept: text/html,*/*;q=0.8"}})
}

// press presses the button of a login link's page.
func (s *stack) press(token string, headers ...string) answer {
	s.t.Helper()
	form := url.Values{"token": {token}}.Encode()
	return s.send(request{method: "POST", target: "/api/-/login", form: form, header: append(headers,
		"Accept: text/html", "Content-Type: application/x-www-form-urlencoded")})
}

// page requests the page as a program.
func (s *stack) page(cookie string) answer {
	s.t.Helper()
	return s.send(request{target: "/api", header: []string{"Cookie: " + cookie, "Accept: application/json"}})
}
