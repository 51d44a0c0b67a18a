package settle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/usage"
)

// book refunds each charge once, and records those that stay charged.
type book struct {
	given map[uint64]string // number → cause
	kept  []uint64
	err   error
}

func (b *book) settle(_ context.Context, r receipt.Receipt, cause string) (bool, error) {
	if b.err != nil {
		return false, b.err
	}
	if cause == "" {
		b.kept = append(b.kept, r.Number)
		return false, nil
	}
	if _, before := b.given[r.Number]; before {
		return false, nil
	}
	b.given[r.Number] = cause
	return true, nil
}

// settleSigner returns a signer with secrets of its own for each number.
func newSigner(t *testing.T, number byte) *receipt.Signer {
	t.Helper()
	secret := [][]byte{bytes.Repeat([]byte{number}, receipt.MinSecret)}
	s, err := receipt.NewSigner(receipt.Secrets{ID: secret, Receipt: secret})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var someReceipt = receipt.Receipt{Holder: "0123456789abcdef", Number: 1 << 40, Month: 202611, Cost: 25, User: "ada", Account: "acme"}

// settler answers the calls of one upstream. Its log goes to logs.
func settler(t *testing.T, s *receipt.Signer, b *book, logs io.Writer) func(method, path, authorization, body string) (*http.Response, string) {
	t.Helper()
	h := New(Config{
		Opens: func(values []string) bool { return len(values) == 1 && values[0] == "Bearer token" },
		Parse: s.ParseID, Settle: b.settle, Log: slog.New(slog.NewTextHandler(logs, nil)),
	})
	return func(method, path, authorization, body string) (*http.Response, string) {
		t.Helper()
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		answer := w.Result()
		if answer.Header.Get("Content-Type") != "application/json" || answer.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: headers %v", method, path, answer.Header)
		}
		return answer, strings.TrimSpace(w.Body.String())
	}
}

const (
	giveBack = `{"outcome": "refund"}`
	keep     = `{"outcome": "charge"}`
)

// An upstream can have a charge refunded, once, however often it asks; and it can say that the
// charge stands.
func TestTheUpstreamSettles(t *testing.T) {
	s, b := newSigner(t, 1), &book{given: map[uint64]string{}}
	call := settler(t, s, b, io.Discard)
	sign := func(number uint64, refund usage.RefundRule) string {
		id, _ := s.Sign(receipt.Receipt{Holder: "h", Number: number, Cost: 1, User: "ada", Refund: refund})
		return "/v1/charges/" + id + "/settle"
	}
	first, second, never := sign(1, usage.RefundRule{}), sign(2, usage.RefundRule{Codes: []int{500}}), sign(3, usage.RefundRule{Never: true})
	for _, row := range []struct{ name, path, body, want string }{
		{"it stands", first, keep, `{"success":true,"refunded":false}`},
		{"it is given back", first, giveBack, `{"success":true,"refunded":true}`},
		{"it was given back", first, giveBack, `{"success":true,"refunded":false}`},
		{"it stands, too late", first, keep, `{"success":true,"refunded":false}`},
		{"another one, of a route with codes", second, giveBack, `{"success":true,"refunded":true}`},
		{"one of a route without refunds", never, giveBack, `{"success":true,"refunded":false}`},
	} {
		answer, body := call("POST", row.path, "Bearer token", row.body)
		if answer.StatusCode != 200 || body != row.want {
			t.Errorf("%s: %d %s, want %s", row.name, answer.StatusCode, body, row.want)
		}
	}
	if diff := cmp.Diff(map[uint64]string{1: ledger.CauseSettled, 2: ledger.CauseSettled}, b.given); diff != "" {
		t.Errorf("given back (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint64{1, 1, 3}, b.kept); diff != "" {
		t.Errorf("stay charged (-want +got):\n%s", diff)
	}
}

// A call without the token, or about no charge of ours, changes nothing and says what is wrong.
func TestCallsThatSettleNothing(t *testing.T) {
	s, b := newSigner(t, 1), &book{given: map[uint64]string{}}
	call := settler(t, s, b, io.Discard)
	id, receipt := s.Sign(someReceipt)
	foreign, _ := newSigner(t, 2).Sign(someReceipt)
	path := "/v1/charges/" + id + "/settle"
	const token = "Bearer token"
	for _, row := range []struct {
		name, method, path, authorization, body string
		status                                  int
		code                                    string
	}{
		{"no token", "POST", path, "", giveBack, 401, "unauthorized"},
		{"a wrong token", "POST", path, "Bearer tokem", giveBack, 401, "unauthorized"},
		{"no token, and no such path", "GET", "/", "", "", 401, "unauthorized"},
		{"the receipt of the access log", "POST", "/v1/charges/" + receipt + "/settle", token, giveBack, 404, "not_found"},
		{"a charge of another installation", "POST", "/v1/charges/" + foreign + "/settle", token, giveBack, 404, "not_found"},
		{"a charge that was changed", "POST", "/v1/charges/" + id[:len(id)-2] + "AA/settle", token, giveBack, 404, "not_found"},
		{"a charge with something behind it", "POST", "/v1/charges/" + id + "%0a/settle", token, giveBack, 404, "not_found"},
		{"a charge without end", "POST", "/v1/charges/" + strings.Repeat("A", 1<<16) + "/settle", token, giveBack, 404, "not_found"},
		{"no charge", "POST", "/v1/charges", token, giveBack, 404, "not_found"},
		{"another path", "POST", "/v1/charges/" + id, token, giveBack, 404, "not_found"},
		{"a look", "GET", path, token, "", 405, "method_not_allowed"},
		{"another method", "PUT", path, token, giveBack, 405, "method_not_allowed"},
		{"no body", "POST", path, token, "", 400, "bad_request"},
		{"no object", "POST", path, token, `"refund"`, 400, "bad_request"},
		{"no outcome", "POST", path, token, `{}`, 400, "bad_request"},
		{"no such outcome", "POST", path, token, `{"outcome": "Refund"}`, 400, "bad_request"},
		{"more than an outcome", "POST", path, token, `{"outcome": "refund", "cost": 100}`, 400, "bad_request"},
		{"two outcomes", "POST", path, token, giveBack + keep, 400, "bad_request"},
		{"two outcomes in one", "POST", path, token, `{"outcome": "charge", "outcome": "refund"}`, 400, "bad_request"},
		{"an outcome by another name", "POST", path, token, `{"Outcome": "refund"}`, 400, "bad_request"},
		{"a list", "POST", path, token, `["outcome", "refund"]`, 400, "bad_request"},
		{"an outcome in a list", "POST", path, token, `{"outcome": ["refund"]}`, 400, "bad_request"},
		{"a broken body", "POST", path, token, giveBack[:15], 400, "bad_request"},
		{"a body without end", "POST", path, token, giveBack + strings.Repeat(" ", 1<<11), 413, "too_large"},
		{"a word without end", "POST", path, token, `{"outcome": "` + strings.Repeat("a", 1<<11), 413, "too_large"},
	} {
		answer, body := call(row.method, row.path, row.authorization, row.body)
		if answer.StatusCode != row.status || !strings.HasPrefix(body, `{"success":false,`) || !strings.Contains(body, `"code":"`+row.code+`"`) {
			t.Errorf("%s: %d %s, want %d %s", row.name, answer.StatusCode, body, row.status, row.code)
		}
		if (answer.StatusCode == 401) != (answer.Header.Get("WWW-Authenticate") != "") || (answer.StatusCode == 405) != (answer.Header.Get("Allow") == "POST") {
			t.Errorf("%s: headers %v", row.name, answer.Header)
		}
	}
	if len(b.given) > 0 {
		t.Errorf("given back: %v", b.given)
	}
}

// An upstream learns when its call may have done nothing, so that it asks again; the log says why,
// and contains no charge.
func TestACallThatCannotBeSettled(t *testing.T) {
	s, b := newSigner(t, 1), &book{err: errors.New("the database is away")}
	var logs bytes.Buffer
	call := settler(t, s, b, &logs)
	id, _ := s.Sign(someReceipt)
	answer, body := call("POST", "/v1/charges/"+id+"/settle", "Bearer token", giveBack)
	if answer.StatusCode != 503 || answer.Header.Get("Retry-After") != "1" || !strings.Contains(body, `"code":"unavailable"`) || strings.Contains(body, "database") {
		t.Errorf("%d %v %s", answer.StatusCode, answer.Header, body)
	}
	if text := logs.String(); !strings.Contains(text, "the database is away") || strings.Contains(text, id) {
		t.Errorf("logged: %s", text)
	}
}
