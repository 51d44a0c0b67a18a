package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/client"
)

// script answers requests one after the other, and records them.
type script struct {
	t       *testing.T
	answers []func(*http.Request) (*http.Response, error)
	sent    []*http.Request
	bodies  []string
	at      []time.Duration // since the first
	began   time.Time
}

// RoundTrip implements [http.RoundTripper].
func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(s.sent) == 0 {
		s.began = time.Now()
	}
	body, _ := io.ReadAll(r.Body)
	s.sent, s.bodies, s.at = append(s.sent, r), append(s.bodies, string(body)), append(s.at, time.Since(s.began))
	if len(s.sent) > len(s.answers) {
		s.t.Error("a request too many")
		return nil, errors.New("a request too many")
	}
	return s.answers[len(s.sent)-1](r)
}

func answers(status int, body string, headers ...string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return respond(status, body, headers...), nil }
}

func breaks(*http.Request) (*http.Response, error) {
	return nil, errors.New("the connection was reset")
}

func refuses(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
}

func untrusted(*http.Request) (*http.Response, error) {
	return nil, &tls.CertificateVerificationError{Err: errors.New("unknown authority")}
}

func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

const made = `{"name": "acme", "plan": "pro", "confirmed": true, "replicas": {"total": 2, "acknowledged": 2, "expired": 0}, "took_ms": 4}`

// set makes a change, once the answers are in place.
func set(ctx context.Context, c *client.Client) error {
	_, err := c.SetAccount(ctx, "acme", client.AccountChange{Plan: new("pro")})
	return err
}

func list(ctx context.Context, c *client.Client) error {
	_, err := c.Account(ctx, "acme")
	return err
}

func charge(ctx context.Context, c *client.Client) error {
	_, err := c.VerifyKey(ctx, client.Question{Key: client.NewSecret("k"), Charge: true})
	return err
}

func reveal(ctx context.Context, c *client.Client) error {
	_, err := c.RevealKey(ctx, "ada")
	return err
}

// What may be repeated is repeated, with the same body and the same Idempotency-Key, and nothing
// else is.
func TestACallIsRepeatedWhereThatIsSafe(t *testing.T) {
	busy := answers(503, `{"status": 503, "code": "busy", "detail": "Later."}`, "Retry-After", "3")
	absent := answers(404, `{"status": 404, "code": "not_found", "detail": "No.", "field": "plan", "request_id": "r"}`)
	fault := answers(500, `{"status": 500, "code": "internal", "detail": "A fault."}`)
	unreadable := answers(503, `{"status": 503, "code": "key_unreadable", "detail": "It does not open."}`)
	html := answers(502, `<html>`, "Content-Type", "text/html")
	type all = []func(*http.Request) (*http.Response, error)
	for _, row := range []struct {
		name    string
		call    func(context.Context, *client.Client) error
		answers all
		want    string // part of the error; "": none
	}{
		{"a read whose connection breaks", list, all{breaks, answers(200, `{}`)}, ""},
		{"a change whose connection breaks", set, all{breaks, answers(200, made)}, ""},
		{"a change without an answer in time", set, all{hangs, answers(200, made)}, ""},
		{"a service that is busy", set, all{busy, busy, answers(200, made)}, ""},
		{"a service with a wrong seal key is not asked again", reveal, all{unreadable}, "key_unreadable"},
		{"a front that reaches no service", set, all{html, answers(200, made)}, ""},
		{"a refusal is not repeated", set, all{absent}, "not_found: No. (request r)"},
		{"a fault is not repeated", set, all{fault}, "internal"},
		{"what is no API is not repeated", list, all{answers(200, `<html>`)}, "is not one of the API"},
		{"a question that charges is not repeated", charge, all{breaks}, "the connection was reset"},
		{"a certificate that is not trusted", set, all{untrusted}, "PUT /v1/accounts/acme: tls: failed to verify certificate: unknown authority"},
		{"a service that is not there", set, all{refuses, refuses, refuses, refuses, refuses}, "PUT /v1/accounts/acme: dial: refused"},
		{"a service that is gone", set, all{breaks, refuses, refuses, refuses, refuses}, "may have been made or not"},
		{"it ends after five attempts", list, all{breaks, breaks, breaks, breaks, breaks}, "GET /v1/accounts/acme: the connection was reset"},
		{"it says what to do about a change", set, all{breaks, breaks, breaks, breaks, breaks}, "may have been made or not; repeat it with the idempotency key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, answers: row.answers}
				err := row.call(t.Context(), newClient(t, s, client.Options{}))
				if len(s.sent) != len(row.answers) {
					t.Errorf("%d requests, want %d", len(s.sent), len(row.answers))
				}
				if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
					t.Errorf("the error is %v, want %q", err, row.want)
				}
				for i, r := range s.sent {
					once := r.Header.Get("Idempotency-Key")
					if once != s.sent[0].Header.Get("Idempotency-Key") || (once == "") != (r.Method != "PUT") || s.bodies[i] != s.bodies[0] {
						t.Errorf("attempt %d: key %q, body %s", i, once, s.bodies[i])
					}
				}
			})
		})
	}
}

// Pauses grow, differ, and are never shorter than what the API asks for; a deadline that ends
// before the next attempt ends the call at once.
func TestPausesBetweenAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, answers: []func(*http.Request) (*http.Response, error){
			breaks, breaks, answers(429, `{"status": 429, "code": "rate_limited"}`, "Retry-After", "7"), answers(200, made),
		}}
		if err := set(t.Context(), newClient(t, s, client.Options{})); err != nil {
			t.Fatal(err)
		}
		for i, row := range []struct{ least, most time.Duration }{{50, 150}, {100, 300}, {7000, 7000}} {
			if pause := s.at[i+1] - s.at[i]; pause < row.least*time.Millisecond || pause > row.most*time.Millisecond {
				t.Errorf("pause %d: %v, want %d to %d ms", i, pause, row.least, row.most)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s = &script{t: t, answers: s.answers[2:3]}
		began := time.Now()
		err := set(ctx, newClient(t, s, client.Options{}))
		if !errors.Is(err, client.ErrRateLimited) || time.Since(began) > 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// A Retry-After is a number of seconds or a time, and a day at most, whatever a proxy sends.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		soon := time.Now().Add(9 * time.Second).UTC().Format(http.TimeFormat)
		for text, want := range map[string]time.Duration{
			"7": 7 * time.Second, soon: 9 * time.Second, "9223372036854775807": 24 * time.Hour, "99999999999999999999": 24 * time.Hour,
			"-1": 0, "soon": 0, "": 0, "Sat, 02 Jan 1999 15:04:05 GMT": 0,
		} {
			s := &script{t: t, answers: []func(*http.Request) (*http.Response, error){answers(429, `{"status": 429, "code": "rate_limited"}`, "Retry-After", text)}}
			p := (*client.Problem)(nil)
			if err := set(t.Context(), newClient(t, s, client.Options{Attempts: 1})); !errors.As(err, &p) || p.RetryAfter != want {
				t.Errorf("%q: %v, want %v", text, p.RetryAfter, want)
			}
		}
	})
}

// A caller learns from the error what to decide by: the code, the field and the key of the call.
func TestAProblemHasItsParts(t *testing.T) {
	s := &script{t: t, answers: []func(*http.Request) (*http.Response, error){
		answers(409, `{"status": 409, "code": "missing_reference", "detail": "plan pro: not found", "field": "plan", "request_id": "r"}`, "Idempotency-Key", "evt_1"),
	}}
	err := set(t.Context(), newClient(t, s, client.Options{}).Once("evt_1"))
	p := (*client.Problem)(nil)
	if !errors.As(err, &p) || !errors.Is(err, client.ErrMissing) || errors.Is(err, client.ErrNotFound) ||
		p.Status != 409 || p.Field != "plan" || p.RequestID != "r" || p.IdempotencyKey != "evt_1" {
		t.Errorf("%#v", err)
	}
	if once := s.sent[0].Header.Get("Idempotency-Key"); once != "evt_1" {
		t.Errorf("the key is %q", once)
	}
}

// A change that is not confirmed is a result, and waiting repeats the same call.
func TestAChangeThatIsNotConfirmedIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pending := strings.Replace(made, "true", "false", 1)
		s := &script{t: t, answers: []func(*http.Request) (*http.Response, error){answers(202, pending), answers(202, pending), breaks, answers(200, made)}}
		c := newClient(t, s, client.Options{})
		done, err := c.SetAccount(t.Context(), "acme", client.AccountChange{Plan: new("pro")})
		if err != nil || done.Confirmed || done.Value.Plan != "pro" || done.Replicas.Total != 2 {
			t.Fatalf("%+v %v", done, err)
		}
		if err := done.Wait(t.Context()); err != nil || !done.Confirmed {
			t.Fatalf("%+v %v", done, err)
		}
		if err := done.Wait(t.Context()); err != nil || len(s.sent) != 4 {
			t.Errorf("a second wait: %v, %d requests", err, len(s.sent))
		}
		for i, r := range s.sent {
			if r.Header.Get("Idempotency-Key") != done.IdempotencyKey || s.bodies[i] != s.bodies[0] {
				t.Errorf("request %d is another call", i)
			}
		}
	})
}

// Two calls never share a key that the client made.
func TestEachCallHasAKeyOfItsOwn(t *testing.T) {
	s := &script{t: t, answers: []func(*http.Request) (*http.Response, error){answers(200, made), answers(200, made)}}
	c := newClient(t, s, client.Options{})
	for range 2 {
		if err := set(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := s.sent[0].Header.Get("Idempotency-Key"), s.sent[1].Header.Get("Idempotency-Key"); a == b || a == "" {
		t.Errorf("the keys are %q and %q", a, b)
	}
}

// A list that is broken off is never taken for a whole one.
func TestAListThatIsBrokenOffEndsWithAnError(t *testing.T) {
	for _, row := range []struct {
		body  string
		rows  int
		whole bool
	}{
		{`{"items": [{"used": 1},{"used": 2}]}`, 2, true},
		{`{"items": []}`, 0, true},
		{`{"new": [1], "items": [{"used": 1}], "newer": {"items": []}}`, 1, true},
		{`{"items": [{"used": 1},{"used": 2}`, 2, false},
		{`{"items": [{"used": 1},{"us`, 1, false},
		{`{"items": [{"used": 1}]`, 1, false},
		{``, 0, false},
		{`{"other": []}`, 0, false},
	} {
		s := &script{t: t, answers: []func(*http.Request) (*http.Response, error){answers(200, row.body)}}
		n, whole := 0, true
		for _, err := range newClient(t, s, client.Options{}).Usage(t.Context(), client.UsageQuery{}) {
			if n++; err != nil {
				n, whole = n-1, false
			}
		}
		if n != row.rows || whole != row.whole {
			t.Errorf("%s: %d rows, whole %t", row.body, n, whole)
		}
	}
}

// The token is not sent in the clear to another machine, unless the caller says so, and never
// follows a redirect.
func TestTheTokenStaysWhereItBelongs(t *testing.T) {
	for _, row := range []struct {
		url   string
		plain bool
		good  bool
	}{
		{"https://keyporter.example", false, true},
		{"http://127.0.0.1:9012", false, true},
		{"http://[::1]:9012/", false, true},
		{"http://localhost:9012", false, true},
		{"http://keyporter.example", false, false},
		{"http://127.0.0.1.example", false, false},
		{"http://10.0.0.1:9012", false, false},
		{"http://10.0.0.1:9012", true, true},
		{"https://user:secret@keyporter.example", false, false},
		{"ftp://keyporter.example", false, false},
		{"keyporter.example:9012", false, false},
		{"https://keyporter.example?token=secret", false, false},
		{"https://secret%zz", false, false},
	} {
		_, err := client.New(row.url, client.NewSecret("the-token"), client.Options{PlainHTTP: row.plain})
		if (err == nil) != row.good || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", row.url, err)
		}
	}
	for _, token := range []string{"", "two words", "line\n"} {
		if _, err := client.New("https://keyporter.example", client.NewSecret(token), client.Options{}); err == nil || token != "" && strings.Contains(err.Error(), token) {
			t.Errorf("the token %q: %v", token, err)
		}
	}
	s := &script{t: t, answers: []func(*http.Request) (*http.Response, error){answers(307, ``, "Location", "https://other.example/")}}
	if err := list(t.Context(), newClient(t, s, client.Options{})); err == nil || len(s.sent) != 1 {
		t.Errorf("a redirect: %v, %d requests", err, len(s.sent))
	}
}

// Nothing prints a secret: no verb, no encoder, no logger, and not the client that holds the token.
func TestASecretIsNotPrinted(t *testing.T) {
	const text = "wh_secret"
	secret := client.NewSecret(text)
	c, err := client.New("https://keyporter.example", secret, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{"a secret": secret, "a pointer": &secret, "a key": client.Changed[client.MadeKey]{Value: client.MadeKey{Key: secret}}, "a client": c, "a question": client.Question{Key: secret}} {
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb, value)
		}
		slog.New(slog.NewJSONHandler(&out, nil)).Info("a", "value", value)
		slog.New(slog.NewTextHandler(&out, nil)).Info("a", "value", value)
		encoded, _ := json.Marshal(value)
		out.Write(encoded)
		_ = gob.NewEncoder(&out).Encode(value)
		if strings.Contains(out.String(), text) || strings.Contains(out.String(), fmt.Sprintf("%x", text)) {
			t.Errorf("%s prints it: %s", name, out.String())
		}
	}
	if secret.Reveal() != text || secret.IsZero() || !(client.Secret{}).IsZero() {
		t.Error("a secret does not know its text")
	}
}
