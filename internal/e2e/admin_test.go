package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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

	"github.com/keyporter/keyporter/client"
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

// api returns a client of the API of a replica.
func (a *administered) api(replica int, token string, o client.Options) *client.Client {
	a.t.Helper()
	c, err := client.New("http://"+a.apis[replica], client.NewSecret(token), o)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// confirmed returns what a change has made, which must be enforced on all replicas.
func confirmed[T any](done client.Changed[T], err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil || !done.Confirmed {
			t.Fatalf("confirmed %t: %v", done.Confirmed, err)
		}
		return done.Value
	}
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
			var apis []*client.Client
			for i := range replicas {
				apis = append(apis, a.api(i, operatorToken, client.Options{}))
			}
			a.makeAda(client.PlanChange{RateLimit: new(client.Unlimited), Credits: new(client.Unlimited)})
			key := confirmed(apis[0].CreateKey(t.Context(), "ada"))(t).Key.Reveal()
			var checkers []*checker
			for _, r := range a.replicas {
				checkers = append(checkers, newChecker(t, r))
			}
			for round := range 20 {
				old := key
				a.decides(t, checkers, old, 200)
				made, err := apis[round%replicas].RegenerateKey(t.Context(), "ada", "")
				if err != nil || !made.Confirmed || made.Replicas.Total != replicas {
					t.Fatalf("round %d: %+v %v", round, made.Enforcement, err)
				}
				key = made.Value.Key.Reveal()
				a.decides(t, checkers, old, 401)
				a.decides(t, checkers, key, 200)
			}
			confirmed(apis[replicas-1].ChangeAccount(t.Context(), "acme", client.AccountChange{Status: new("suspended")}))(t)
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
		verified, failed := a.api(i, operatorToken, client.Options{}).VerifyKey(t.Context(), client.Question{Key: client.NewSecret(key)})
		if err = errors.Join(err, failed); err != nil || int32(status) != want || verified.Status != int(want) || verified.Valid != (want == 200) {
			t.Errorf("replica %d: a Check %d, a verification %d, want %d: %v", i, status, verified.Status, want, err)
		}
	}
}

// makeAda makes the user ada, with all that a user needs, on a plan.
func (a *administered) makeAda(plan client.PlanChange) {
	a.t.Helper()
	api, ctx := a.api(0, operatorToken, client.Options{}), a.t.Context()
	confirmed(api.SetPlan(ctx, "pro", plan))(a.t)
	confirmed(api.SetAccount(ctx, "acme", client.AccountChange{Plan: new("pro")}))(a.t)
	confirmed(api.SetUser(ctx, "ada", client.UserChange{Account: new("acme")}))(a.t)
}

// granted returns the credits that ada was granted.
func (a *administered) granted() int64 {
	a.t.Helper()
	balance, err := a.api(len(a.apis)-1, operatorToken, client.Options{}).Credits(a.t.Context(), "ada")
	if err != nil {
		a.t.Fatal(err)
	}
	return balance.Granted
}

// A grant that is called several times at once on two replicas, by callers of whom some leave, is
// made once.
func TestAChangeOnSeveralReplicasAtOnceIsMadeOnce(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, partstest.Database(t, 18), 2)
	a.makeAda(client.PlanChange{})
	const grants = 40
	var all sync.WaitGroup
	for i := range grants {
		once := fmt.Sprint("invoice-", i)
		call := func(ctx context.Context) error {
			api := a.api(rand.IntN(2), operatorToken, client.Options{Attempts: 100, Pause: 10 * time.Millisecond}) // too many calls at once are refused
			_, err := api.Once(once).GrantCredits(ctx, "ada", 3)
			return err
		}
		for range 1 + i%5 {
			all.Go(func() {
				ctx, leave := context.WithTimeout(t.Context(), rand.N(30*time.Millisecond))
				defer leave()
				_ = call(ctx) // perhaps nobody hears the answer
				if err := call(t.Context()); err != nil {
					t.Errorf("%s: %v", once, err)
				}
			})
		}
	}
	all.Wait()
	if granted := a.granted(); granted != 3*grants {
		t.Errorf("%v credits were granted, want %d", granted, 3*grants)
	}
}

// A change whose replica is killed while it is made, perhaps between its commit and its answer, is
// made once by repeating the call on another replica.
func TestAChangeWhoseReplicaIsKilledIsMadeOnce(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, partstest.Database(t, 18), 2)
	a.makeAda(client.PlanChange{})
	const grants = 50
	first, second := a.api(0, operatorToken, client.Options{Attempts: 1}), a.api(1, operatorToken, client.Options{})
	var all sync.WaitGroup
	var answered, lost atomic.Int64
	for i := range grants {
		all.Go(func() {
			once := fmt.Sprint("invoice-", i)
			_, err := first.Once(once).GrantCredits(t.Context(), "ada", 3)
			if answered.Add(1) == 1 {
				a.replicas[0].process.Kill()
			}
			if errors.As(err, new(*client.UnclearError)) {
				lost.Add(1)
			}
			if _, again := second.Once(once).GrantCredits(t.Context(), "ada", 3); again != nil {
				t.Errorf("%s: %v, then %v", once, err, again)
			}
		})
	}
	all.Wait()
	if granted := a.granted(); granted != 3*grants || lost.Load() == 0 {
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
	api := a.api(0, operatorToken, client.Options{})
	if seen, err := api.VerifyKey(t.Context(), client.Question{Key: client.NewSecret(key)}); err != nil || !seen.Valid || seen.Credits != nil {
		t.Errorf("a look: %+v %v", seen, err)
	}
	var ids []string
	for _, request := range []string{"1", "1", "2"} {
		made, err := api.VerifyKey(t.Context(), client.Question{Key: client.NewSecret(key), Charge: true, Request: request})
		if err != nil || made.Charge == nil {
			t.Fatalf("%+v %v", made, err)
		}
		ids = append(ids, made.Charge.ID)
	}
	if ids[0] == "" || ids[0] != ids[1] || ids[0] == ids[2] {
		t.Errorf("the charges are %v", ids)
	}
	partstest.EventuallyNil(t, "the ledger has both with an outcome", func() error {
		if b, err := api.Credits(t.Context(), "ada"); err != nil || b.Used != 2 || b.Unreported != 0 || b.Refunded != 0 {
			return fmt.Errorf("%+v %w", b, err)
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
	a.makeAda(client.PlanChange{})
	api := a.api(0, operatorToken, client.Options{})
	confirmed(api.SetPlan(t.Context(), "free", client.PlanChange{APIAccess: new(false)}))(t)
	confirmed(api.SetAccount(t.Context(), "acme", client.AccountChange{Plan: new("free")}))(t)
	key := confirmed(api.CreateKey(t.Context(), "ada"))(t).Key.Reveal()
	checkers := []*checker{newChecker(t, a.replicas[0])}
	a.decides(t, checkers, key, 403)
	paid := `{"id": "evt_1", "type": "subscription.updated", "account": "acme", "plan": "pro"}`
	bought := `{"id": "evt_2", "type": "credits.bought", "user": "ada", "credits": 500}`
	deliver(paid, bought, paid)
	a.decides(t, checkers, key, 200)
	deliver(bought)
	if granted := a.granted(); granted != 500 {
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
	confirmed(a.api(0, operatorToken, client.Options{}).ChangeUser(t.Context(), "ada", client.UserChange{Kind: new("service")}))(t)
}

// admits returns nil if a token opens the API.
func (a *administered) admits(token string) error {
	a.t.Helper()
	_, err := a.api(0, token, client.Options{}).Replicas(a.t.Context())
	return err
}

// The API has a port of its own, its tokens are reread, and a file with a mistake changes nothing.
// The service stops in good order while a caller is connected.
func TestTheAPIHasAPortAndTokensOfItsOwn(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, "", 1)
	if _, err := a.api(0, operatorToken, client.Options{}).Replicas(t.Context()); err != nil {
		t.Fatal(err)
	}
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
		return a.admits(next)
	})
	if err := a.admits(operatorToken); !errors.Is(err, client.ErrUnauthorized) {
		t.Errorf("the old token: %v", err)
	}
	if err := os.WriteFile(a.tokens, []byte("billing: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.reloadsTo(t, "refused", 1)
	if err := a.admits(next); err != nil {
		t.Errorf("after a mistake in the file: %v", err)
	}
	if err := os.WriteFile(a.tokens, nil, 0o600); err != nil { // the only way out after a leak
		t.Fatal(err)
	}
	partstest.EventuallyNil(t, "nobody is admitted", func() error {
		if err := a.admits(next); !errors.Is(err, client.ErrUnauthorized) {
			return fmt.Errorf("the answer is %w", err)
		}
		return nil
	})
	process := a.replicas[0].process
	process.Stop()
	if out := process.Output(); !strings.Contains(out, `"msg":"stopped"`) {
		t.Errorf("it did not stop in good order:\n%s", out)
	}
}
