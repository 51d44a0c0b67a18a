package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// either returns the value for the short or the full form of a test.
func either[T any](short, full T) T {
	if long {
		return full
	}
	return short
}

// shortLease is a lease that ends during many of the faults.
const shortLease = 300 * time.Millisecond

// When a regeneration returns, no replica admits the old key any more, whatever faults the networks
// between the replicas and PostgreSQL have. KEYPORTER_SEED repeats a schedule of faults.
func TestNoFaultOfTheNetworkKeepsAnOldKeyAlive(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	for _, replicas := range either([]int{3}, []int{3, 5}) {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) {
			c, faults := startFaulty(t, keyporter(t), replicas)
			c.perReplica = either(100, 300)
			users := c.enrol(either(24, 32))
			began := time.Now()
			c.drive(users, func(user int) bool {
				if long {
					return c.regenerated.Load() < 5_000 || c.old.total() < 2_500_000
				}
				// On a busy machine, so many users can keep every replica from renewing such a
				// short lease: then half of the users stop.
				rounds := int(time.Since(began) / (6 * time.Second))
				return rounds == 0 || c.live.n[allowed].Load() == 0 && rounds < 20 && user <= len(users)>>rounds
			})
			c.judge()
			t.Logf("in %v; faults: %v; notifications lost: %d", time.Since(began).Round(time.Second), faults, c.lost())
			if n := c.old.n[other].Load(); n > 0 {
				t.Errorf("%d requests with an old key were not answered, want none", n)
			}
		})
	}
}

// The same test fails for programs that lack a part of the protocol. It takes minutes, so `make
// revocation` runs it. Every run of TestLinearizableFindsWhatIsBroken tries one such program.
func TestWithoutTheBarrierOldKeysAreAdmitted(t *testing.T) {
	if !long {
		t.Skip("takes minutes: make revocation runs it")
	}
	for _, m := range mutants {
		t.Run(m.Name, func(t *testing.T) {
			c, _ := startFaulty(t, mutant(t, m), 3)
			c.perReplica, c.mayFail = 60, true
			users := c.enrol(24)
			limit := time.Now().Add(10 * time.Minute) // the slowest one took up to three
			c.drive(users, func(int) bool { return c.old.n[allowed].Load() == 0 && time.Now().Before(limit) })
			c.report()
			if c.old.n[allowed].Load() == 0 {
				t.Error("no old key was admitted, so the test of the promise would not notice a broken one")
			}
		})
	}
}

// mutants are programs that each lack a part of the protocol.
var mutants = []partstest.Mutation{
	{Name: "no barrier", File: "store/feed/confirm.go", Marker: "rule 8: barrier", New: "_, c, err := barrier, lease.Confirmation{}, error(nil)"},
	{Name: "a barrier that does not wait for the silent", File: "store/lease/barrier.go", Marker: "rule 8: the silent", New: "if time.Since(seen) >= 50*time.Millisecond {"},
	{Name: "no lease", File: "store/lease/lease.go", Marker: "rule 1: its end", New: "return now > 0"},
	{Name: "changes are not followed", File: "store/lease/lease.go", Marker: "rule 4: fresh", New: "func (l *Lease) Fresh(*Stamp) bool { return true }"},
	{Name: "a lease that is longer than it says", File: "store/lease/lease.go", Marker: "rule 1: from before sending", New: "l.extend(sent + l.config.Life*3/2)"},
	{Name: "a lease counted from the reply", File: "store/lease/lease.go", Marker: "rule 1: from before sending", New: "l.extend(max(sent, l.config.Clock()) + l.config.Life)"},
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startFaulty starts replicas that each have a faulty link to PostgreSQL, and one more without
// faults, where keys are regenerated.
func startFaulty(t *testing.T, program string, replicas int) (*campaign, *counts) {
	t.Helper()
	seed := rand.Uint64()
	if faultSeed != "" {
		var err error
		if seed, err = strconv.ParseUint(faultSeed, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KEYPORTER_SEED=%d", seed)
	server := partstest.Postgres(t, 18)
	c := startCampaign(t, program, server, partstest.Database(t, 18), replicas, shortLease)
	faults := &counts{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, l := range c.links {
		wg.Go(func() { l.misbehave(ctx, seed+uint64(i), 3*shortLease, faults) })
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return c, faults
}

// startCampaign starts replicas that each have a link, without faults so far, and one more without
// a link.
func startCampaign(t *testing.T, program string, server *parts.Postgres, database string, replicas int, lease time.Duration, flags ...string) *campaign {
	t.Helper()
	flags = append(flags, "--lease", lease.String(), "--log-level", "warn")
	s := start(t, stackConfig{program: program, database: database, noEnvoy: true, flags: flags})
	c := &campaign{t: t, s: s, server: server, page: s.replicas[0].page}
	for range replicas {
		l := startLink(t, server.Addr())
		s.database = l.through(database)
		r := s.serve(flags...)
		s.replicas, c.links, c.checkers = append(s.replicas, r), append(c.links, l), append(c.checkers, newChecker(t, r))
	}
	s.database = database
	return c
}

// campaign is many users who concurrently regenerate their keys, and ask all replicas for the old
// ones after each return.
type campaign struct {
	t        *testing.T
	s        *stack
	server   *parts.Postgres
	page     string // host:port where keys are regenerated
	links    []*link
	checkers []*checker

	perReplica  int  // requests with an old key to each replica after each return
	mayFail     bool // regenerations may fail, and are then retried
	front       bool // also try old keys through Envoy
	regenerated atomic.Int64
	commands    atomic.Int64 // regenerations by command
	failed      atomic.Int64 // failed tries
	old, live   answers
	slowest     atomic.Int64 // slowest regeneration in nanoseconds
}

// Kinds of answers to a Check.
const (
	allowed = iota
	denied  // 401
	unsure  // 503
	other
)

// answers counts answers.
type answers struct{ n [other + 1]atomic.Int64 }

func (a *answers) add(status int, err error) {
	switch {
	case err == nil && status == 200:
		a.n[allowed].Add(1)
	case err == nil && status == 401:
		a.n[denied].Add(1)
	case err == nil && status == 503:
		a.n[unsure].Add(1)
	default:
		a.n[other].Add(1)
	}
}

func (a *answers) total() (sum int64) {
	for i := range a.n {
		sum += a.n[i].Load()
	}
	return sum
}

func (a *answers) String() string {
	return fmt.Sprintf("%d (%d allowed, %d 401, %d 503, %d without an answer)",
		a.total(), a.n[allowed].Load(), a.n[denied].Load(), a.n[unsure].Load(), a.n[other].Load())
}

func (c *campaign) lost() (sum int64) {
	for _, l := range c.links {
		sum += l.lost.Load()
	}
	return sum
}

func (c *campaign) report() {
	c.t.Helper()
	c.t.Logf("%d regenerations (%d by command), the slowest took %v, %d tries failed; requests with an old key after the return: %v; with a live key: %v",
		c.regenerated.Load(), c.commands.Load(), time.Duration(c.slowest.Load()).Round(time.Millisecond), c.failed.Load(), &c.old, &c.live)
}

// judge reports, and fails the test unless the promise was kept and put to the test.
func (c *campaign) judge() {
	c.t.Helper()
	c.report()
	if c.old.n[allowed].Load() > 0 || c.live.n[denied].Load() > 0 {
		c.t.Errorf("%d old keys admitted, %d live keys refused: want none", c.old.n[allowed].Load(), c.live.n[denied].Load())
	}
	if c.live.n[allowed].Load() == 0 || c.regenerated.Load() == 0 || c.old.total() == 0 {
		c.t.Error("no key was ever cached and replaced, so the test proves nothing")
	}
}

// during makes users regenerate their keys, with pauses of up to a length, until disrupt returns.
func (c *campaign) during(users []*regenerator, longest time.Duration, disrupt func()) {
	c.t.Helper()
	var over atomic.Bool
	var disruptor sync.WaitGroup
	disruptor.Go(func() {
		defer over.Store(true)
		disrupt()
	})
	defer disruptor.Wait()
	c.drive(users, func(int) bool {
		time.Sleep(rand.N(longest))
		return !over.Load()
	})
}

// drive makes users regenerate their keys while more(user) is true.
func (c *campaign) drive(users []*regenerator, more func(user int) bool) {
	c.t.Helper()
	var wg sync.WaitGroup
	for i, u := range users {
		wg.Go(func() {
			for round := 1; more(i) && !c.t.Failed(); round++ {
				u.round(round%either(5, 50) == 0)
			}
		})
	}
	wg.Wait()
}

// enrol creates users, each with a session and a key that is not in use yet.
func (c *campaign) enrol(users int) []*regenerator {
	c.t.Helper()
	database := c.s.database[strings.LastIndex(c.s.database, "/")+1:]
	database, _, _ = strings.Cut(database, "?")
	c.s.run("plan", "set", "pro", "--rate-limit", "unlimited")
	c.s.run("account", "set", "acme", "--plan", "pro")
	if _, err := c.server.SQL(c.t.Context(), database, fmt.Sprintf(`
		INSERT INTO users (name, kind, account, status) SELECT 'user' || i, 'person', 'acme', 'active' FROM generate_series(1, %[1]d) i;
		INSERT INTO keys (id, user_name, digest, created_at) SELECT 'key' || i, 'user' || i, sha256(('key' || i)::bytea), 0 FROM generate_series(1, %[1]d) i`,
		users)); err != nil {
		c.t.Fatal(err)
	}
	all := make([]*regenerator, users)
	var wg sync.WaitGroup
	turns := make(chan struct{}, 4)
	for i := range all {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			all[i] = &regenerator{c: c, name: fmt.Sprintf("user%d", i+1)}
			all[i].cookie = c.s.session(all[i].name)
		})
	}
	wg.Wait()
	return all
}

// regenerator is one user.
type regenerator struct {
	c            *campaign
	name, cookie string
	key          string
	dead         []string // revoked keys, the latest last
}

// round warms all caches with the live key, replaces it, and asks for the revoked keys.
func (u *regenerator) round(byCommand bool) {
	c := u.c
	during := make(chan struct{})
	if u.key != "" {
		u.askAll(u.key, &c.live, 1)
		go func() { // in flight while the key is replaced: either answer is right
			defer close(during)
			u.askAll(u.key, &answers{}, 3)
		}()
	} else {
		close(during)
	}
	began := time.Now()
	fresh, ok := u.regenerate(byCommand)
	if took := int64(time.Since(began)); took > c.slowest.Load() {
		c.slowest.Store(took)
	}
	<-during
	if u.key != "" {
		u.dead = append(u.dead, u.key)
	}
	u.key = fresh // empty on failure
	if !ok {
		return // the old key may be revoked or not; the next regeneration revokes it
	}
	c.regenerated.Add(1)
	if len(u.dead) > 0 {
		u.askAll(u.dead[len(u.dead)-1], &c.old, c.perReplica*9/10)
		// has any earlier key come back?
		u.askAll(u.dead[rand.IntN(len(u.dead))], &c.old, c.perReplica/10)
		if c.front {
			c.old.add(c.s.get("/api/v1/brands", u.dead[len(u.dead)-1]))
		}
		u.dead = u.dead[max(0, len(u.dead)-8):]
	}
}

// askAll asks each replica for a key between one and n times, for at most the time in which a lease
// ends: a replica without a lease is slow to answer each 503.
func (u *regenerator) askAll(key string, into *answers, n int) {
	const width = 4 // concurrent requests per replica
	limit := time.Now().Add(shortLease)
	var wg sync.WaitGroup
	for _, checker := range u.c.checkers {
		for i := range min(width, n) {
			wg.Go(func() {
				for j := i; j < n && (j == i || time.Now().Before(limit)); j += width {
					into.add(checker.key(key))
				}
			})
		}
	}
	wg.Wait()
}

// regenerate replaces the key on the page, or by a command. It must succeed and be confirmed unless
// the campaign may fail.
func (u *regenerator) regenerate(byCommand bool) (key string, ok bool) {
	if byCommand {
		u.c.commands.Add(1)
		out, problems, status := u.c.s.try("key", "regenerate", u.name, "--output", "json")
		return u.regenerated(out, problems, status == 0)
	}
	status, body, err := postRegenerate(u.c.page, u.cookie)
	return u.regenerated(body, fmt.Sprint(status, err), err == nil && status == http.StatusOK)
}

func (u *regenerator) regenerated(body, problem string, ok bool) (string, bool) {
	var made struct {
		Key       string
		Confirmed bool
	}
	if ok {
		ok = json.Unmarshal([]byte(body), &made) == nil && made.Key != "" && made.Confirmed
	}
	if !ok {
		u.c.failed.Add(1)
		if !u.c.mayFail {
			u.c.t.Errorf("%s: regenerating failed: %s %s", u.name, problem, body)
		}
		return "", false
	}
	return made.Key, ok
}

// pages is the client for sequential requests on few connections.
var pages = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}, Timeout: 90 * time.Second}

// postRegenerate regenerates the key of a session's user on the page at an address.
func postRegenerate(page, cookie string) (status int, body string, err error) {
	request, err := http.NewRequest(http.MethodPost, "http://"+page+"/api/regenerate", nil)
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Cookie", cookie)
	response, err := pages.Do(request)
	if err != nil {
		return 0, "", err
	}
	return read(response)
}

func read(response *http.Response) (status int, body string, err error) {
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), errors.Join(err, response.Body.Close())
}
