package meter_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/meter/ledger"
)

// bank is a ledger in memory, with the arithmetic of the real one. It notes every credit that is used in
// the month in which it is used.
type bank struct {
	plan  authz.Limit // of every pool
	kind  authz.Pool
	delay func() time.Duration // before and after a report is posted
	fails func() bool          // then the caller is told so, whether or not it was posted

	mu       sync.Mutex
	pools    map[ledger.Pool]*ledger.Balance
	blocks   map[string]map[ledger.Pool]ledger.Block
	usages   map[string]map[ledger.Payer]int64
	seqs     map[string]int64
	dead     map[string]bool
	refunded map[string]bool
	recalls  []ledger.Pool
	tellers  []*meter.Credits
	reports  int
	broken   []string
}

func newBank(plan authz.Limit) *bank {
	return &bank{
		plan: plan, pools: map[ledger.Pool]*ledger.Balance{}, blocks: map[string]map[ledger.Pool]ledger.Block{},
		usages: map[string]map[ledger.Payer]int64{}, seqs: map[string]int64{}, dead: map[string]bool{}, refunded: map[string]bool{},
	}
}

// teller returns Credits that run on the bank until the test ends, with a clock of their own, and what
// ends them.
func (b *bank) teller(t testing.TB, clock func() time.Duration) (c *meter.Credits, stop func()) {
	c = meter.NewCredits(meter.CreditsConfig{Ledger: b, Clock: clock})
	b.mu.Lock()
	b.tellers = append(b.tellers, c)
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return c, stop
}

// kill has a teller die as if it were killed: nothing of it is heard any more.
func (b *bank) kill(c *meter.Credits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dead[c.Holder()] = true
}

var errBank = errors.New("the bank is away")

func (b *bank) Report(_ context.Context, r ledger.Report) (ledger.Result, error) {
	b.wait()
	fails, posted := b.fails != nil && b.fails(), rand.N(2) == 0
	if fails && !posted {
		return ledger.Result{}, errBank
	}
	result, err := b.post(r)
	b.wait()
	if fails {
		return ledger.Result{}, errBank
	}
	return result, err
}

func (b *bank) wait() {
	if b.delay != nil {
		time.Sleep(b.delay())
	}
}

func (b *bank) post(r ledger.Report) (ledger.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reports++
	if b.dead[r.Holder] || r.Seq <= b.seqs[r.Holder] {
		return ledger.Result{}, errBank
	}
	b.seqs[r.Holder] = r.Seq
	if b.blocks[r.Holder] == nil {
		b.blocks[r.Holder], b.usages[r.Holder] = map[ledger.Pool]ledger.Block{}, map[ledger.Payer]int64{}
	}
	book := ledger.Book{
		Now: time.Now(), Replicas: len(b.tellers), Pools: map[ledger.Pool]*ledger.Balance{},
		Blocks: b.blocks[r.Holder], Usages: b.usages[r.Holder],
	}
	for _, pool := range r.Touches() {
		if b.pools[pool] == nil {
			b.pools[pool] = &ledger.Balance{}
		}
		balance := b.pools[pool]
		balance.Sells, balance.Plan = pool.Kind == b.kind, b.plan
		balance.Elsewhere, balance.Lost = 0, 0
		for holder, blocks := range b.blocks {
			switch held := blocks[pool].Taken - blocks[pool].Used; {
			case holder == r.Holder:
			case b.dead[holder]:
				balance.Lost += held
			default:
				balance.Elsewhere += held
			}
		}
		book.Pools[pool] = balance
	}
	fresh := r.Refunds[:0:0]
	for _, refund := range r.Refunds {
		if !b.refunded[refund.Charge] {
			b.refunded[refund.Charge] = true
			fresh = append(fresh, refund)
		}
	}
	r.Refunds = fresh
	grants, err := book.Post(r)
	if err != nil {
		b.broken = append(b.broken, err.Error())
		return ledger.Result{}, err
	}
	b.audit()
	b.ask(r.Asks, grants)
	return ledger.Result{Now: book.Now, Grants: grants, Refunds: fresh}, nil
}

// audit notes where the books are wrong.
func (b *bank) audit() {
	for pool, balance := range b.pools {
		leased, used := int64(0), int64(0)
		for _, blocks := range b.blocks {
			leased += blocks[pool].Taken - blocks[pool].Used
		}
		for _, usages := range b.usages {
			for payer, n := range usages {
				if payer.Month == pool.Month && (pool.Kind == authz.PoolUser && payer.User == pool.Name || pool.Kind == authz.PoolAccount && payer.Account == pool.Name) {
					used += n
				}
			}
		}
		if leased != balance.Leased || used != balance.Used || balance.Leased+balance.Used-balance.Refunded > balance.Granted {
			b.broken = append(b.broken, fmt.Sprintf("%v: %+v, but %d leased, %d used", pool, *balance, leased, used))
		}
	}
}

// ask recalls credits.
func (b *bank) ask(asks []ledger.Ask, grants []ledger.Grant) {
	b.recalls = nil
	for i, grant := range grants {
		if grant.Taken < asks[i].Keep+asks[i].Need && grant.Elsewhere > 0 {
			b.recalls = append(b.recalls, grant.Pool)
		}
	}
	if b.recalls != nil {
		for _, c := range b.tellers {
			c.Hint()
		}
	}
}

func (b *bank) Recalled(context.Context) ([]ledger.Pool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]ledger.Pool(nil), b.recalls...), nil
}

func (b *bank) mustBeRight(t testing.TB) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.broken) > 0 {
		t.Fatalf("the books are wrong %d times, first: %s", len(b.broken), b.broken[0])
	}
}

// pay takes credits as a request does.
func pay(ctx context.Context, c *meter.Credits, p *authz.Principal, cost int64) (authz.Charge, authz.Reason, error) {
	charge, reason := c.Reserve(p, cost)
	if reason == authz.Allowed {
		return charge, reason, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
	defer cancel()
	return c.Take(ctx, p, cost)
}

func principal(user, account string, kind authz.Pool, credits authz.Limit) *authz.Principal {
	return &authz.Principal{User: user, Account: account, Pool: kind, Credits: credits, RateLimit: authz.Unlimited, RateWindow: time.Minute}
}

// However many callers ask however many processes, they get all credits of a pool and not one more; and
// when the first of them is refused, no process that lives has one left.
func TestAllCreditsAreSoldAndNotOneMore(t *testing.T) {
	runs := 200
	for run := range runs {
		synctest.Test(t, func(t *testing.T) {
			credits := rand.Int64N(3000)
			b := newBank(authz.Limit(credits))
			b.delay = func() time.Duration { return rand.N(3 * time.Millisecond) }
			var tellers []*meter.Credits
			for range 1 + rand.N(4) {
				c, _ := b.teller(t, nil)
				tellers = append(tellers, c)
			}
			synctest.Wait()
			var mu sync.Mutex
			admitted, undecided := int64(0), 0
			var refused, last time.Time // the first that was refused, and the last that was admitted
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					for range 3 {
						time.Sleep(rand.N(100 * time.Millisecond))
						_, reason, err := pay(t.Context(), tellers[rand.N(len(tellers))], principal("ada", "acme", authz.PoolUser, authz.Limit(credits)), 1)
						mu.Lock()
						switch {
						case err != nil:
							undecided++
						case reason == authz.Allowed:
							admitted++
							last = time.Now()
						case refused.IsZero():
							refused = time.Now()
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			if admitted > credits || admitted < credits && int64(undecided) == 0 || undecided > 0 {
				t.Errorf("run %d: %d admitted of %d, %d undecided, by %d processes", run, admitted, credits, undecided, len(tellers))
			}
			if stranded := last.Sub(refused); stranded > 0 && !refused.IsZero() {
				t.Errorf("run %d: somebody had a credit %v after the first refusal", run, stranded)
			}
			b.mustBeRight(t)
		})
		if t.Failed() {
			return
		}
	}
}
