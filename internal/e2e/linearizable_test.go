package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// For every user, the answers of real replicas are explained by changes that are made at one moment
// of their call and that each replica applies at one moment of it: see [world]. Changes run
// concurrently, by commands and on the page, also for the same user, while all replicas are asked
// all the time, replicas pause and connections to the database are killed.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	limit := 5 * time.Second
	if long {
		limit = 90 * time.Second
	}
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait for paused replicas
			c := recordConfig{stack: stackConfig{database: database(t)}, limit: limit, judgeTime: time.Minute}
			if name != "SQLite" {
				c.stack.replicas, c.killBackends = most, true
			}
			r := record(t, c)
			t.Logf("%s; %d are not linearizable", r.summary(), len(r.illegal))
			for _, h := range r.illegal {
				t.Errorf("not linearizable:\n%s", h.explain(c.judgeTime))
			}
			for _, status := range []int{200, 401, 403} {
				if r.answers[status] == 0 {
					t.Errorf("no check was answered with %d, so the histories prove too little", status)
				}
			}
		})
	}
}

// The test finds a replica or command that breaks its promise: each of these programs has one line
// changed. The short form also tries the first one.
func TestLinearizableFindsWhatIsBroken(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	for i, bug := range bugs {
		if i > 0 && !long {
			return
		}
		t.Run(bug.Name, func(t *testing.T) {
			t.Parallel()
			r := record(t, recordConfig{
				stack: stackConfig{database: partstest.Database(t, 18), replicas: most, program: mutant(t, bug)},
				limit: time.Minute, judgeTime: 5 * time.Second, killBackends: true, untilIllegal: true,
			})
			if len(r.illegal) == 0 {
				t.Fatalf("%s; all are linearizable, want one that is not", r.summary())
			}
			t.Logf("%s; %d are not linearizable", r.summary(), len(r.illegal))
		})
	}
}

var lanes = either(6, 12) // concurrent users

const (
	changesPerWriter = 10                     // keeps a user's history short
	outlastedLease   = 500 * time.Millisecond // so that pauses last longer than the lease
)

// recordConfig configures a recording.
type recordConfig struct {
	stack        stackConfig
	limit        time.Duration // how long new users are added
	judgeTime    time.Duration // limit for one history
	killBackends bool          // kill connections at PostgreSQL
	untilIllegal bool          // end at the first history that is not linearizable
}

// recorder records the histories of many users, a few at a time, and judges each once it is
// complete.
type recorder struct {
	config   recordConfig
	t        *testing.T
	s        *stack
	checkers []*checker // one per replica
	page     *http.Client
	began    time.Time
	ctx      context.Context // ends when no more users are added
	cancel   context.CancelFunc
	took     time.Duration

	mu                            sync.Mutex
	users, changes, lost, longest int
	slowest                       time.Duration // longest time to judge a history
	answers                       map[int]int   // status → number of checks
	illegal                       []*history
}

// record starts a stack and returns once all histories are judged.
func record(t *testing.T, c recordConfig) *recorder {
	t.Helper()
	c.stack.noEnvoy, c.stack.flags = true, []string{"--lease", outlastedLease.String()}
	r := &recorder{config: c, t: t, s: start(t, c.stack), page: &http.Client{Timeout: time.Minute}, answers: map[int]int{}}
	for _, replica := range r.s.replicas {
		r.checkers = append(r.checkers, newChecker(t, replica))
	}
	r.s.run("plan", "set", "free", "--api-access=false")
	r.began = time.Now()
	r.ctx, r.cancel = context.WithTimeout(t.Context(), c.limit)
	defer r.cancel()
	trouble, stop := context.WithCancel(t.Context())
	var lanesDone, troubleDone sync.WaitGroup
	for lane := range lanes {
		lanesDone.Go(func() {
			for n := 0; r.ctx.Err() == nil; n++ {
				r.user(fmt.Sprintf("u%d-%d", lane, n))
			}
		})
	}
	troubleDone.Go(func() { r.pauseReplicas(trouble) })
	if c.killBackends {
		troubleDone.Go(func() { r.terminateBackends(trouble) })
	}
	lanesDone.Wait()
	r.took = time.Since(r.began)
	stop()
	troubleDone.Wait()
	r.page.CloseIdleConnections()
	return r
}

func (r *recorder) summary() string {
	checks := 0
	for _, n := range r.answers {
		checks += n
	}
	return fmt.Sprintf("%v: %d operations, %d partitions of one user each with at most %d steps, judged within %v; %d changes, %d of them with unknown outcome, and %d checks, by status %v",
		r.took.Round(time.Millisecond), r.changes+checks, r.users, r.longest, r.slowest.Round(time.Millisecond), r.changes, r.lost, checks, r.answers)
}

// pauseReplicas pauses one replica after the other, sometimes for longer than its lease.
func (r *recorder) pauseReplicas(ctx context.Context) {
	for n := 0; sleep(ctx, rand.N(time.Second)); n++ {
		length := rand.N(outlastedLease / 2)
		if n%4 == 1 {
			length = outlastedLease * 3 / 2
		}
		process := r.s.replicas[rand.IntN(len(r.s.replicas))].process
		process.Pause()
		sleep(ctx, length)
		process.Resume()
	}
}

// terminateBackends kills a few random connections to the database now and then.
func (r *recorder) terminateBackends(ctx context.Context) {
	server := partstest.Postgres(r.t, 18)
	name, _, _ := strings.Cut(r.s.database[strings.LastIndex(r.s.database, "/")+1:], "?")
	for sleep(ctx, rand.N(time.Second)) {
		_, err := server.SQL(ctx, name, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 3`)
		if err != nil && ctx.Err() == nil {
			r.t.Error(err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) (slept bool) {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// user records the history of one user, judges it, and counts it. A user whose creation fails
// because of a fault is skipped.
func (r *recorder) user(name string) {
	l := &life{r: r, name: name, h: &history{replicas: len(r.s.replicas), clock: func() time.Duration { return time.Since(r.began) }}}
	if !l.begin() {
		return
	}
	asking, stop := context.WithCancel(r.t.Context())
	var writers, askers sync.WaitGroup
	for range 1 + rand.IntN(2) {
		writers.Go(l.write)
	}
	for i := range r.checkers {
		askers.Go(func() {
			for sleep(asking, rand.N(30*time.Millisecond)) {
				l.ask(i, l.someKey())
			}
		})
	}
	writers.Wait()
	stop()
	askers.Wait()
	l.converge()
	complete := time.Now()
	result := l.h.judge(r.config.judgeTime)
	r.count(l.h, result, time.Since(complete))
}

func (r *recorder) count(h *history, result porcupine.CheckResult, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users++
	r.slowest = max(r.slowest, took)
	r.lost += h.lost
	r.longest = max(r.longest, len(h.steps))
	for _, o := range h.steps {
		switch o.Input.(step).kind {
		case made:
			r.changes++
		case asked:
			r.answers[o.Output.(int)]++
		}
	}
	switch result {
	case porcupine.Illegal:
		r.illegal = append(r.illegal, h)
		if r.config.untilIllegal {
			r.cancel()
		}
	case porcupine.Unknown:
		if r.config.untilIllegal {
			// the history of a broken program may take too long to judge; another one will do
			return
		}
		r.t.Errorf("a history of %d steps was not judged within %v", len(h.steps), r.config.judgeTime)
	}
}

// life is one user, with an account and a plan of their own, from their first key on.
type life struct {
	r    *recorder
	name string
	h    *history
	// asking is held by the writer that asks a replica; other writers skip that replica. This keeps
	// the number of open checks low, because the time to judge a history grows with the sets that
	// they can form.
	asking [most]sync.Mutex

	mu     sync.Mutex
	keys   map[int]string // number → key, of the confirmed keys that were handed out
	cookie string
	away   bool // as far as the writers know, there is no user or no key
}

// begin creates the user, before the history begins.
func (l *life) begin() bool {
	for _, args := range [][]string{
		{"plan", "set", l.name, "--rate-limit", "unlimited"}, {"account", "set", l.name, "--plan", l.name}, {"user", "set", l.name, "--account", l.name},
	} {
		if _, _, status := l.r.s.try(args...); status != 0 {
			return false
		}
	}
	out, _, status := l.r.s.try("key", "create", l.name, "--output", "json")
	if status != 0 {
		return false
	}
	l.keys = map[int]string{1: keyIn(out)}
	l.login()
	return true
}

// login creates a session for the page. If that fails, the page rejects the user, which changes
// nothing.
func (l *life) login() {
	out, _, status := l.r.s.try("session", "create", l.name, "--insecure-cookies", "--output", "json")
	if status != 0 {
		return
	}
	var session struct{ Cookie string }
	l.r.s.decode(out, &session)
	l.mu.Lock()
	l.cookie = session.Cookie
	l.mu.Unlock()
}

// keyIn returns the key from the JSON output of a command or the page.
func keyIn(document string) string {
	var result struct{ Key string }
	_ = json.Unmarshal([]byte(document), &result) // then "", which no checker uses
	return result.Key
}

// write makes changes, and asks every replica right after the return of each.
func (l *life) write() {
	for range changesPerWriter {
		if l.r.config.untilIllegal && l.r.ctx.Err() != nil {
			return // found in another history
		}
		v := l.next()
		o := l.h.change(v, func(key int) outcome { return l.make(v, key) })
		l.mu.Lock()
		switch {
		case v == remove && o == done, v == regenerate && o == refused:
			l.away = true
		case v == create:
			l.away = false
		}
		l.mu.Unlock()
		if v == admit {
			l.login()
		}
		l.askEverywhere()
		time.Sleep(rand.N(30 * time.Millisecond))
	}
}

// next chooses the next change, mostly one that reveals a lagging replica.
func (l *life) next() verb {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away {
		return []verb{admit, create}[rand.IntN(2)]
	}
	choices := []verb{planOff, planOn, toFree, toOwn, toOwn, planOn, remove}
	if n := rand.IntN(2 * len(choices)); n < len(choices) {
		return choices[n]
	}
	return regenerate
}

// make makes one change and returns its outcome.
func (l *life) make(v verb, key int) outcome {
	if v == regenerate && rand.IntN(4) > 0 {
		return l.onPage(key)
	}
	out, problems, status := l.r.s.try(append(slices.Clone(commands[v](l.name)), "--output", "json")...)
	switch {
	case status == 0:
		l.handOut(key, out)
		return done
	case strings.Contains(problems, "not found") || strings.Contains(problems, "exists already"):
		return refused
	}
	return unknown
}

var commands = map[verb]func(user string) []string{
	regenerate: func(user string) []string { return []string{"key", "regenerate", user} },
	create:     func(user string) []string { return []string{"key", "create", user} },
	remove:     func(user string) []string { return []string{"user", "delete", user} },
	admit:      func(user string) []string { return []string{"user", "set", user, "--account", user} },
	planOff:    func(user string) []string { return []string{"plan", "set", user, "--api-access=false"} },
	planOn:     func(user string) []string { return []string{"plan", "set", user, "--api-access=true"} },
	toFree:     func(user string) []string { return []string{"account", "set", user, "--plan", "free"} },
	toOwn:      func(user string) []string { return []string{"account", "set", user, "--plan", user} },
}

// onPage regenerates the key on the page of some replica.
func (l *life) onPage(key int) outcome {
	replica := l.r.s.replicas[rand.IntN(len(l.r.s.replicas))]
	request, err := http.NewRequestWithContext(l.r.t.Context(), http.MethodPost, "http://"+replica.page+"/api/regenerate", nil)
	if err != nil {
		l.r.t.Error(err)
		return unknown
	}
	l.mu.Lock()
	request.Header.Set("Cookie", l.cookie)
	l.mu.Unlock()
	response, err := l.r.page.Do(request)
	if err != nil {
		return unknown
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	var result struct{ Confirmed bool }
	switch {
	case err != nil:
		return unknown
	case response.StatusCode == http.StatusUnauthorized || response.StatusCode == http.StatusConflict:
		return refused
	case response.StatusCode != http.StatusOK || json.Unmarshal(body, &result) != nil || !result.Confirmed:
		return unknown
	}
	l.handOut(key, string(body))
	return done
}

// handOut makes a key available to the checks.
func (l *life) handOut(number int, document string) {
	if key := keyIn(document); key != "" {
		l.mu.Lock()
		l.keys[number] = key
		l.mu.Unlock()
	}
}

// newest returns the numbers of the latest keys, the last one first.
func (l *life) newest(most int) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	numbers := slices.Sorted(maps.Keys(l.keys))
	slices.Reverse(numbers)
	return numbers[:min(most, len(numbers))]
}

// someKey returns the number of the newest key in most cases, otherwise of an earlier one.
func (l *life) someKey() int {
	latest := l.newest(1 + rand.IntN(3))
	return latest[rand.IntN(len(latest))]
}

func (l *life) ask(replica, number int) (int, error) {
	l.mu.Lock()
	key := l.keys[number]
	l.mu.Unlock()
	return l.h.check(replica, number, func() (int, error) { return l.r.checkers[replica].key(key) })
}

// askEverywhere asks every replica about the key just revoked, and about the new one.
func (l *life) askEverywhere() {
	numbers := l.newest(2)
	slices.Sort(numbers)
	var wg sync.WaitGroup
	for replica := range l.r.checkers {
		if !l.asking[replica].TryLock() {
			continue
		}
		wg.Go(func() {
			defer l.asking[replica].Unlock()
			for _, number := range numbers {
				l.ask(replica, number)
			}
		})
	}
	wg.Wait()
}

// converge asks every replica until it decides, so that a history ends with the final decision of
// each.
func (l *life) converge() {
	for replica := range l.r.checkers {
		for _, number := range l.newest(4) {
			for range 10 {
				if status, err := l.ask(replica, number); err == nil && status != 503 {
					break
				}
			}
		}
	}
}

// bugs are programs whose histories are not linearizable.
var bugs = []partstest.Mutation{
	{Name: "cached entries are used after a change", File: "store/lease/lease.go", Marker: "rule 4: fresh", New: "func (l *Lease) Fresh(*Stamp) bool { return true }"},
	{Name: "a change does not wait for the replicas", File: "store/lease/barrier.go", Marker: "rule 8: wait", New: "for false {"},
	{Name: "a lease never ends", File: "store/lease/lease.go", Marker: "rule 1: its end", New: "return now > 0"},
}
