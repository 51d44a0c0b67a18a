package events_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.uber.org/goleak"

	"github.com/keyporter/keyporter/events"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store/outbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(partstest.M{M: m}) }

const (
	oldSecret = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk"
	newSecret = "whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3"
)

// fake is an outbox in memory, of one replica. It keeps no order among events; the real one does.
type fake struct {
	mu      sync.Mutex
	fence   int64
	lost    bool                  // another replica has taken over
	events  map[string]*fakeEvent // id → event
	attempt []string              // "id state" of each outcome
}

type fakeEvent struct {
	outbox.Event
	first, next time.Time
}

func newFake(all ...outbox.Event) *fake {
	f := &fake{events: map[string]*fakeEvent{}}
	for _, e := range all {
		e.Data, e.Type, e.State, e.At = `{"user": "ada"}`, "key.created", outbox.Pending, time.Date(2026, 3, 4, 5, 6, 7, 8e6, time.UTC)
		f.events[e.ID] = &fakeEvent{Event: e}
	}
	return f
}

func (f *fake) Acquire(context.Context, string, time.Duration) (int64, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fence, !f.lost, nil
}

func (f *fake) Release(context.Context, int64) error                         { return nil }
func (f *fake) SetEndpoints(context.Context, int64, []outbox.Endpoint) error { return nil }
func (f *fake) AddRevokedUses(context.Context, int64) error                  { return nil }
func (f *fake) Status(context.Context) ([]outbox.Status, error)              { return nil, nil }

func (f *fake) Ready(_ context.Context, endpoint string, n int) (ready []outbox.Event, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.Endpoint == endpoint && e.State == outbox.Pending && !time.Now().Before(e.next) && len(ready) < n {
			one := e.Event
			if !e.first.IsZero() {
				one.Trying = time.Since(e.first)
			}
			ready = append(ready, one)
		}
	}
	return ready, nil
}

func (f *fake) Record(_ context.Context, fence int64, outcomes []outbox.Outcome) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, out := range outcomes {
		e := f.events[out.Event.ID]
		if e.first.IsZero() {
			e.first = time.Now()
		}
		e.Attempts++
		e.State, e.next, e.Problem = out.State, time.Now().Add(out.Wait), out.Problem
		f.attempt = append(f.attempt, out.Event.ID+" "+string(out.State))
	}
	return nil
}

func (f *fake) states() map[string]outbox.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]outbox.State{}
	for id, e := range f.events {
		all[id] = e.State
	}
	return all
}

func endpoint(t *testing.T, name, url string, secrets ...string) events.Endpoint {
	t.Helper()
	parsed, err := events.ParseSecrets(strings.Join(append(secrets, oldSecret), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return events.Endpoint{Name: name, URL: url, Types: outbox.Types(), Secrets: parsed}
}

func deliverer(t *testing.T, o events.Outbox, log io.Writer, allow ...string) *events.Deliverer {
	t.Helper()
	var prefixes []netip.Prefix
	for _, text := range allow {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	d, err := events.New(events.Config{Outbox: o, Holder: "a", Allow: prefixes, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// run runs a Deliverer until the returned function is called.
func run(d *events.Deliverer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { d.Run(ctx) })
	return func() { cancel(); running.Wait() }
}

// eventually waits for a condition; the test uses real connections.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for began := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("after 20 s still not: %s", what)
		}
	}
}

// received is what a receiver got.
type received struct {
	header http.Header
	body   []byte
}

// receiveOne delivers one event to a receiver, signed by two secrets.
func receiveOne(t *testing.T) received {
	t.Helper()
	got := make(chan received, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- received{r.Header, body}
	}))
	defer server.Close()
	d := deliverer(t, newFake(outbox.Event{ID: "evt_1", Endpoint: "billing", OutOfOrder: true}), io.Discard, "127.0.0.0/8")
	d.Set([]events.Endpoint{endpoint(t, "billing", server.URL+"/hook", newSecret)})
	defer run(d)()
	return <-got
}

// The official library for Python accepts it as well.
func TestTheOfficialLibraryForPythonVerifiesEvents(t *testing.T) {
	t.Parallel()
	python, r := partstest.PythonWebhooks(t), receiveOne(t)
	for _, secret := range []string{oldSecret, newSecret} {
		verify := exec.CommandContext(t.Context(), python, "testdata/verify.py", secret,
			r.header.Get("webhook-id"), r.header.Get("webhook-timestamp"), r.header.Get("webhook-signature"))
		verify.Stdin = bytes.NewReader(r.body)
		if out, err := verify.CombinedOutput(); err != nil || string(out) != "key.created\n" {
			t.Errorf("%s: %q, %v", secret, out, err)
		}
	}
}

// The official library of Standard Webhooks accepts what a receiver gets, by each of two secrets
// while they are rotated, and nothing that differs in a byte.
func TestTheOfficialLibraryVerifiesEvents(t *testing.T) {
	t.Parallel()
	r := receiveOne(t)
	for _, secret := range []string{oldSecret, newSecret} {
		hook, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := hook.Verify(r.body, r.header); err != nil {
			t.Errorf("%s: %v", secret, err)
		}
		if err := hook.Verify(append(r.body, ' '), r.header); err == nil {
			t.Error("a changed body is accepted")
		}
	}
	const want = `{"type":"key.created","timestamp":"2026-03-04T05:06:07.008Z","out_of_order":true,"data":{"user":"ada"}}`
	if string(r.body) != want || r.header.Get("webhook-id") != "evt_1" || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("received %s with %v, want %s", r.body, r.header, want)
	}
}

// Failures are told apart: an answer outside of 2xx, a redirect, which is not followed, 410, a
// connection that cannot be made, and an address that must not be dialled. No text holds the URL.
func TestWhatBecomesOfAttempts(t *testing.T) {
	var followed bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved/secret-path":
			http.Redirect(w, r, "/followed", http.StatusTemporaryRedirect)
		case "/followed":
			followed = true
		case "/gone/secret-path":
			w.WriteHeader(http.StatusGone)
		case "/broken/secret-path":
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, strings.Repeat("x", 1<<20))
		}
	}))
	defer server.Close()
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1") // would hang
	t.Setenv("HTTPS_PROXY", "http://192.0.2.1:1")
	for _, test := range []struct{ name, url, allow, problem string }{
		{"taken", server.URL + "/taken/secret-path", "127.0.0.1/32", ""},
		{"moved", server.URL + "/moved/secret-path", "127.0.0.1/32", "answered 307 Temporary Redirect"},
		{"gone", server.URL + "/gone/secret-path", "127.0.0.1/32", "answered 410 Gone"},
		{"broken", server.URL + "/broken/secret-path", "127.0.0.1/32", "answered 500 Internal Server Error"},
		{"private", server.URL + "/taken/secret-path", "10.0.0.0/8", "--webhook-allow"},
		{"by name", strings.Replace(server.URL, "127.0.0.1", "localhost", 1) + "/taken/secret-path", "10.0.0.0/8", "--webhook-allow"},
		{"closed", "http://127.0.0.1:1/secret-path", "127.0.0.1/32", "refused"},
	} {
		f, log := newFake(outbox.Event{ID: "evt_1", Endpoint: "billing"}), &bytes.Buffer{}
		d := deliverer(t, f, log, test.allow)
		d.Set([]events.Endpoint{endpoint(t, "billing", test.url)})
		stop := run(d)
		eventually(t, "an attempt is recorded", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.attempt) > 0 })
		stop()
		e := f.events["evt_1"]
		if (test.problem == "") != (e.State == outbox.Delivered) || !strings.Contains(e.Problem, test.problem) {
			t.Errorf("%s: %s, problem %q, want %q", test.name, e.State, e.Problem, test.problem)
		}
		for _, secret := range []string{"secret-path", strings.TrimPrefix(oldSecret, "whsec_")} {
			if strings.Contains(log.String()+e.Problem, secret) {
				t.Errorf("%s: a text holds %s: %s%s", test.name, secret, log, e.Problem)
			}
		}
		if gone := strings.Contains(log.String(), "410 Gone and is disabled"); gone != (test.name == "gone") {
			t.Errorf("%s: the log says that the endpoint is disabled: %v", test.name, gone)
		}
	}
	if followed {
		t.Error("a redirect was followed")
	}
}

// transport answers by the host of the URL: up, down, or hanging until the context ends.
type transport struct {
	mu    sync.Mutex
	calls map[string]int
}

func (tr *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	tr.mu.Lock()
	tr.calls[r.URL.Host]++
	tr.mu.Unlock()
	answer := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}
	switch r.URL.Host {
	case "hanging":
		<-r.Context().Done()
		return nil, r.Context().Err()
	case "down":
		answer.StatusCode = http.StatusServiceUnavailable
	}
	return answer, nil
}

// An event is tried for a day, less and less often, and then put aside; a receiver that hangs is
// cut off, and delays no other one.
func TestTheScheduleOfADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(outbox.Event{ID: "evt_1", Endpoint: "down"}, outbox.Event{ID: "evt_2", Endpoint: "hanging"})
		for i := range 200 {
			f.events[fmt.Sprint("evt_up", i)] = &fakeEvent{Event: outbox.Event{ID: fmt.Sprint("evt_up", i), Endpoint: "up", Data: `{}`, State: outbox.Pending}}
		}
		log, tr := &bytes.Buffer{}, &transport{calls: map[string]int{}}
		d := deliverer(t, f, log)
		d.Over(tr)
		var all []events.Endpoint
		for _, name := range []string{"up", "down", "hanging"} {
			all = append(all, endpoint(t, name, "http://"+name+"/"))
		}
		d.Set(all)
		stop := run(d)
		time.Sleep(time.Second)
		for id, state := range f.states() {
			if strings.HasPrefix(id, "evt_up") && state != outbox.Delivered {
				t.Errorf("after a second %s is %s", id, state)
			}
		}
		time.Sleep(23 * time.Hour)
		if states := f.states(); states["evt_1"] != outbox.Pending || states["evt_2"] != outbox.Pending {
			t.Errorf("after 23 hours: %s, %s", states["evt_1"], states["evt_2"])
		}
		time.Sleep(3 * time.Hour)
		if states := f.states(); states["evt_1"] != outbox.Aside || states["evt_2"] != outbox.Aside {
			t.Errorf("after 26 hours: %s, %s", states["evt_1"], states["evt_2"])
		}
		stop()
		for _, name := range []string{"down", "hanging"} {
			if n := tr.calls[name]; n < 25 || n > 45 {
				t.Errorf("%d attempts at %s in a day", n, name)
			}
		}
		if got := f.events["evt_2"].Problem; got != "no answer within 15s" {
			t.Errorf("the problem of a receiver that hangs: %q", got)
		}
		if n := strings.Count(log.String(), "does not take events"); n != 2 {
			t.Errorf("the log says %d times that an endpoint takes no events, want once for each of two:\n%s", n, log)
		}
	})
}

// A replica that has lost the lease stops, also in the middle of an attempt, and records nothing
// about it.
func TestALostLeaseStopsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, tr := newFake(outbox.Event{ID: "evt_1", Endpoint: "hanging"}), &transport{calls: map[string]int{}}
		d := deliverer(t, f, io.Discard)
		d.Over(tr)
		d.Set([]events.Endpoint{endpoint(t, "hanging", "http://hanging/")})
		stop := run(d)
		time.Sleep(time.Second)
		f.mu.Lock()
		f.lost = true
		f.mu.Unlock()
		time.Sleep(time.Minute)
		stop()
		if tr.calls["hanging"] != 1 || len(f.attempt) > 0 {
			t.Errorf("%d attempts, recorded %v", tr.calls["hanging"], f.attempt)
		}
	})
}

// Waits grow from 5 s to an hour, with a fifth of jitter, and respect what a receiver asks for.
func TestWaits(t *testing.T) {
	for _, test := range []struct {
		failed      int
		asked       time.Duration
		least, most time.Duration
	}{
		{1, 0, 4 * time.Second, 6 * time.Second},
		{2, 0, 12 * time.Second, 18 * time.Second},
		{5, 0, 324 * time.Second, 486 * time.Second},
		{7, 0, 48 * time.Minute, 72 * time.Minute},
		{1000, 0, 48 * time.Minute, 72 * time.Minute},
		{1, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute},
		{1, 100 * time.Hour, time.Hour, time.Hour},
	} {
		for range 100 {
			if got := events.NextWait(test.failed, test.asked); got < test.least || got > test.most {
				t.Errorf("after %d failures, asked for %v: %v, want %v to %v", test.failed, test.asked, got, test.least, test.most)
			}
		}
	}
}

// Only public addresses are dialled, in whatever form they are written, and those that an operator
// has allowed.
func TestAddresses(t *testing.T) {
	for _, test := range []struct {
		address, allowed string
		want             bool
	}{
		{"93.184.216.34", "", true}, {"2606:2800:220:1::1", "", true},
		{"127.0.0.1", "", false}, {"::1", "", false}, {"0.0.0.0", "", false}, {"::", "", false},
		{"10.1.2.3", "", false}, {"172.16.0.1", "", false}, {"192.168.1.1", "", false}, {"100.64.0.1", "", false},
		{"169.254.169.254", "", false}, {"fe80::1", "", false}, {"fe80::1%eth0", "", false}, {"fd00::1", "", false}, {"fec0::1", "", false},
		{"::ffff:127.0.0.1", "", false}, {"::127.0.0.1", "", false}, {"64:ff9b::7f00:1", "", false}, {"2002:7f00:1::1", "", false}, {"2001:0:1::1", "", false},
		{"224.0.0.1", "", false}, {"ff02::1", "", false}, {"255.255.255.255", "", false}, {"198.18.0.1", "", false},
		{"10.1.2.3", "10.1.0.0/16", true}, {"10.2.2.3", "10.1.0.0/16", false}, {"::ffff:10.1.2.3", "10.1.0.0/16", true}, {"::1", "::1/128", true},
	} {
		var allowed []netip.Prefix
		if test.allowed != "" {
			allowed = append(allowed, netip.MustParsePrefix(test.allowed))
		}
		if got := events.MayDial(netip.MustParseAddr(test.address), allowed); got != test.want {
			t.Errorf("%s with %q: %v", test.address, test.allowed, got)
		}
	}
}

// A file of secrets says what is wrong in which line, and never shows a secret.
func TestSecrets(t *testing.T) {
	for _, test := range []struct {
		text, problem string
		n             int
	}{
		{oldSecret, "", 1}, {"# new\n" + newSecret + "\r\n\n" + oldSecret + "\n", "", 2},
		{"", "no secret", 0}, {"\n# only this\n", "no secret", 0},
		{oldSecret + "\n" + newSecret + "\n" + oldSecret, "more than 2", 0},
		{"\nsecret-b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk", "line 2", 0}, {"whsec_b2xk", "line 1: want whsec_ and 24 to 64 bytes", 0}, {"whsec_%%%", "line 1", 0},
	} {
		got, err := events.ParseSecrets(test.text)
		if test.problem == "" && err != nil || test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)) || len(got) != test.n {
			t.Errorf("%q: %d secrets, %v", test.text, len(got), err)
		}
		if err != nil && strings.Contains(err.Error(), "b2xk") {
			t.Errorf("the error shows a secret: %v", err)
		}
		if text, err := json.Marshal(got); err != nil || strings.Contains(fmt.Sprintf("%v %+v %#v %s", got, got, got, text), "oldold") {
			t.Errorf("a secret can be printed: %v %s", err, text)
		}
	}
	if diff := cmp.Diff([]byte("whsec_***"), []byte(fmt.Sprint(events.Secret{}))); diff != "" {
		t.Error(diff)
	}
}
