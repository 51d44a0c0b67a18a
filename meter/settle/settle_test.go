package settle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/usage"
)

// book refunds each charge up to its total, and records those that stay charged.
type book struct {
	given map[uint64]int64 // number → credits
	kept  []uint64
	err   error
}

func (b *book) settle(_ context.Context, r receipt.Receipt, refund int64) (int64, error) {
	if b.err != nil {
		return 0, b.err
	}
	if refund == 0 {
		b.kept = append(b.kept, r.Number)
	}
	before := b.given[r.Number]
	b.given[r.Number] = max(before, refund)
	return b.given[r.Number] - before, nil
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

// An upstream can have a charge refunded, as a whole or in part, once, however often it asks; and
// it can say that the charge stands.
func TestTheUpstreamSettles(t *testing.T) {
	s, b := newSigner(t, 1), &book{given: map[uint64]int64{}}
	call := settler(t, s, b, io.Discard)
	sign := func(number uint64, refund usage.RefundRule) string {
		id, _ := s.Sign(receipt.Receipt{Holder: "h", Number: number, Cost: 10, User: "ada", Refund: refund})
		return "/v1/charges/" + id + "/settle"
	}
	first, second, never := sign(1, usage.RefundRule{}), sign(2, usage.RefundRule{Codes: []int{500}}), sign(3, usage.RefundRule{Never: true})
	part := func(credits string) string { return `{"outcome": "refund", "credits": ` + credits + `}` }
	for _, row := range []struct {
		name, path, body string
		back             int64
	}{
		{"it stands", first, keep, 0},
		{"a part comes back", first, part("3"), 3},
		{"the same part again", first, part("3"), 0},
		{"a smaller part", first, part("2"), 0},
		{"a larger part, fields in another order", first, `{"credits": 7, "outcome": "refund"}`, 4},
		{"all of it", first, giveBack, 3},
		{"all of it again", first, giveBack, 0},
		{"a part of what came back", first, part("10"), 0},
		{"it stands, too late", first, keep, 0},
		{"another one, of a route with codes", second, giveBack, 10},
		{"one of a route without refunds", never, giveBack, 0},
		{"a part of it", never, part("1"), 0},
	} {
		answer, body := call("POST", row.path, "Bearer token", row.body)
		want := fmt.Sprintf(`{"success":true,"refunded":%t}`, row.back > 0)
		if answer.StatusCode != 200 || body != want {
			t.Errorf("%s: %d %s, want %s", row.name, answer.StatusCode, body, want)
		}
	}
	if diff := cmp.Diff(map[uint64]int64{1: 10, 2: 10, 3: 0}, b.given); diff != "" {
		t.Errorf("given back (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint64{1, 1, 3, 3}, b.kept); diff != "" {
		t.Errorf("stay charged (-want +got):\n%s", diff)
	}
}

// A call without the token, or about no charge of ours, changes nothing and says what is wrong.
func TestCallsThatSettleNothing(t *testing.T) {
	s, b := newSigner(t, 1), &book{given: map[uint64]int64{}}
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
		{"a part of a charge that stands", "POST", path, token, `{"outcome": "charge", "credits": 1}`, 400, "bad_request"},
		{"a part without an outcome", "POST", path, token, `{"credits": 1}`, 400, "bad_request"},
		{"no part", "POST", path, token, `{"outcome": "refund", "credits": 0}`, 400, "bad_request"},
		{"less than nothing", "POST", path, token, `{"outcome": "refund", "credits": -1}`, 400, "bad_request"},
		{"more than the charge", "POST", path, token, `{"outcome": "refund", "credits": 26}`, 400, "bad_request"},
		{"a broken number", "POST", path, token, `{"outcome": "refund", "credits": 1.5}`, 400, "bad_request"},
		{"a huge number", "POST", path, token, `{"outcome": "refund", "credits": 1e3000}`, 400, "bad_request"},
		{"a number as a text", "POST", path, token, `{"outcome": "refund", "credits": "1"}`, 400, "bad_request"},
		{"null", "POST", path, token, `{"outcome": "refund", "credits": null}`, 400, "bad_request"},
		{"two parts", "POST", path, token, `{"outcome": "refund", "credits": 1, "credits": 2}`, 400, "bad_request"},
		{"a part and something else", "POST", path, token, `{"outcome": "refund", "credits": 1, "cost": 2}`, 400, "bad_request"},
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
