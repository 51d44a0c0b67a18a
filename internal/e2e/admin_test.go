package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

const operatorToken = "the-token-of-an-operator"

// administered is a stack whose replicas have the operators' API.
type administered struct {
	*stack
	tokens string   // the file with the tokens
	apis   []string // host:port of each replica's API
}

// startAdministered starts replicas with the operators' API, whose token has all scopes.
func startAdministered(t testing.TB, database string, replicas int) *administered {
	t.Helper()
	a := &administered{tokens: filepath.Join(t.TempDir(), "admin.tokens")}
	a.admit(t, operatorToken)
	a.apis = append(a.apis, address(t))
	a.stack = start(t, stackConfig{database: database, noEnvoy: true, flags: a.flags(0)})
	for i := 1; i < replicas; i++ {
		a.apis = append(a.apis, address(t))
		a.replicas = append(a.replicas, a.serve(a.flags(i)...))
	}
	return a
}

func (a *administered) flags(i int) []string {
	return append([]string{"--listen-admin", a.apis[i], "--admin-tokens-file", a.tokens}, patient...)
}

// admit writes the file with the only token.
func (a *administered) admit(t testing.TB, token string) {
	t.Helper()
	sum := sha256.Sum256([]byte(token))
	line := "billing: " + hex.EncodeToString(sum[:]) + " read write keys credits verify charge rate=100000\n"
	if err := os.WriteFile(a.tokens, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask calls the API of a replica.
func (a *administered) ask(ctx context.Context, replica int, token, method, path, body, once string) (status int, fields map[string]any, err error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+a.apis[replica]+"/v1"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if once != "" {
		r.Header.Set("Idempotency-Key", once)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	return response.StatusCode, fields, json.NewDecoder(response.Body).Decode(&fields)
}

// must calls the API of a replica, which must confirm it.
func (a *administered) must(replica int, method, path, body string) map[string]any {
	a.t.Helper()
	status, fields, err := a.ask(a.t.Context(), replica, operatorToken, method, path, body, "")
	if err != nil || status != 200 {
		a.t.Fatalf("%s %s: %d %v %v", method, path, status, fields["detail"], err)
	}
	return fields
}

// A key that is replaced by the API opens nothing on any replica when the call returns, and the new
// one works on all, whichever of them was called. What a key is, is the same on each.
func TestAKeyReplacedByTheAPIIsDeadOnEveryReplicaWhenTheCallReturns(t *testing.T) {
	t.Parallel()
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			replicas := 2
			if name == "SQLite" {
				replicas = 1
			}
			a := startAdministered(t, database(t), replicas)
			a.must(0, "PUT", "/plans/pro", `{"rate_limit": "unlimited", "credits": "unlimited"}`)
			a.must(0, "PUT", "/accounts/acme", `{"plan": "pro"}`)
			a.must(0, "PUT", "/users/ada", `{"account": "acme"}`)
			key := a.must(0, "POST", "/users/ada/key:create", "")["key"].(string)
			var checkers []*checker
			for _, r := range a.replicas {
				checkers = append(checkers, newChecker(t, r))
			}
			for round := range 20 {
				old := key
				a.decides(t, checkers, old, 200)
				made := a.must(round%replicas, "POST", "/users/ada/key:regenerate", "")
				if made["confirmed"] != true || made["replicas"].(map[string]any)["total"] != float64(replicas) {
					t.Errorf("round %d: %v", round, made["replicas"])
				}
				key = made["key"].(string)
				a.decides(t, checkers, old, 401)
				a.decides(t, checkers, key, 200)
			}
			a.must(replicas-1, "PATCH", "/accounts/acme", `{"status": "suspended"}`)
			a.decides(t, checkers, key, 403)
			mustNotContain(t, "the log", a.written(), key, operatorToken)
		})
	}
}

// decides checks what each replica answers to a Check, and to a verification.
func (a *administered) decides(t *testing.T, checkers []*checker, key string, want int32) {
	t.Helper()
	for i, c := range checkers {
		status, err := c.key(key)
		verified := a.must(i, "POST", "/keys:verify", `{"key": "`+key+`"}`)
		if err != nil || int32(status) != want || verified["status"] != float64(want) || verified["valid"] != (want == 200) {
			t.Errorf("replica %d: a Check %d, a verification %v, want %d: %v", i, status, verified["status"], want, err)
		}
	}
}

// makeAda makes the user ada, with all that a user needs.
func (a *administered) makeAda() {
	a.must(0, "PUT", "/plans/pro", "")
	a.must(0, "PUT", "/accounts/acme", `{"plan": "pro"}`)
	a.must(0, "PUT", "/users/ada", `{"account": "acme"}`)
}

// A grant that is called several times at once on two replicas, by callers of whom some leave, is
// made once.
func TestAChangeOnSeveralReplicasAtOnceIsMadeOnce(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, partstest.Database(t, 18), 2)
	a.makeAda()
	const grants = 40
	var all sync.WaitGroup
	for i := range grants {
		once := fmt.Sprint("invoice-", i)
		call := func(ctx context.Context) (status int, err error) {
			for status, err = 503, nil; status == 503 && err == nil; { // too many calls at once
				status, _, err = a.ask(ctx, rand.IntN(2), operatorToken, "POST", "/users/ada/credits:grant", `{"credits": 3}`, once)
			}
			return status, err
		}
		for range 1 + i%5 {
			all.Go(func() {
				ctx, leave := context.WithTimeout(t.Context(), rand.N(30*time.Millisecond))
				defer leave()
				_, _ = call(ctx) // perhaps nobody hears the answer
				if status, err := call(t.Context()); status != 200 || err != nil {
					t.Errorf("%s: %d %v", once, status, err)
				}
			})
		}
	}
	all.Wait()
	if granted := a.must(0, "GET", "/users/ada/credits", "")["granted"]; granted != 3.0*grants {
		t.Errorf("%v credits were granted, want %d", granted, 3*grants)
	}
}

// A change whose replica is killed while it is made, perhaps between its commit and its answer, is
// made once by repeating the call on another replica.
func TestAChangeWhoseReplicaIsKilledIsMadeOnce(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, partstest.Database(t, 18), 2)
	a.makeAda()
	const grants = 50
	var all sync.WaitGroup
	var answered, lost atomic.Int64
	for i := range grants {
		all.Go(func() {
			once := fmt.Sprint("invoice-", i)
			status, _, err := a.ask(t.Context(), 0, operatorToken, "POST", "/users/ada/credits:grant", `{"credits": 3}`, once)
			if answered.Add(1) == 1 {
				a.replicas[0].process.Kill()
			}
			if err != nil {
				lost.Add(1)
			}
			if again, _, err := a.ask(t.Context(), 1, operatorToken, "POST", "/users/ada/credits:grant", `{"credits": 3}`, once); again != 200 || err != nil {
				t.Errorf("%s: %d, then %d %v", once, status, again, err)
			}
		})
	}
	all.Wait()
	if granted := a.must(1, "GET", "/users/ada/credits", "")["granted"]; granted != 3.0*grants || lost.Load() == 0 {
		t.Errorf("%v credits were granted, want %d; %d answers were lost", granted, 3*grants, lost.Load())
	}
}

// A verification that charges counts like a request, once for each request that it names, and its
// charge is not left without an outcome, since no access log reports one. A look at a key that
// holds no credits asks the ledger nothing.
func TestAVerificationThatChargesIsARequest(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, "", 1)
	key := a.user("ada", "small", "--credits", "10", "--rate-limit", "60")
	if seen := a.must(0, "POST", "/keys:verify", `{"key": "`+key+`"}`); seen["valid"] != true || seen["credits"] != nil {
		t.Errorf("a look: %v", seen)
	}
	var ids []any
	for _, request := range []string{"1", "1", "2"} {
		made := a.must(0, "POST", "/keys:verify", `{"key": "`+key+`", "charge": true, "request": "`+request+`"}`)
		ids = append(ids, made["charge"].(map[string]any)["id"])
	}
	if ids[0] == "" || ids[0] != ids[1] || ids[0] == ids[2] {
		t.Errorf("the charges are %v", ids)
	}
	partstest.EventuallyNil(t, "the ledger has both with an outcome", func() error {
		if b := a.must(0, "GET", "/users/ada/credits", ""); b["used"] != 2.0 || b["unreported"] != 0.0 || b["refunded"] != 0.0 {
			return fmt.Errorf("%v", b)
		}
		return nil
	})
}

// The example of the document changes plans, cancels and grants, each event once, and the next
// request of the user is decided by it.
func TestTheExampleForBilling(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	a := startAdministered(t, "", 1)
	folder := t.TempDir()
	text, err := os.ReadFile("../../docs/integrate.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(text)
	if block == nil || strings.Count(string(block[1]), "127.0.0.1:9012") != 1 {
		t.Fatal("the document has no example for Python, or another address in it")
	}
	program := strings.Replace(string(block[1]), "127.0.0.1:9012", a.apis[0], 1)
	for name, content := range map[string]string{"billing.py": program, "billing.token": operatorToken} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	deliver := func(events ...string) {
		command := exec.CommandContext(t.Context(), python, "billing.py")
		command.Dir, command.Stdin = folder, strings.NewReader(strings.Join(events, "\n"))
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	a.must(0, "PUT", "/plans/free", `{"api_access": false}`)
	a.must(0, "PUT", "/plans/pro", "")
	a.must(0, "PUT", "/accounts/acme", `{"plan": "free"}`)
	a.must(0, "PUT", "/users/ada", `{"account": "acme"}`)
	key := a.must(0, "POST", "/users/ada/key:create", "")["key"].(string)
	checkers := []*checker{newChecker(t, a.replicas[0])}
	a.decides(t, checkers, key, 403)
	paid := `{"id": "evt_1", "type": "subscription.updated", "account": "acme", "plan": "pro"}`
	bought := `{"id": "evt_2", "type": "credits.bought", "user": "ada", "credits": 500}`
	deliver(paid, bought, paid)
	a.decides(t, checkers, key, 200)
	deliver(bought)
	if granted := a.must(0, "GET", "/users/ada/credits", "")["granted"]; granted != 500.0 {
		t.Errorf("%v credits were granted, want 500", granted)
	}
	deliver(`{"id": "evt_3", "type": "subscription.deleted", "account": "acme"}`)
	a.decides(t, checkers, key, 403)
}

// Callers that send half a request, or do not read, cost Checks and other callers nothing.
func TestSlowCallersOfTheAPIDelayNobody(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	a := startAdministered(t, partstest.Database(t, 18), 1)
	key := a.user("ada", "pro")
	for i := range 300 {
		conn, err := net.Dial("tcp", a.apis[0])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		head := "PUT /v1/users/ada HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + operatorToken + "\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
		io.WriteString(conn, []string{head + "\r\n{", head, "GET /v1/audit?limit=1000 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + operatorToken + "\r\n\r\n"}[i%3])
	}
	c := newChecker(t, a.replicas[0])
	for range 100 {
		if status, err := c.key(key); status != 200 || err != nil {
			t.Fatalf("a Check: %d %v", status, err)
		}
	}
	a.must(0, "PATCH", "/users/ada", `{"kind": "service"}`)
}

// The API has a port of its own, its tokens are reread, and a file with a mistake changes nothing.
// The service stops in good order while a caller is connected.
func TestTheAPIHasAPortAndTokensOfItsOwn(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, "", 1)
	a.must(0, "GET", "/replicas", "")
	for _, other := range []string{a.replicas[0].page, a.replicas[0].ops} {
		r, err := http.NewRequest("GET", "http://"+other+"/v1/plans", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+operatorToken)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != 404 {
			t.Errorf("%s answers %d", other, response.StatusCode)
		}
	}
	const next = "the-next-token-of-an-operator"
	a.admit(t, next)
	partstest.EventuallyNil(t, "the new token opens", func() error {
		if status, _, err := a.ask(t.Context(), 0, next, "GET", "/plans", "", ""); status != 200 {
			return fmt.Errorf("%d %w", status, err)
		}
		return nil
	})
	if status, _, _ := a.ask(t.Context(), 0, operatorToken, "GET", "/plans", "", ""); status != 401 {
		t.Errorf("the old token: %d", status)
	}
	if err := os.WriteFile(a.tokens, []byte("billing: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.reloadsTo(t, "refused", 1)
	if status, _, _ := a.ask(t.Context(), 0, next, "GET", "/plans", "", ""); status != 200 {
		t.Errorf("after a mistake in the file: %d", status)
	}
	if err := os.WriteFile(a.tokens, nil, 0o600); err != nil { // the only way out after a leak
		t.Fatal(err)
	}
	partstest.EventuallyNil(t, "nobody is admitted", func() error {
		if status, _, err := a.ask(t.Context(), 0, next, "GET", "/plans", "", ""); status != 401 {
			return fmt.Errorf("%d %w", status, err)
		}
		return nil
	})
	process := a.replicas[0].process
	process.Stop()
	if out := process.Output(); !strings.Contains(out, `"msg":"stopped"`) {
		t.Errorf("it did not stop in good order:\n%s", out)
	}
}
