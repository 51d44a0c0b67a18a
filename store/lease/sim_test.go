package lease_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/store/lease"
)

// The simulation runs the product's own leases, caches and barriers on a model of the database and
// of the network, in virtual time. A schedule is everything that happens with one seed.
//
// The same seed gives the same answers at the same times, with one exception: names share slots of
// a view differently in each process. Two of the few names here do so once in a thousand processes;
// then an answer is read again without need.
const (
	hosts    = 3
	writers  = 3
	life     = time.Second
	schedule = 10 * time.Second
	// drift is the relative error of clocks.
	drift = 0.01 // margin: drift
)

// The actors that draw random numbers.
const (
	actorTraffic int64 = iota
	actorHost
	actorCuts
	actorPauses
	actorProcess
	actorGate
	actorClock
	actorRegister
	actorRenew
	actorNews
	actorAck
	actorLeave
	actorFind
	actorWriter
	actorHint
	actorOperator
)

// faults says what goes wrong, and how often.
type faults struct {
	spikes    float64       // slow messages
	hints     float64       // lost hints
	unlucky   float64       // messages just after which the network breaks
	preempted float64       // readings of the clock around which the goroutine is preempted
	breakOff  float64       // calls that the client aborts and repeats
	cuts      time.Duration // between two cuts of a host's network; never if 0
	pauses    time.Duration // between two pauses of a process
	restarts  time.Duration // between two restarts of a process
	failOver  bool
	crashes   float64 // acknowledgements just after which the database crashes, and then the network breaks
	readOnly  bool    // renewals only read, as on SQLite
	busy      float64 // acknowledgements that fail, as on SQLite while another process writes
}

// weathers are the faults of the schedules, in turn.
var weathers = []faults{
	{restarts: 8 * time.Second},
	{spikes: 0.02, hints: 0.1, unlucky: 0.01, cuts: 3 * time.Second, restarts: 6 * time.Second, breakOff: 0.2},
	{spikes: 0.10, hints: 0.5, unlucky: 0.05, preempted: 0.005, restarts: 6 * time.Second, breakOff: 0.2},
	{spikes: 0.02, hints: 0.2, preempted: 0.01, pauses: 2 * time.Second, cuts: 5 * time.Second, restarts: 4 * time.Second, breakOff: 0.2},
	{spikes: 0.05, hints: 0.3, unlucky: 0.03, preempted: 0.003, cuts: 3 * time.Second, restarts: 6 * time.Second, failOver: true},
	{spikes: 0.05, hints: 1, unlucky: 0.10, restarts: 20 * time.Second},
	{hints: 0.9, crashes: 0.2, restarts: 20 * time.Second},
	{spikes: 0.01, hints: 0.9, unlucky: 0.10, readOnly: true, busy: 0.3, restarts: 20 * time.Second},
}

// violation begins the message about an answer that breaks the promise.
const violation = "ANSWERED BY AN OLD STATE"

// world is one schedule.
type world struct {
	dice   dice
	faults faults
	db     *database
	began  time.Time
	ctx    context.Context
	all    sync.WaitGroup
	hosts  [hosts]atomic.Pointer[process]

	mu        sync.Mutex
	confirmed versions // enforced everywhere, as confirmed to the callers
	results   map[string]string
	tally     tally
}

// tally counts what happened.
type tally struct {
	schedules                           int
	requests, old, allowed, unavailable int
	changes, unconfirmed, expired       int
	longest                             time.Duration
	violations                          []string
}

// add adds a schedule.
func (t *tally) add(u tally) {
	t.schedules++
	t.requests += u.requests
	t.old += u.old
	t.allowed += u.allowed
	t.unavailable += u.unavailable
	t.changes += u.changes
	t.unconfirmed += u.unconfirmed
	t.expired += u.expired
	t.longest = max(t.longest, u.longest)
	t.violations = append(t.violations, u.violations...)
}

func (t tally) String() string {
	return fmt.Sprintf("%d schedules of %v: %d requests, %d of them for keys that had ended before; %d answered by an old state; "+
		"%d allowed, %d without an answer; %d changes confirmed, %d not; %d leases waited for; the longest barrier took %v",
		t.schedules, schedule, t.requests, t.old, len(t.violations),
		t.allowed, t.unavailable, t.changes, t.unconfirmed, t.expired, t.longest)
}

// simulate runs a schedule. It also returns a hash of all answers.
func simulate(t *testing.T, seed int) (total tally, hash [sha256.Size]byte) {
	synctest.Test(t, func(*testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), schedule)
		defer cancel()
		w := &world{
			dice: dice(0).of(int64(seed)), faults: weathers[seed%len(weathers)], db: newDatabase(weathers[seed%len(weathers)].readOnly),
			began: time.Now(), ctx: ctx, results: map[string]string{},
		}
		w.run()
		total, hash = w.tally, w.hash()
	})
	for i, v := range total.violations {
		total.violations[i] = fmt.Sprintf("%s: KEYPORTER_SEED=%d: %s", violation, seed, v)
	}
	return total, hash
}

func (w *world) run() {
	for host := range hosts {
		l := &link{}
		w.all.Go(func() { w.host(host, l) })
		w.all.Go(func() { w.traffic(host) })
		w.each(w.faults.cuts, w.dice.of(actorCuts, int64(host)), func(r *rand.Rand) { l.cut(r, 3*life) })
		w.each(w.faults.pauses, w.dice.of(actorPauses, int64(host)), func(r *rand.Rand) {
			if p := w.hosts[host].Load(); p != nil {
				p.pause(upTo(r, 2*life))
			}
		})
		if w.faults.failOver {
			w.all.Go(func() { w.follow(l, host) })
		}
	}
	for n := range writers {
		w.all.Go(func() { w.writer(n) })
	}
	w.each(time.Second, w.dice.of(actorOperator), func(*rand.Rand) { w.db.prune() })
	w.all.Wait()
}

// each repeats an action at random intervals.
func (w *world) each(mean time.Duration, d dice, do func(*rand.Rand)) {
	if mean == 0 {
		return
	}
	w.all.Go(func() {
		for w.sleep(about(d.now(), mean)) {
			do(d.now())
		}
	})
}

// sleep reports whether the schedule continues.
func (w *world) sleep(d time.Duration) bool {
	select {
	case <-time.After(d):
		return w.ctx.Err() == nil
	case <-w.ctx.Done():
		return false
	}
}

// host runs one process after the other. It still sends requests to a process that has left.
func (w *world) host(host int, l *link) {
	d := w.dice.of(actorHost, int64(host))
	for number := int64(0); w.ctx.Err() == nil; number++ {
		p, leave := w.start(host, l, number)
		w.hosts[host].Store(p)
		w.sleep(100*time.Millisecond + about(d.now(), w.faults.restarts))
		if d.now().IntN(2) == 0 {
			leave()
			w.sleep(about(d.now(), life))
		}
		leave()
		p.crash()
		p.gone.Wait()
		p.cache.Close()
		w.sleep(about(d.now(), life/2))
	}
}

// failOverAt is when the old primary is replaced.
const failOverAt = 4 * time.Second

// follow keeps a host's connections to the old primary for a while after the failover.
func (w *world) follow(l *link, host int) {
	r := w.dice.of(actorHost, int64(host), actorOperator).now()
	if !w.sleep(failOverAt) {
		return
	}
	if host == 0 {
		w.db.failOver()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases, l.read = time.Now().Add(upTo(r, life)), time.Now().Add(upTo(r, 5*life))
}

// traffic sends requests to a host: with revoked, live and future keys.
func (w *world) traffic(host int) {
	d := w.dice.of(actorTraffic, int64(host))
	for n := 0; ; n++ {
		r := d.of(int64(n)).now()
		if !w.sleep(about(r, 5*time.Millisecond)) {
			return
		}
		p := w.hosts[host].Load()
		if p == nil {
			continue
		}
		user := r.IntN(users)
		k := key{user, w.db.state().generation[user] + []int{-1, -1, -1, 0, 0, 0, 0, 1, 1, -2}[r.IntN(10)]}
		name := fmt.Sprintf("request %d of host %d", n, host)
		under := w.faults.latency(r)
		w.all.Go(func() { w.request(p, k, name, under) })
	}
}

// request sends one request, and judges the answer by the state that was confirmed when it was
// sent.
func (w *world) request(p *process, k key, name string, under time.Duration) {
	w.mu.Lock()
	promised := w.confirmed
	w.mu.Unlock()
	sent := time.Since(w.began)
	time.Sleep(under)
	p.gate()
	ctx, cancel := context.WithTimeout(p.ctx, life)
	defer cancel()
	a, err := p.cache.Find(ctx, k.digest())
	if p.ctx.Err() != nil {
		return // a crashed process proves nothing
	}
	fault := promised.broken(k, a, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.results[name] = fmt.Sprint(time.Since(w.began), k, a, err)
	w.tally.requests++
	switch {
	case err == nil:
		w.tally.allowed++
	case !errors.Is(err, errUnknown) && !errors.Is(err, errRevoked):
		w.tally.unavailable++
	}
	if promised.generation[k.user] > k.generation {
		w.tally.old++
	}
	if fault != "" {
		w.tally.violations = append(w.tally.violations, fmt.Sprintf("%s, sent at %v, for %v: %s", name, sent, k, fault))
	}
}

// broken says how an answer breaks the promise; "" if it does not. A missing answer never does.
func (v *versions) broken(k key, a answer, err error) string {
	switch {
	case errors.Is(err, errUnknown) && v.generation[k.user] >= k.generation:
		return "unknown, after it was made"
	case err != nil:
		return ""
	case v.generation[k.user] > k.generation:
		return "allowed, after it had ended"
	case v.user[k.user] > a.userVersion:
		return "allowed by what its user was before"
	case v.account[a.account] > a.accountVersion:
		return "allowed by what its account was before"
	case v.plan[a.plan] > a.planVersion:
		return "allowed by what its plan was before"
	}
	return ""
}

// writer makes changes, one after the other, like an administrator.
func (w *world) writer(n int) {
	d := w.dice.of(actorWriter, int64(n))
	rate := 1 + drift*(2*d.now().Float64()-1)
	for i := 0; w.sleep(about(d.now(), 150*time.Millisecond)); i++ {
		w.change(d.of(int64(i)).now(), rate)
	}
}

// change makes a change. A client that aborts repeats the same call: it changes nothing then, but
// waits until the change is enforced.
func (w *world) change(r *rand.Rand, rate float64) {
	if !w.sleep(w.faults.latency(r)) {
		return
	}
	w.hint(w.db.commit(pick(r)))
	if !w.sleep(w.faults.latency(r)) {
		return
	}
	patience := 5 * time.Second
	if r.Float64() < w.faults.breakOff {
		patience = upTo(r, life)
	}
	made := w.db.state().versions
	for !w.confirm(r, rate, patience) && w.sleep(upTo(r, life/2)) { // rule 10: repeat
		patience = 5 * time.Second
	}
	w.promise(made)
}

// promise records that a state was confirmed to a caller as enforced everywhere.
func (w *world) promise(v versions) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() == nil {
		w.confirmed.raise(v)
	}
}

// pick draws a change.
func pick(r *rand.Rand) func(*facts) []string {
	u, a, p := r.IntN(users), r.IntN(accounts), r.IntN(plans)
	switch x := r.IntN(100); {
	case x < 70:
		return func(f *facts) []string { return f.regenerate(u) }
	case x < 75:
		return func(f *facts) []string { return f.move(u, a) }
	case x < 85:
		return func(f *facts) []string { return f.downgrade(a, p) }
	case x < 92:
		return func(f *facts) []string { return f.edit(p) }
	case x < 97:
		return func(f *facts) []string { return append(f.regenerate(u), f.regenerate((u+1)%users)...) }
	}
	return (*facts).everything
}

// hint announces an epoch to all hosts. Announcements may be late, or lost.
func (w *world) hint(epoch lease.Epoch) {
	for host := range hosts {
		r := w.dice.of(actorHint, int64(host), int64(epoch)).now()
		w.all.Go(func() {
			lost := r.Float64() < w.faults.hints
			p := w.hosts[host].Load()
			if lost || p == nil || !p.link.open(&p.link.back) || !w.sleep(w.faults.latency(r)) || !p.link.open(&p.link.back) {
				return
			}
			p.gate()
			p.lease.Notify(epoch)
		})
	}
}

// confirm waits until committed changes are enforced everywhere.
func (w *world) confirm(r *rand.Rand, rate float64, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	barrier := lease.Barrier{Roster: &roster{w: w, r: r, rate: rate}}
	c, err := barrier.Wait(ctx, 0)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.tally.unconfirmed++
		return false
	}
	w.tally.changes++
	w.tally.expired += c.Expired
	w.tally.longest = max(w.tally.longest, c.Took)
	return true
}

// roster is the lease.Roster of one call. A barrier has no clock of its own, so a barrier with a
// clock that is fast by a percent is simulated by leases that are a percent shorter.
type roster struct {
	w    *world
	r    *rand.Rand
	rate float64
}

func (r *roster) Roster(ctx context.Context) (lease.Roll, error) {
	if !r.under(ctx) {
		return lease.Roll{}, errLost
	}
	roll := r.w.db.roster()
	for i := range roll.Members {
		roll.Members[i].Life = time.Duration(float64(life) / r.rate)
	}
	if !r.under(ctx) {
		return lease.Roll{}, errLost
	}
	return roll, nil
}

func (r *roster) Fence(ctx context.Context, epoch lease.Epoch, ids []string) error {
	if !r.under(ctx) {
		return errLost
	}
	r.w.db.fence(epoch, ids)
	return nil
}

// under waits for the travel time of a message, and reports whether it arrives while the caller
// still waits.
func (r *roster) under(ctx context.Context) bool {
	select {
	case <-time.After(r.w.faults.latency(r.r)):
		return r.r.Float64() >= r.w.faults.unlucky/2
	case <-ctx.Done():
		return false
	}
}

// hash returns a hash of all answers.
func (w *world) hash() [sha256.Size]byte {
	var lines []string
	for name, result := range w.results {
		lines = append(lines, name+" "+result+"\n")
	}
	slices.Sort(lines)
	return sha256.Sum256(fmt.Append(nil, lines))
}

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// plan returns the schedules to run, and the time limit.
func plan(t *testing.T) (first, schedules int, limit time.Duration) {
	if first = number(t, "KEYPORTER_SEED", -1); first >= 0 {
		return first, number(t, "KEYPORTER_SCHEDULES", 1), time.Hour
	}
	if os.Getenv("KEYPORTER_LONG") != "" {
		return 0, 3000, time.Hour
	}
	if testing.Short() {
		return 0, 3000, time.Second
	}
	return 0, 3000, 8 * time.Second
}

// The promise: a request sent after a change was confirmed is not answered from the state before
// it, regardless of faults in processes, networks and clocks. The test runs as many schedules as
// fit into a few seconds; KEYPORTER_LONG=1 runs 3,000. KEYPORTER_SEED repeats one, or, with
// KEYPORTER_SCHEDULES, starts from there.
func TestNoRequestIsAnsweredByAnOldState(t *testing.T) {
	began := time.Now()
	first, schedules, limit := plan(t)
	var mu sync.Mutex
	var total tally
	var next atomic.Int64
	more := func() (n int, ok bool) {
		n = int(next.Add(1)) - 1
		return first + n, n < schedules && (n < len(weathers) || time.Since(began) < limit)
	}
	t.Run("schedules", func(t *testing.T) {
		for worker := range 2 {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for seed, ok := more(); ok && !t.Failed(); seed, ok = more() {
					one, _ := simulate(t, seed)
					mu.Lock()
					total.add(one)
					mu.Unlock()
					for _, v := range one.violations[:min(3, len(one.violations))] {
						t.Error(v)
					}
				}
			})
		}
	})
	t.Log(total)
	if total.schedules >= len(weathers) && total.allowed*6 < total.requests {
		t.Error("hardly any request was allowed: this says nothing")
	}
}

// A failure can be reproduced.
func TestAScheduleCanBeRepeated(t *testing.T) {
	for _, seed := range []int{2, 3, 4} {
		_, first := simulate(t, seed)
		if _, second := simulate(t, seed); first != second {
			t.Errorf("seed %d: other answers the second time", seed)
		}
	}
}
