package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// screenshots makes the tests of the page write their screenshots into portal/screenshots.
var screenshots = take("KEYPORTER_SCREENSHOTS") != ""

// tab is a real browser with one page.
type tab struct {
	t   *testing.T
	ctx context.Context
	axe string // source of axe
}

// openTab starts a Chromium that ends with the test.
func openTab(t *testing.T, options ...chromedp.ExecAllocatorOption) *tab {
	t.Helper()
	chromium, err := parts.FindChromium()
	axe, missingAxe := parts.FindAxe()
	if err := errors.Join(err, missingAxe); err != nil {
		if missing := (*parts.MissingError)(nil); errors.As(err, &missing) && os.Getenv("CI") != "true" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	source, err := os.ReadFile(axe)
	if err != nil {
		t.Fatal(err)
	}
	options = append(append([]chromedp.ExecAllocatorOption{}, chromedp.DefaultExecAllocatorOptions[:]...), append(options,
		chromedp.ExecPath(chromium.Path), chromedp.Env(chromium.Env...), chromedp.NoSandbox,
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1100, 900))...)
	allocated, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocated)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute) // only ends a hanging run
	t.Cleanup(cancel)
	return &tab{t: t, ctx: ctx, axe: string(source)}
}

// do runs actions in the browser.
func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// eval runs a script in the page and returns its value.
func eval[T any](b *tab, script string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", script, err)
	}
	return value
}

// text returns the text of the element with an id, or "" if there is none.
func (b *tab) text(id string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf(`document.getElementById(%q)?.textContent ?? ""`, id))
}

// until waits for the effect of a click.
func (b *tab) until(what, condition string) {
	b.t.Helper()
	partstest.EventuallyNil(b.t, what, func() error {
		met, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](condition))
		if err == nil && !met {
			err = errors.New(condition)
		}
		return err // also while a page is being replaced
	})
}

// click clicks the element with an id.
func (b *tab) click(id string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS("#" + id)))
}

// looks are the views in which every state of the page is checked.
var looks = []struct {
	name, scheme string
	width        int64
}{{"light", "light", 1100}, {"dark", "dark", 1100}, {"phone", "light", 360}}

// see checks the page in all views, for accessibility and for clipped content, and takes
// screenshots.
func (b *tab) see(state string) {
	b.t.Helper()
	for _, look := range looks {
		if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}}}); err != nil {
			b.t.Fatal(err)
		}
		b.do(chromedp.EmulateViewport(look.width, 800))
		if wide := eval[int64](b, `document.documentElement.scrollWidth`); wide > look.width {
			b.t.Errorf("%s, %s: %d pixels wide, of %d", state, look.name, wide, look.width)
		}
		b.usable(state + ", " + look.name)
		b.picture(state+"-"+look.name, look.width)
	}
	b.do(chromedp.EmulateViewport(1100, 900))
}

// usable makes axe look for accessibility problems.
func (b *tab) usable(state string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void](b.axe))
	found := eval[string](b, `axe.run().then(r => JSON.stringify(r.violations.map(v => ({id: v.id, help: v.help, nodes: v.nodes.map(n => n.html + " " + (n.failureSummary ?? ""))}))))`)
	var violations []struct {
		ID, Help string
		Nodes    []string
	}
	if err := json.Unmarshal([]byte(found), &violations); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range violations {
		b.t.Errorf("%s: %s: %s\n%s", state, v.ID, v.Help, strings.Join(v.Nodes, "\n"))
	}
}

// picture writes a screenshot into portal/screenshots, if requested.
func (b *tab) picture(name string, width int64) {
	b.t.Helper()
	if !screenshots {
		return
	}
	b.do(chromedp.EmulateViewport(width, eval[int64](b, `document.documentElement.scrollHeight`)))
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("../../portal/screenshots", name+".png"), picture, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// allowClipboard lets a script read the clipboard.
func (b *tab) allowClipboard(origin string) {
	b.t.Helper()
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		if _, err := chromedp.CallBrowser(b.ctx, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted, Origin: origin,
		}); err != nil {
			b.t.Fatal(err)
		}
	}
}

// sealed creates a database with a seal key before anything is served from it.
func sealed(t *testing.T, database string) (flags []string, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "seal.key")
	s := &stack{t: t, program: keyporter(t), database: database}
	s.run("migrate")
	s.run("seal", "init", file)
	return []string{"--seal-key-file", file}, file
}

// A user walks through the page in a real browser, from a login link to the logout. The key is on
// no page until the user reveals it; after a regeneration the new key works, the old one is revoked
// at once, and the page shows that someone still tries it. Every state is accessible, in light and
// dark mode and on a phone.
func TestAUserWalksThroughThePage(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	b := openTab(t)
	database := databases["SQLite"](t)
	flags, _ := sealed(t, database)
	s := start(t, stackConfig{database: database, flags: flags})
	key := s.user("ann", "pro", "--credits", "20000", "--rate-limit", "60")
	front := "http://" + s.front
	b.allowClipboard(front)
	for i, path := range []string{"/api/v1/brands?page=2", "/api/v1/store-tracker/stores/7", "/api/v1/adlibrary/search?q=<b>shoes</b>", "/api/v1/brands/42"} {
		answer := []string{"", "", "", "500"}[i]
		s.send(request{target: path, header: []string{"X-API-Key: " + key, "User-Agent: shop-sync/2.1", "X-Test-Answer: " + answer}})
	}
	link := s.link("ann")

	b.do(chromedp.Navigate(front + link.RequestURI()))
	b.see("login")
	b.click("login")
	b.until("the page is open", `location.pathname == "/api" && document.getElementById("key") != null`)
	partstest.EventuallyNil(t, "the requests are on the page", func() error {
		b.do(chromedp.Reload())
		if text := b.text("requests"); !strings.Contains(text, "/api/v1/brands/42") || !strings.Contains(text, "refunded") {
			return errors.New(text)
		}
		return nil
	})
	if html := eval[string](b, `document.documentElement.outerHTML`); strings.Contains(html, key) || strings.Contains(html, "page=2") {
		t.Error("the page holds the key before anybody has asked for it, or a query")
	}
	b.see("overview")

	b.click("reveal")
	b.until("the key is shown", `document.getElementById("key").textContent.startsWith("wh_") && !document.getElementById("key").textContent.includes("•")`)
	if shown := b.text("key"); shown != key {
		t.Error("what is shown is not the key")
	}
	b.see("revealed")
	b.click("reveal")
	if hidden := b.text("key"); strings.Contains(hidden, key) {
		t.Error("the key was not hidden again")
	}
	b.click("copy")
	b.until("it was copied", `document.getElementById("status").textContent.includes("Copied")`)
	if copied := eval[string](b, `navigator.clipboard.readText()`); copied != key {
		t.Error("what is on the clipboard is not the key")
	}
	if strings.Contains(b.text("key"), key) {
		t.Error("copying has shown the key")
	}

	b.click("regenerate")
	b.until("it is asked whether that is meant", `document.getElementById("confirm") != null`)
	if breaks := b.text("breaks"); !strings.Contains(breaks, "last hour: 4") || !strings.Contains(breaks, "shop-sync/2.1") || !strings.Contains(breaks, "127.0.0.1") {
		t.Errorf("what will break: %s", breaks)
	}
	b.see("confirm")
	b.click("confirm")
	b.until("there is a new key", `document.getElementById("new-key") != null`)
	fresh := b.text("new-key")
	for value, want := range map[string]int{key: 401, fresh: 200} {
		if a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + value, "User-Agent: forgotten <b>job</b>"}}); a.status != want {
			t.Errorf("a key after it was replaced: %d, want %d", a.status, want)
		}
	}
	if revoked := b.text("revoked"); !strings.Contains(revoked, "1 of 1") {
		t.Errorf("where the old key is revoked: %s", revoked)
	}
	b.see("regenerated")
	b.click("copy-new")
	b.until("it was copied", `document.getElementById("status").textContent.includes("Copied")`)
	if copied := eval[string](b, `navigator.clipboard.readText()`); copied != fresh {
		t.Error("what is on the clipboard is not the new key")
	}

	for range 2 {
		s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key, "User-Agent: forgotten <b>job</b>"}})
	}
	partstest.EventuallyNil(t, "the tries of the old key are told", func() error {
		b.do(chromedp.Navigate(front + "/api"))
		if tries := b.text("old-key-tries"); !strings.Contains(tries, "replaced it: 3") || !strings.Contains(tries, "forgotten <b>job</b>") {
			return errors.New(tries)
		}
		return nil
	})
	b.see("old-key")
	b.click("logout")
	b.until("nobody is logged in", `location.pathname == "/api/-/login" && document.readyState == "complete"`)
	b.see("logged-out")
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), key, fresh, link.Query().Get("token"))
}

// Everything but copying works without JavaScript: a user logs in, reveals the key, replaces it and
// logs out.
func TestThePageWorksWithoutJavaScript(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	b := openTab(t)
	database := databases["SQLite"](t)
	flags, _ := sealed(t, database)
	s := start(t, stackConfig{database: database, flags: flags})
	key := s.user("ann", "pro")
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Navigate("http://"+s.front+s.link("ann").RequestURI()), chromedp.Click(chromedp.CSS("#login")),
		chromedp.WaitVisible(chromedp.CSS("#reveal")), chromedp.Click(chromedp.CSS("#reveal")))
	partstest.EventuallyNil(t, "the key is shown", func() error { return b.shows("#key", key) })
	b.do(chromedp.Click(chromedp.CSS("#regenerate")), chromedp.WaitVisible(chromedp.CSS("#confirm")), chromedp.Click(chromedp.CSS("#confirm")),
		chromedp.WaitVisible(chromedp.CSS("#new-key")))
	fresh, err := chromedp.Run(b.ctx, chromedp.Text(chromedp.CSS("#new-key")))
	if a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + fresh}}); err != nil || a.status != 200 {
		t.Errorf("the new key: %d, %v", a.status, err)
	}
	if a := s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + key}}); a.status != 401 {
		t.Errorf("the old key: %d", a.status)
	}
	// The form is sent again, and makes no other key.
	b.do(chromedp.Reload(), chromedp.WaitVisible(chromedp.CSS("#new-key")))
	if err := b.shows("#new-key", fresh); err != nil {
		t.Error(err)
	}
	b.do(chromedp.Click(chromedp.CSS("#logout")), chromedp.WaitVisible(chromedp.CSS("#notice")))
}

// shows returns an error unless an element has the wanted text.
func (b *tab) shows(selector, want string) error {
	got, err := chromedp.Run(b.ctx, chromedp.Text(chromedp.CSS(selector)))
	if err == nil && got != want {
		err = fmt.Errorf("%s is not what it should be", selector)
	}
	return err
}

// The keyboard alone suffices, in a sensible order, with a visible focus.
func TestThePageWorksByKeyboard(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	b := openTab(t)
	database := databases["SQLite"](t)
	flags, _ := sealed(t, database)
	s := start(t, stackConfig{database: database, flags: flags})
	key := s.user("ann", "pro")
	b.do(chromedp.Navigate("http://" + s.front + s.link("ann").RequestURI()))
	b.tabTo("login")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until("the page is open", `location.pathname == "/api" && document.getElementById("key") != null`)
	for _, id := range []string{"logout", "key", "reveal", "copy", "regenerate"} {
		b.tabTo(id)
		if !eval[bool](b, `getComputedStyle(document.activeElement).outlineStyle != "none"`) {
			t.Errorf("%s has the focus, and nothing shows it", id)
		}
		if id == "reveal" {
			b.do(chromedp.KeyEvent(kb.Enter))
			b.until("the key is shown", fmt.Sprintf(`document.getElementById("key").textContent == %q`, key))
		}
	}
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until("it is asked whether that is meant", `document.getElementById("confirm") != null`)
	b.tabTo("confirm")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until("there is a new key", `document.getElementById("new-key") != null`)
}

// tabTo presses Tab until an element has the focus, at most 30 times.
func (b *tab) tabTo(id string) {
	b.t.Helper()
	for range 30 {
		if eval[string](b, `document.activeElement?.id ?? ""`) == id {
			return
		}
		b.do(chromedp.KeyEvent(kb.Tab))
	}
	b.t.Fatalf("Tab does not lead to %s", id)
}

// The page uses the language of the browser, and explains every special state of an account. Each
// state is accessible.
func TestStatesOfThePage(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	b := openTab(t, chromedp.Flag("accept-lang", "tr-TR,tr"))
	s := start(t, stackConfig{})
	s.user("ann", "pro")
	s.run("plan", "set", "team", "--credits", "5", "--pool", "account")
	s.run("account", "set", "acme", "--plan", "team", "--kind", "organization")
	s.run("user", "set", "bob", "--account", "acme")
	bobs := s.key("create", "bob")
	for range 6 {
		s.send(request{target: "/api/v1/brands", header: []string{"X-API-Key: " + bobs}})
	}
	s.run("plan", "set", "none", "--api-access=false")
	s.run("account", "set", "free", "--plan", "none")
	s.run("user", "set", "eve", "--account", "free")
	for _, row := range []struct{ user, state, want string }{
		{"ann", "turkish", "API anahtarınız"},
		{"bob", "exhausted", "Bu ayki krediler bitti"},
		{"eve", "no-access", "Planınız API erişimi içermiyor"},
	} {
		b.do(chromedp.Navigate("http://" + s.front + s.link(row.user).RequestURI()))
		b.click("login")
		b.until("the page is open", `location.pathname == "/api" && document.readyState == "complete"`)
		if all := eval[string](b, `document.body.textContent`); !strings.Contains(all, row.want) || eval[string](b, `document.documentElement.lang`) != "tr" {
			t.Errorf("%s: %q is not on the page", row.state, row.want)
		}
		b.see(row.state)
	}
}
