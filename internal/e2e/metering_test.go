package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// auditor runs `ledger verify` repeatedly.
func (s *stack) auditor() (end func() (rounds int)) {
	var over atomic.Bool
	rounds := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for !over.Load() {
			s.ledgerAddsUp()
			rounds++
			time.Sleep(50 * time.Millisecond)
		}
	})
	return func() int { over.Store(true); wg.Wait(); return rounds }
}

// Replicas are killed repeatedly while several users spend their credits. No user gets more than
// their credits, the losses are at most what killed replicas held, and the ledger adds up at all
// times.
func TestCreditsSurviveKilledReplicas(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	const credits, users = 2000, 4
	s := start(t, stackConfig{database: partstest.Database(t, 18), replicas: 3, noEnvoy: true, flags: append(patient, "--lease", "1s")})
	keys := make([]string, users)
	for i := range keys {
		keys[i] = s.user(fmt.Sprint("user", i), "metered", "--credits", fmt.Sprint(credits))
	}
	verified := s.auditor()
	checkers := []*checker{newChecker(t, s.replicas[0]), newChecker(t, s.replicas[1]), newChecker(t, s.replicas[2])}
	admitted := make([]atomic.Int64, users)
	var asked, undecided atomic.Int64
	var over atomic.Bool
	var callers, killer sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for !over.Load() {
				user := rand.N(users)
				status, err := checkers[rand.N(3)].key(keys[user])
				asked.Add(1)
				switch {
				case err != nil || status == 503:
					undecided.Add(1)
					time.Sleep(5 * time.Millisecond)
				case status == 200:
					admitted[user].Add(1)
				case status != 429:
					t.Errorf("answered %d", status)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	kills := either(3, 60)
	killer.Go(func() {
		for range kills {
			time.Sleep(2 * time.Second)
			r := s.replicas[rand.N(3)]
			r.process.Kill()
			s.launch(r)
			s.await(r)
		}
	})
	killer.Wait()
	time.Sleep(2 * time.Second)
	over.Store(true)
	callers.Wait()
	for _, r := range s.replicas {
		if err := r.process.Stop(); err != nil {
			t.Error(err)
		}
	}
	rounds := verified()
	s.ledgerAddsUp()
	lost, oversold := int64(0), 0
	for i := range keys {
		b := s.balance(fmt.Sprint("user", i))
		lost += b.Lost
		if n := admitted[i].Load(); n > credits || n > b.Used || b.Used > credits || b.Outstanding != 0 {
			oversold++
			t.Errorf("user%d: %d requests were admitted, the ledger says %+v of %d", i, n, b, credits)
		}
		if b.Used != credits && !long {
			t.Logf("user%d: %+v: not all credits were asked for", i, b)
		}
	}
	t.Logf("%d requests of %d users with %d credits each, %d kills: %d oversold, %d credits lost, %d not decided; the ledger was verified %d times",
		asked.Load(), users, credits, kills, oversold, lost, undecided.Load(), rounds)
}

// Replicas are stopped gracefully and replaced under load: no request fails, no credit is lost, and
// the used credits equal the answered requests.
func TestAStopLosesNoCredit(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{database: partstest.Database(t, 18), replicas: 2, noEnvoy: true, flags: append([]string{"--drain-delay", "3s"}, patient...)})
	key := s.user("ann", "metered", "--credits", "1000000")
	s.startEnvoyBefore(s.replicas)
	partstest.EventuallyNil(t, "Envoy reaches Keyporter", func() error { return is(200)(s.get("/api/v1/brands", key)) })
	load := &load{t: t, s: s, key: key}
	before := s.stableUse("ann")
	load.start(4)
	for range either(1, 10) {
		for _, r := range s.replicas {
			if err := r.process.Stop(); err != nil {
				t.Error(err)
			}
			s.restart(r)
		}
	}
	load.end()
	for _, r := range s.replicas {
		if err := r.process.Stop(); err != nil {
			t.Error(err)
		}
	}
	b := s.balance("ann")
	t.Logf("%d requests, %d failed; %d credits used, %d came back, %d outstanding, %d lost", load.sent.Load(), load.failed.Load(), b.Used-before, b.Refunded, b.Outstanding, b.Lost)
	// On a busy machine a decision may take longer than Envoy waits, with or without a stop. It may
	// be charged then.
	if used := b.Used - before; b.Outstanding != 0 || b.Lost != 0 || used < load.sent.Load()-load.failed.Load() || used > load.sent.Load() {
		t.Errorf("%d requests were answered of %d, %d credits used: %+v", load.sent.Load()-load.failed.Load(), load.sent.Load(), used, b)
	}
	if load.failed.Load() > either(load.sent.Load()/200, 0) {
		t.Errorf("%d of %d requests failed", load.failed.Load(), load.sent.Load())
	}
	s.ledgerAddsUp()
}

// stableUse returns the credits that a user has used, once the number is stable.
func (s *stack) stableUse(user string) int64 {
	s.t.Helper()
	last := int64(-1)
	partstest.EventuallyNil(s.t, "the use is stable", func() error {
		time.Sleep(1500 * time.Millisecond)
		used := s.balance(user).Used
		if used != last {
			last = used
			return fmt.Errorf("%d", used)
		}
		return nil
	})
	return last
}

// The cost of metering for the database: none while idle, at most one statement a second while many
// requests are denied, and one report a second while requests are admitted.
func TestWhatMeteringAsksOfTheDatabase(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{database: partstest.Database(t, 18), noEnvoy: true, flags: patient})
	rich, poor := s.user("ann", "large", "--credits", "unlimited"), s.user("bob", "none", "--credits", "1")
	c := newChecker(t, s.replicas[0])
	reports := func() float64 { return s.replicas[0].number(t, `keyporter_credits_reports_total{result="done"}`) }
	count := func(what, key string, status int, most float64) {
		t.Helper()
		before, began, n := reports(), time.Now(), 0
		for ; time.Since(began) < 3*time.Second; n++ {
			if key == "" {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			if got, err := c.key(key); err != nil || got != status {
				t.Fatalf("%s: %d %v", what, got, err)
			}
		}
		rate := (reports() - before) / time.Since(began).Seconds()
		t.Logf("%s: %d requests, %.1f reports a second", what, n, rate)
		if rate > most {
			t.Errorf("%s: %.1f reports a second, want at most %.1f", what, rate, most)
		}
	}
	if got, err := c.key(poor); err != nil || got != 200 {
		t.Fatal(got, err)
	}
	c.key(poor)
	s.stableUse("bob")
	count("nobody asks", "", 0, 0.1)
	count("a flood of refusals", poor, 429, 1.4)
	count("a flood of one user", rich, 200, 1.4)
}

// A Check that Envoy retries on another replica is charged once if the replicas share a Valkey.
// Without Valkey, each replica that was asked charges for it, under a receipt of its own.
func TestChecksThatAreRepeatedOnOtherReplicas(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	for name, flags := range map[string][]string{
		"with Valkey":    {"--redis", "redis://" + partstest.Valkey(t).Addr()},
		"without Valkey": {"--rate-limit-share"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, stackConfig{database: partstest.Database(t, 18), replicas: 3, noEnvoy: true, flags: slices.Concat(flags, namesCharges, patient)})
			key := s.user("ann", "metered", "--credits", "100000", "--rate-limit", "10000")
			checkers := []*checker{newChecker(t, s.replicas[0]), newChecker(t, s.replicas[1]), newChecker(t, s.replicas[2])}
			// a user's first request on a replica waits for the database
			for i, c := range checkers {
				c.charge(t, key, fmt.Sprint("first on ", i))
			}
			const requests = 200
			checks, charges := 0, map[string]bool{}
			for i := range requests {
				for range 1 + i%5 {
					receipt, _ := checkers[rand.N(3)].charge(t, key, fmt.Sprint("request ", i))
					charges[receipt] = true
					checks++
				}
			}
			// a replica without an answer from Valkey decides alone
			together := name == "with Valkey" && s.unanswered(t) == 0
			for _, r := range s.replicas {
				if err := r.process.Stop(); err != nil {
					t.Error(err)
				}
			}
			used := s.balance("ann").Used - int64(len(checkers))
			t.Logf("%d Checks of %d requests: %d credits were used; all counted in Valkey: %v", checks, requests, used, together)
			if int(used) != len(charges) || together && used != requests || used < requests {
				t.Errorf("%d charges, %d credits used", len(charges), used)
			}
			s.ledgerAddsUp()
		})
	}
}
