package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/meter/settle"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// account is the complete model of one charge: the first outcome decides, the upstream may ask for
// a refund or for a larger one later, and closing the month may refund a charge without a reported
// outcome.
type account struct {
	known bool  // its outcome was reported
	back  int64 // credits that came back
	after bool  // all came back by closing its month
}

func (a *account) outcome(refund int64, settled, closed bool) {
	if closed && !a.known {
		return // refunded when the month was closed
	}
	if settled || !a.known {
		a.back = max(a.back, refund)
	}
	a.known = true
}

// charge is a charged request, and its model.
type charge struct {
	usage.Charge
	rule    usage.RefundRule
	account account
	lost    bool // its replica was killed
}

// money is a random history of charges: a few replicas on one database, and requests of their users
// with random endings.
type money struct {
	t        testing.TB
	rand     *rand.Rand
	db       *store.DB
	url      string
	signer   *receipt.Signer
	clock    time.Duration // how far the clock was moved forward
	replicas []*house
	faulty   bool // reports fail now and then, posted or not
	charges  []*charge
	requests int
	flushes  uint64
	closed   usage.Month // 0: none
}

// house is the part of a replica that charges.
type house struct {
	db      *store.DB
	credits *credits.Allocator
	meter   *meter.Meter
	settle  http.Handler
	stop    func()
	turning sync.RWMutex // held while the clock changes
	killed  atomic.Bool
	faulty  atomic.Bool
}

var errLine = errors.New("the line was cut")

// Report implements [credits.Ledger] over a connection that fails now and then, before or after the
// report.
func (h *house) Report(ctx context.Context, r ledger.Report) (ledger.Result, error) {
	if h.killed.Load() {
		// nobody receives it
		return ledger.Result{Now: time.Now(), Grants: make([]ledger.Grant, len(r.Asks))}, nil
	}
	fate := rand.N(40)
	if h.faulty.Load() && fate == 0 {
		return ledger.Result{}, errLine
	}
	h.turning.RLock()
	result, err := storeledger.New(h.db).Report(ctx, r)
	h.turning.RUnlock()
	if h.faulty.Load() && fate == 1 {
		return ledger.Result{}, errLine
	}
	return result, err
}

func (h *house) Recalled(ctx context.Context) ([]ledger.Pool, error) {
	h.turning.RLock()
	defer h.turning.RUnlock()
	return storeledger.New(h.db).Recalled(ctx)
}

func (m *money) open() {
	h := &house{db: storetest.Open(m.t, store.Config{URL: m.url})}
	h.faulty.Store(m.faulty)
	storetest.SetClock(h.db, m.clock)
	h.credits = credits.New(credits.Config{Ledger: h, Log: slog.New(slog.DiscardHandler)})
	h.meter = meter.New(meter.Config{Limiter: ratelimit.NewMemory(nil), Credits: h.credits, Signer: m.signer})
	h.settle = settle.New(settle.Config{
		Opens: func([]string) bool { return true }, Parse: m.signer.ParseID, Settle: h.meter.Settle,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.credits.Run(ctx) }()
	h.stop = sync.OnceFunc(func() { cancel(); <-done })
	m.t.Cleanup(h.stop)
	m.replicas = append(m.replicas, h)
}

func (m *money) someone() *house { return m.replicas[m.rand.IntN(len(m.replicas))] }

// flush posts all outcomes that the replicas have received.
func (m *money) flush() {
	for _, h := range m.replicas {
		m.flushes++
		r := receipt.Receipt{Holder: "flush", Number: m.flushes, User: "nobody", Account: "nobody"}
		if _, err := h.meter.Settle(m.t.Context(), r, 0); err != nil {
			m.t.Fatal(err)
		}
	}
}

// charge charges a request of some user, perhaps twice by a repeated Check, perhaps void.
func (m *money) charge() {
	m.requests++
	kind, h, checks := usage.PoolKind(m.rand.IntN(2)), m.someone(), 1+m.rand.IntN(5)/4
	user := fmt.Sprintf("%v%d", kind, m.rand.IntN(3))
	use := authz.Use{
		Principal: authz.Principal{
			User: user, Account: kind.String(), Pool: kind, Credits: 20_000, RateLimit: usage.Unlimited, RateWindow: time.Minute,
		},
		Request: fmt.Sprint("request ", m.requests), Cost: 1 + m.rand.Int64N(5),
		Refund: []usage.RefundRule{{}, {Never: true}, {Codes: []int{429, 503}}}[m.rand.IntN(3)],
	}
	c := &charge{rule: use.Refund}
	for range checks {
		if taken := m.take(h, use); taken.Cost > 0 {
			c.Charge = taken
		}
	}
	if checks == 1 && m.rand.IntN(10) == 0 { // the answer to a second Check would stand
		if m.rand.IntN(2) == 0 {
			m.flush()
		}
		h.meter.Void(c.Charge)
		return
	}
	m.charges = append(m.charges, c)
}

// take retries until the request is decided, like a client.
func (m *money) take(h *house, use authz.Use) usage.Charge {
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for {
		taken, reason, err := h.meter.Take(ctx, use)
		switch {
		case err == nil && reason == authz.Allowed:
			return taken
		case !m.faulty || ctx.Err() != nil:
			m.t.Fatal(reason, err)
		}
	}
}

// outcome reports the outcome of a request to any replica, through the access log or by the
// upstream.
func (m *money) outcome(c *charge) (report func()) {
	h, old, closed := m.someone(), m.age(c) > 1, c.Month == m.closed
	if m.rand.IntN(4) == 0 { // the upstream
		ask, before, refund := m.rand.Int64N(1+c.Cost), c.account, int64(0)
		if !c.rule.Never {
			refund = ask
		}
		switch {
		case !old:
			c.account.outcome(refund, true, closed)
		case c.account.known || !closed:
			c.account.back = max(c.account.back, refund) // too late to be confirmed, but not to be refunded
		}
		want := c.account.back - before.back
		return func() { m.call(h, c, ask, want) }
	}
	ending := usage.Completion{Receipt: c.Receipt, Status: []int{200, 200, 404, 429, 500, 503}[m.rand.IntN(6)]}
	refund := ending.Status >= 500
	if refund {
		ending.Failure = usage.Answered5xx
	}
	if c.rule.Codes != nil {
		refund = ending.Status == 429 || ending.Status == 503
	}
	if back := int64(0); !old {
		if refund && !c.rule.Never {
			back = c.Cost
		}
		c.account.outcome(back, false, closed)
	}
	return func() { h.meter.Complete(ending) }
}

// call settles a charge like its upstream, and repeats the call if asked to. The answer must be the
// fate of the charge, unless a call or a report was repeated.
func (m *money) call(h *house, c *charge, refund, want int64) {
	body := fmt.Sprintf(`{"outcome": "refund", "credits": %d}`, refund)
	switch refund {
	case 0:
		body = `{"outcome": "charge"}`
	case c.Cost:
		body = `{"outcome": "refund"}`
	}
	for calls := 1; ; calls++ {
		w := httptest.NewRecorder()
		h.settle.ServeHTTP(w, httptest.NewRequest("POST", "/v1/charges/"+c.ID+"/settle", strings.NewReader(body)))
		if w.Code == http.StatusServiceUnavailable && calls < 20 { // on a busy machine
			continue
		}
		answer := fmt.Sprintf(`{"success":true,"refunded":%t}`, want > 0)
		if w.Code != 200 || !m.faulty && calls == 1 && strings.TrimSpace(w.Body.String()) != answer {
			m.t.Errorf("settling: %d %s, want %s", w.Code, w.Body, answer)
		}
		return
	}
}

// age returns how many months ago a charge was made.
func (m *money) age(c *charge) (months int) {
	for month := usage.MonthOf(time.Now().Add(m.clock)); month > c.Month; month = month.Previous() {
		months++
	}
	return months
}

// outcomes reports the outcomes of some charges concurrently, each charge at most once.
func (m *money) outcomes() {
	var all errgroup.Group
	all.SetLimit(64)
	for _, i := range m.rand.Perm(len(m.charges))[:m.rand.IntN(1+len(m.charges))] {
		report := m.outcome(m.charges[i])
		all.Go(func() error { report(); return nil })
	}
	all.Wait()
	m.flush()
	m.check()
}

// kill ends a replica without a stop, and starts another one.
func (m *money) kill() {
	i := m.rand.IntN(len(m.replicas))
	dead := m.replicas[i]
	dead.killed.Store(true)
	dead.stop()
	m.replicas = append(m.replicas[:i], m.replicas[i+1:]...)
	for _, c := range m.charges {
		receipt, err := m.signer.ParseID(c.ID)
		if err != nil {
			m.t.Fatal(err)
		}
		c.lost = c.lost || receipt.Holder == dead.credits.Name()
	}
	m.open()
}

// turn advances to the next month.
func (m *money) turn() {
	now := time.Now().Add(m.clock)
	by := usage.MonthOf(now).End().Add(2 * time.Hour).Sub(now)
	m.clock += by
	for _, h := range append(m.replicas, &house{db: m.db}) {
		h.turning.Lock()
		storetest.SetClock(h.db, by)
		h.turning.Unlock()
	}
	m.flush()
}

// closeMonth refunds the unreported charges of the last month.
func (m *money) closeMonth() {
	// Replicas report their use once a second; a stop in good order reports it at once.
	m.stop()
	want := span{}
	for _, c := range m.charges {
		if m.age(c) == 1 && !c.account.known {
			c.account.after = true
			want.add(c)
		}
	}
	got, err := storeledger.New(m.db).RefundUnreportedAt(m.t.Context(), time.Now().Add(m.clock))
	if err != nil || !want.holds(got) {
		m.t.Errorf("%d credits of charges came back that nobody has reported, %v; want %v", got, err, want)
	}
	m.closed = usage.MonthOf(time.Now().Add(m.clock)).Previous()
	m.open()
	m.open()
	m.flush()
}

// stop stops all replicas in good order.
func (m *money) stop() {
	for _, h := range m.replicas {
		h.faulty.Store(false)
		h.stop()
	}
	m.replicas = nil
}

// span is the range of the sum of some charges. For charges of a killed replica it is unknown
// whether their use was reported.
type span struct{ least, most int64 }

func (s *span) add(c *charge) {
	if s.most += c.Cost; !c.lost {
		s.least += c.Cost
	}
}

func (s span) holds(credits int64) bool { return s.least <= credits && credits <= s.most }

// check compares the ledger with the model, as far as that is possible without a stop.
func (m *money) check() {
	m.t.Helper()
	mustAddUp(m.t, m.db)
	for _, user := range []string{"user0", "account0"} {
		if b, err := storeledger.New(m.db).Balance(m.t.Context(), user); err != nil || b.Unreported < 0 || b.Used < 0 {
			m.t.Errorf("%s: %+v, %v", user, b, err)
		}
	}
}

// end stops all replicas and compares the refunds, charge by charge, and the unreported charges.
func (m *money) end() {
	m.stop()
	m.check()
	var back, returned, used span
	unreported := map[usage.Month]*span{}
	for _, c := range m.charges {
		used.add(c)
		if !c.account.known {
			if unreported[c.Month] == nil {
				unreported[c.Month] = &span{}
			}
			unreported[c.Month].add(c)
		}
		switch {
		case c.account.after:
			returned.add(c)
		default:
			back.most += c.account.back
		}
	}
	back.least = back.most // reported outcomes are exact, even of killed replicas
	for query, want := range map[string]span{
		`credits FROM credit_refunds WHERE cause NOT IN ('void', 'unreported')`:                                               back,
		`credits FROM credit_refunds WHERE cause = 'unreported'`:                                                              returned,
		`n FROM (SELECT used AS n FROM credit_usages UNION ALL SELECT -credits FROM credit_refunds WHERE cause = 'void') net`: used,
	} {
		what, from, _ := strings.Cut(query, " ")
		var got int64
		err := m.db.Changes.QueryRow(`SELECT CAST(coalesce(sum(` + what + `), 0) AS BIGINT) ` + from).Scan(&got)
		if err != nil || !want.holds(got) {
			m.t.Errorf("%s: %d, %v; want %v", query, got, err, want)
		}
	}
	for month, want := range unreported {
		if got, err := storeledger.New(m.db).Unreported(m.t.Context(), month); err != nil || !want.holds(got) {
			m.t.Errorf("%v: %d unreported, %v; want %v", month, got, err, want)
		}
	}
}

// Charges end in any way, and their outcomes are reported by any reporter, to any replica, any
// number of times, in any order, even after the month, while replicas are killed and reports fail.
// Each charge counts once and is refunded at most once, and unreported charges are shown and are
// never negative.
func TestMoneyAddsUpHoweverChargesEnd(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		runs, size := 3, 40
		if !strings.HasPrefix(url, "sqlite") {
			partstest.Slow(t)
			runs, size = 2, 20
		}
		if testing.Short() {
			runs, size = 2, 20
		}
		if os.Getenv("KEYPORTER_LONG") != "" {
			runs, size = 6, 2000 // some 40,000 histories of charges
		}
		if wanted := os.Getenv("KEYPORTER_MONEY_RUNS"); wanted != "" {
			var err error
			if runs, err = strconv.Atoi(wanted); err != nil {
				t.Fatalf("KEYPORTER_MONEY_RUNS: %v", err)
			}
			size = 2000
		}
		histories := 0
		for run := range runs {
			seed := rand.Uint64()
			ok := t.Run(fmt.Sprintf("run %d, seed %d", run, seed), func(t *testing.T) {
				m := &money{t: t, rand: rand.New(rand.NewPCG(seed, 0)), url: url, faulty: run%3 == 2}
				m.run(size, run%3 == 1, run%3 != 2 || run%2 == 0)
				histories += len(m.charges)
			})
			if !ok {
				return
			}
		}
		t.Logf("%d histories of charges", histories)
	})
}

func (m *money) run(size int, kills, closes bool) {
	m.db = storetest.Open(m.t, store.Config{URL: m.url})
	m.empty()
	upstream, log, err := storeledger.New(m.db).ChargeSecrets(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	if m.signer, err = receipt.NewSigner(receipt.Secrets{ID: upstream, Receipt: log}); err != nil {
		m.t.Fatal(err)
	}
	m.open()
	m.open()
	for range 3 {
		for range size {
			m.charge()
		}
		m.outcomes()
		m.outcomes()
		if kills && m.rand.IntN(2) == 0 {
			m.kill()
		}
	}
	m.turn()
	for range size / 2 {
		m.charge()
	}
	m.outcomes()
	if closes {
		m.closeMonth()
	}
	m.outcomes()
	later := storetest.Open(m.t, store.Config{URL: m.url})
	storetest.SetClock(later, m.clock+time.Hour) // ended ones are added up
	if err := storeledger.New(later).Tidy(m.t.Context()); err != nil {
		m.t.Error(err)
	}
	m.outcomes()
	m.turn()
	m.outcomes()
	m.end()
}

// empty creates the users, and deletes everything of an earlier run.
func (m *money) empty() {
	ctx := m.t.Context()
	for _, kind := range []usage.PoolKind{usage.PoolUser, usage.PoolAccount} {
		name := kind.String()
		_, _, err := directory.New(m.db).SetPlan(ctx, name, directory.PlanChange{Pool: new(name)}, "")
		_, _, err2 := directory.New(m.db).SetAccount(ctx, name, directory.AccountChange{Plan: new(name)}, "")
		err = errors.Join(err, err2)
		for i := range 3 {
			_, _, err2 := directory.New(m.db).SetUser(ctx, fmt.Sprint(name, i), directory.UserChange{Account: new(name)}, "")
			err = errors.Join(err, err2)
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
	for _, table := range []string{
		"credit_pools", "credit_holders", "credit_blocks", "credit_usages", "credit_reported", "credit_charges", "credit_months", "credit_refunds", "credit_recalls", "credit_days", "credit_daily",
	} {
		if _, err := m.db.Changes.Exec(`DELETE FROM ` + table); err != nil {
			m.t.Fatal(err)
		}
	}
}
