package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// trialHost is a name of this machine that browsers do not trust like localhost: they treat plain
// HTTP from it like plain HTTP from another machine.
const trialHost = "keyporter.test"

// onTrialHost returns an address with trialHost as its host.
func onTrialHost(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + net.JoinHostPort(trialHost, port)
}

// Over plain HTTP from another machine the page works with --insecure-cookies; without, it explains
// the failure before a link is spent. If two windows show the confirmation, one replaces the key,
// and the other reports that it did nothing. Names of 128 letters, and texts that clients choose,
// neither widen the page nor change its direction, in any state.
func TestThePageByPlainHTTP(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	b := openTab(t, chromedp.Flag("host-resolver-rules", "MAP "+trialHost+" 127.0.0.1"))
	database := databases["SQLite"](t)
	flags, _ := sealed(t, database)
	s := start(t, stackConfig{database: database, flags: flags})
	name := strings.Repeat("W", 128)
	key := s.user(name, strings.Repeat("M", 128))
	agent := "Ürün İzleyici \u202e\u009b[2J" + strings.Repeat("W", 180)
	s.send(request{target: "/api/v1/brands/" + strings.Repeat("W", 200), header: []string{"X-API-Key: " + key, "User-Agent: " + agent}})

	link := s.link(name)
	secure := s.serve(append(flags, "--insecure-cookies=false")...)
	b.do(chromedp.Navigate(onTrialHost(t, secure.page) + link.RequestURI()))
	if eval[bool](b, `isSecureContext`) {
		t.Fatal("the browser trusts " + trialHost)
	}
	b.click("login")
	b.until("it is said why nobody is logged in", `document.getElementById("notice")?.textContent.includes("--insecure-cookies")`)
	b.narrow("login refused")
	if !strings.Contains(secure.process.Output(), "a login by plain HTTP is refused") {
		t.Error("the operator is not told")
	}

	front := onTrialHost(t, s.front)
	b.do(chromedp.Navigate(front + link.RequestURI()))
	b.narrow("login")
	b.click("login")
	b.until("the page is open", `location.pathname == "/api" && document.getElementById("key") != null`)
	partstest.EventuallyNil(t, "the request is on the page", func() error {
		b.do(chromedp.Reload())
		if text := b.text("requests"); !strings.Contains(text, "WWWW") {
			return errors.New(text)
		}
		return nil
	})
	b.narrow("overview")
	b.click("reveal")
	b.until("the key is shown", fmt.Sprintf(`document.getElementById("key").textContent == %q`, key))

	b.do(chromedp.Navigate(front + "/api/-/regenerate"))
	last := eval[string](b, `document.querySelector("#breaks p:nth-child(2)").textContent`)
	if !strings.Contains(last, "by Ürün İzleyici ") || strings.ContainsFunc(last, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf) }) {
		t.Errorf("who has used the key: %q", last)
	}
	b.narrow("confirm")
	other := b.another()
	other.do(chromedp.Navigate(front + "/api/-/regenerate"))
	b.click("confirm")
	b.until("there is a new key", `document.getElementById("new-key") != null`)
	fresh := b.text("new-key")
	b.narrow("regenerated")
	other.click("confirm")
	other.until("it is said that the key was replaced", `document.getElementById("notice")?.textContent.includes("was replaced on")`)
	other.narrow("replaced")
	if a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + fresh, "User-Agent: " + agent}}); a.status != 200 {
		t.Errorf("the key that the first window has shown: %d", a.status)
	}
	s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "User-Agent: " + agent}})
	partstest.EventuallyNil(t, "the page shows the use of the old key", func() error {
		b.do(chromedp.Navigate(front + "/api"))
		if !strings.Contains(b.text("old-key-tries"), "WWWW") {
			return errors.New("not yet")
		}
		return nil
	})
	b.narrow("old key")
	if _, err := chromedp.Call(b.ctx, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: network.Headers{"Accept-Language": "tr"}}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api", "/api/-/regenerate", "/api/-/login", "/api?before=!"} {
		b.do(chromedp.Navigate(front + path))
		if eval[string](b, `document.documentElement.lang`) != "tr" {
			t.Errorf("%s is not in Turkish", path)
		}
		b.narrow("Turkish " + path)
	}
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), key, fresh, link.Query().Get("token"))
}

// another opens another window of the same browser.
func (b *tab) another() *tab {
	ctx, cancel := chromedp.NewContext(b.ctx)
	b.t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	b.t.Cleanup(cancel)
	return &tab{t: b.t, ctx: ctx, axe: b.axe}
}

// narrow checks that the page fits into narrow windows.
func (b *tab) narrow(state string) {
	b.t.Helper()
	for _, width := range []int64{500, 360} {
		b.do(chromedp.EmulateViewport(width, 800))
		if wide := eval[int64](b, `document.documentElement.scrollWidth`); wide > width {
			widest := eval[string](b, `[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.tagName + "#" + e.id + "." + e.className).join(" ")`)
			b.t.Errorf("%s: %d pixels wide, of %d: %s", state, wide, width, widest)
		}
	}
	b.do(chromedp.EmulateViewport(1100, 900))
}
