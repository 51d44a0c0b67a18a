package authz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/authz"
)

func cookies(values ...string) authz.Request {
	return authz.Request{Method: "GET", Path: "/api/brands", Cookie: values}
}

// A request is logged in only by exactly one cookie of the exact name with a live session.
func TestTheSessionCookie(t *testing.T) {
	w := newWorld(t)
	ours := authz.SessionCookie + "=" + w.session
	for _, row := range []struct {
		cookies []string
		want    authz.Reason
	}{
		{[]string{ours}, authz.Allowed},
		{[]string{"a=1; " + ours + "; b=2"}, authz.Allowed},
		{[]string{"a=1;" + ours + ";b=2"}, authz.Allowed},
		{[]string{"a=1", ours, "b=2"}, authz.Allowed},
		{[]string{"\t" + authz.SessionCookie + " = " + w.session + " "}, authz.Allowed},
		{[]string{";;" + ours + ";"}, authz.Allowed},
		{[]string{"a=1," + ours + "; " + ours}, authz.Allowed}, // a neighbour locks nobody out

		{nil, authz.MissingSession},
		{[]string{""}, authz.MissingSession},
		{[]string{"a=1"}, authz.MissingSession},
		{[]string{authz.InsecureSessionCookie + "=" + w.session}, authz.MissingSession}, // could come without TLS
		{[]string{strings.ToLower(ours)}, authz.MissingSession},
		{[]string{"x" + ours}, authz.MissingSession},
		{[]string{`"` + authz.SessionCookie + `"=` + w.session}, authz.MissingSession},
		{[]string{"a=" + ours}, authz.MissingSession},
		{[]string{w.session}, authz.MissingSession},
		// Any neighbouring domain may set this value: it must log nobody in.
		{[]string{"a=1," + ours}, authz.MissingSession},
		{[]string{"a=1, " + ours + ", b=2"}, authz.MissingSession},
		{[]string{"," + ours}, authz.MissingSession},

		{[]string{ours + "; " + ours}, authz.BadSession},
		{[]string{ours, ours}, authz.BadSession},
		{[]string{ours, authz.SessionCookie + "="}, authz.BadSession},
		{[]string{authz.SessionCookie + "="}, authz.BadSession},
		{[]string{authz.SessionCookie + "=canary"}, authz.BadSession},
		{[]string{authz.SessionCookie + `="` + w.session + `"`}, authz.BadSession},
		{[]string{ours + "0"}, authz.BadSession},
		{[]string{authz.SessionCookie + "=" + w.ada}, authz.BadSession}, // a key opens no session route
		{[]string{authz.SessionCookie + "=ks_" + strings.Repeat("0f", 24)}, authz.BadSession},

		{[]string{authz.SessionCookie + "=" + w.Sessions.Format.Generate().Reveal()}, authz.UnknownSession},
	} {
		w.expect(t, fmt.Sprintf("%q", row.cookies), cookies(row.cookies...), row.want)
	}

	w.Sessions.InsecureCookies = true
	w.expect(t, "insecure", cookies(authz.InsecureSessionCookie+"="+w.session), authz.Allowed)
	w.expect(t, "insecure, with the other name", cookies(ours), authz.MissingSession)
}

// The upstream never sees the session, on any kind of route, and the other cookies stay unchanged.
// The page sees the session.
func TestTheSessionIsTakenOutOfTheCookies(t *testing.T) {
	w := newWorld(t, append(defaultRules(t), authz.Rule{Path: "/open", Kind: authz.KindPublic})...)
	ours := authz.SessionCookie + "=" + w.session
	for _, row := range []struct {
		cookies []string
		want    string
		removed bool
	}{
		{[]string{ours}, "", true},
		{[]string{ours + ";"}, "", true},
		{[]string{"; " + ours, " "}, "", true},
		{[]string{"a=1; " + ours + "; b=2"}, "a=1; b=2", false},
		{[]string{"a=1;" + ours + ";b=2"}, "a=1;b=2", false},
		{[]string{ours + "; a=\"x y\"; a=1; A=1"}, "a=\"x y\"; a=1; A=1", false},
		{[]string{"a=1", ours, "b=2; c"}, "a=1; b=2; c", false},
		{[]string{"a=b=c=; " + ours}, "a=b=c=", false},
		{[]string{ours + "; a=1,2"}, "a=1,2", false},
		{[]string{"a=1," + ours + "; " + ours}, "a=1", false}, // joined by a proxy that used commas
		{[]string{ours + "; a=1, " + ours + ",b=2"}, "a=1,b=2", false},
	} {
		r := cookies(row.cookies...)
		r.APIKey = []string{w.ada}
		for _, path := range []string{"/open", "/api/v1/brands"} {
			r.Path = path
			d := w.expect(t, fmt.Sprintf("%q", row.cookies), r, authz.Allowed)
			if d.Rewrite.Cookie != row.want || d.Rewrite.RemoveCookie != row.removed {
				t.Errorf("%q on %s: %q, removed %v; want %q, %v", row.cookies, path, d.Rewrite.Cookie, d.Rewrite.RemoveCookie, row.want, row.removed)
			}
		}
		r.Path = "/api/-/login"
		if d := w.expect(t, "the page", r, authz.Allowed); d.Rewrite.Cookie != "" || d.Rewrite.RemoveCookie {
			t.Errorf("%q: the page does not see its cookies", row.cookies)
		}
	}
	d := w.expect(t, "a session route", cookies("a=1; "+ours), authz.Allowed)
	if d.Rewrite.Cookie != "a=1" || d.Rewrite.RemoveCookie {
		t.Errorf("a session route: %+v", d.Rewrite)
	}
}

// Cookies without our session stay unchanged, even if its name occurs in them.
func TestOtherCookiesAreNotTouched(t *testing.T) {
	w := newWorld(t, everything)
	for _, others := range [][]string{
		nil, {""}, {"a=1;b=2"}, {"a=1", "b=2"}, {"  a=1;;  b "}, {"a=" + authz.SessionCookie + ";b=1"}, {"x" + authz.SessionCookie + "=1;b=1"},
		{authz.InsecureSessionCookie + "=1;b=1"}, {"a=1", "b=" + authz.SessionCookie},
	} {
		r := cookies(others...)
		if d := w.expect(t, fmt.Sprintf("%q", others), r, authz.Allowed); d.Rewrite != (authz.Rewrite{}) {
			t.Errorf("%q: %+v", others, d.Rewrite)
		}
	}
}

// With any cookies, the upstream sees all of them but ours, in order. The oracle knows the input.
func TestNoSessionReachesTheUpstream(t *testing.T) {
	w := newWorld(t, everything)
	rapid.Check(t, func(t *rapid.T) {
		var headers, others []string
		some := false
		for range rapid.IntRange(0, 3).Draw(t, "headers") {
			header := ""
			for range rapid.IntRange(0, 4).Draw(t, "items") {
				item := rapid.SampledFrom([]string{
					"a=1", "b", "=", "a==", "é=\xff", "c=\"x y\"", "key=" + authz.SessionCookie, "x" + authz.SessionCookie + "=1", authz.SessionCookie + "x",
				}).Draw(t, "other")
				if rapid.Bool().Draw(t, "is ours") {
					some = true
					item = authz.SessionCookie + rapid.SampledFrom([]string{"", "=", "=" + w.session, " = x", "=a=b", "=\"x\"", "\t"}).Draw(t, "ours")
				} else {
					others = append(others, item)
				}
				header += rapid.SampledFrom([]string{"", " ", "\t"}).Draw(t, "blank") + item +
					rapid.SampledFrom([]string{";", "; ", ",", " ;", ";;"}).Draw(t, "separator")
			}
			headers = append(headers, header)
		}
		d := w.expect(t, fmt.Sprintf("%q", headers), cookies(headers...), authz.Allowed)
		if !some {
			if d.Rewrite != (authz.Rewrite{}) {
				t.Errorf("%q: %+v", headers, d.Rewrite)
			}
			return
		}
		var seen []string
		for item := range strings.FieldsFuncSeq(d.Rewrite.Cookie, func(c rune) bool { return c == ';' || c == ',' }) {
			if item = strings.Trim(item, " \t"); item != "" {
				seen = append(seen, item)
			}
		}
		if !slices.Equal(seen, others) || (d.Rewrite.Cookie == "") != d.Rewrite.RemoveCookie {
			t.Errorf("%q: the upstream sees %q, removed %v; want %q", headers, d.Rewrite.Cookie, d.Rewrite.RemoveCookie, others)
		}
	})
}
