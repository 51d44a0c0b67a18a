package feed_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/usage"
)

// silent puts a replica on the list that never acknowledges anything.
func silent(t *testing.T, db *store.DB, life time.Duration) (id string) {
	t.Helper()
	registry, err := feed.NewRegistry(db, feed.Replica{Name: "silent", Life: life})
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	if id, err = registry.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return id
}

// Each change that revokes something returns only when every replica has followed it, and says how
// many have.
func TestAChangeIsInForceEverywhere(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db, f := storetest.Open(t, store.Config{URL: url}), storetest.Format(t)
		storetest.WithAda(t, db)
		var replicas []*storetest.Replica
		for range 2 {
			// Each has a database of its own, like a process.
			r := storetest.StartReplica(t, storetest.Open(t, store.Config{URL: url}), 4*time.Second)
			r.AwaitLease(t)
			replicas = append(replicas, r)
		}
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", f); err != nil {
			t.Fatal(err)
		}
		if _, _, err := directory.NewSessions(db).CreateSession(t.Context(), "ada", time.Hour, f); err != nil {
			t.Fatal(err)
		}
		newest := func() int64 { return (storetest.SQL{T: t, DB: db.Changes}).Newest() }
		calls := []struct {
			what    string
			origin  lease.Origin
			changes bool
			call    func() (feed.Confirmation, error)
		}{
			{"plan", lease.Origin{User: "eve", Plan: "pro"}, true, func() (feed.Confirmation, error) {
				_, c, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{APIAccess: new(false)}, "")
				return c, err
			}},
			{"the same plan again", lease.Origin{}, false, func() (feed.Confirmation, error) {
				_, c, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{APIAccess: new(false)}, "")
				return c, err
			}},
			{"account", lease.Origin{User: "eve", Account: "acme"}, true, func() (feed.Confirmation, error) {
				_, c, err := directory.New(db).SetAccount(t.Context(), "acme", directory.AccountChange{Status: new("suspended")}, "")
				return c, err
			}},
			{"regenerate", lease.Origin{User: "ada"}, true, func() (feed.Confirmation, error) {
				_, _, c, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", f, directory.Rate{}, "")
				return c, err
			}},
			{"revoke", lease.Origin{User: "ada"}, true, func() (feed.Confirmation, error) {
				_, c, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", "")
				return c, err
			}},
			{"sessions", lease.Origin{User: "ada"}, true, func() (feed.Confirmation, error) {
				_, c, err := directory.NewSessions(db).RevokeSessions(t.Context(), "ada", "")
				return c, err
			}},
			{"user", lease.Origin{User: "ada"}, true, func() (feed.Confirmation, error) {
				_, c, err := directory.New(db).SetUser(t.Context(), "ada", directory.UserChange{Status: new("disabled")}, "")
				return c, err
			}},
			{"delete user", lease.Origin{User: "ada"}, true, func() (feed.Confirmation, error) {
				return directory.New(db).DeleteUser(t.Context(), "ada", "")
			}},
			{"delete account", lease.Origin{User: "eve", Account: "acme"}, true, func() (feed.Confirmation, error) {
				return directory.New(db).DeleteAccount(t.Context(), "acme", "")
			}},
			{"delete plan", lease.Origin{User: "eve", Plan: "pro"}, true, func() (feed.Confirmation, error) {
				return directory.New(db).DeletePlan(t.Context(), "pro", "")
			}},
		}
		var slowest time.Duration
		for _, call := range calls {
			stamps := make([]lease.Stamp, len(replicas))
			call.origin.Epoch = lease.Epoch(newest())
			for i, r := range replicas {
				stamps[i] = r.Read().Stamp(call.origin)
			}
			c, err := call.call()
			for i, r := range replicas {
				if call.changes && r.Held() && r.Fresh(&stamps[i]) {
					t.Errorf("%s: replica %d answers by the old state", call.what, i)
				}
			}
			if err != nil || c.Total != 2 || c.Acknowledged != 2 || c.Expired != 0 || c.Repeated || c.Took <= 0 {
				t.Errorf("%s: %+v, %v", call.what, c, err)
			}
			slowest = max(slowest, c.Took)
		}
		t.Logf("%d calls on %d replicas, the slowest confirmation took %v", len(calls), len(replicas), slowest.Round(100*time.Microsecond))
	})
}

// A barrier waits for a silent replica until its lease has ended, plus 5 %, and takes it off the
// list; the next change does not wait.
func TestASilentReplicaIsWaitedFor(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		const life = time.Second
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		alive := storetest.StartReplica(t, db, 4*time.Second)
		alive.AwaitLease(t)
		silent(t, db, life)
		begun := time.Now()
		_, c, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{Credits: new(usage.Limit(1))}, "")
		took := time.Since(begun)
		if err != nil || c.Total != 2 || c.Acknowledged != 1 || c.Expired != 1 {
			t.Errorf("%+v, %v", c, err)
		}
		if c.Took < life*105/100 || c.Took > life*105/100+5*time.Second {
			t.Errorf("it took %v", c.Took)
		}
		// Taking it off the list has 250 ms. If that fails, the next barrier does it.
		isOff := func() bool {
			replicas, _, err := feed.New(db).Replicas(t.Context())
			if err == nil && len(replicas) == 1 && replicas[0].ID == *alive.ID.Load() {
				return true
			}
			_, _ = feed.New(db).RollCall(t.Context())
			return false
		}
		partstest.Eventually(t, "the silent replica is off the list", isOff)
		_, next, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{Credits: new(usage.Limit(2))}, "")
		if err != nil || next.Total != 1 || next.Acknowledged != 1 {
			t.Errorf("the next: %+v, %v", next, err)
		}
		t.Logf("a life of %v: the change took %v, the next one %v", life, took.Round(time.Millisecond), next.Took.Round(time.Millisecond))

		// A roll call finds dead replicas without any change.
		silent(t, db, life)
		roll, err := feed.New(db).RollCall(t.Context())
		if err != nil || roll.Total != 2 || roll.Expired != 1 || roll.Acknowledged != 1 {
			t.Errorf("the roll: %+v, %v", roll, err)
		}
		partstest.Eventually(t, "the other one is off the list", isOff)
	})
}

// A replica that was fenced and has come back, without any change in between, is confirmed at once,
// even by a call that changes nothing.
func TestAReplicaThatCameBackIsConfirmed(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		r := storetest.StartReplica(t, db, 4*time.Second)
		r.AwaitLease(t)
		id := *r.ID.Load()
		if _, err := db.Changes.Exec(`DELETE FROM replicas`); err != nil {
			t.Fatal(err)
		}
		partstest.Eventually(t, "another registration", func() bool { return *r.ID.Load() != id })
		good := r.Good.Load()
		partstest.Eventually(t, "two renewals", func() bool { return r.Good.Load() > good+1 })
		_, c, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{}, "")
		if err != nil || c.Total != 1 || c.Acknowledged != 1 || c.Took > 3*time.Second {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

// A call that is cut short reports that, together with its result.
func TestACallThatIsCutShort(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		silent(t, db, time.Hour)
		short, cancel := context.WithCancel(t.Context())
		go func() { // the caller leaves a second after the change is made
			defer time.AfterFunc(time.Second, cancel)
			for credits := 0; credits != 7 && t.Context().Err() == nil; time.Sleep(time.Millisecond) {
				_ = db.Changes.QueryRow(`SELECT credits FROM plans WHERE name = 'pro'`).Scan(&credits)
			}
		}()
		plan, c, err := directory.New(db).SetPlan(short, "pro", directory.PlanChange{Credits: new(usage.Limit(7))}, "once")
		if !errors.Is(err, lease.ErrUnconfirmed) || plan.Credits != 7 || c.Total != 1 || c.Acknowledged != 0 || c.Repeated {
			t.Errorf("%+v, %+v, %v", plan, c, err)
		}
		if _, err := db.Changes.Exec(`DELETE FROM replicas`); err != nil {
			t.Fatal(err)
		}
		again, c, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{Credits: new(usage.Limit(7))}, "once")
		if err != nil || again != plan || !c.Repeated {
			t.Errorf("repeated: %+v, %+v, %v", again, c, err)
		}
	})
}

// A repeated call with the same idempotency key changes nothing more; a different call with it is
// refused.
func TestACallIsMadeOnce(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db, f := storetest.Open(t, store.Config{URL: url}), storetest.Format(t)
		storetest.WithAda(t, db)
		r := storetest.StartReplica(t, db, 4*time.Second)
		r.AwaitLease(t)
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", f); err != nil {
			t.Fatal(err)
		}
		first, token, c, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", f, directory.Rate{}, "once")
		if err != nil || c.Repeated || token.Reveal() == "" {
			t.Fatalf("%+v, %v", c, err)
		}
		look := storetest.SQL{T: t, DB: db.Changes}
		before := look.Newest()
		second, none, c, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", f, directory.Rate{}, "once")
		if err != nil || second.ID != first.ID || !second.CreatedAt.Equal(first.CreatedAt) || !c.Repeated || c.Acknowledged != 1 {
			t.Errorf("repeated: %+v, want %+v; %+v, %v", second, first, c, err)
		}
		if none.Reveal() != "" {
			t.Error("the repeated call returned a key")
		}
		if got := look.Since(before); len(got) != 0 {
			t.Errorf("the repeated call changed %q", got)
		}
		if p, err := directory.NewLookups(db).FindKey(t.Context(), token.Digest()); err != nil || p.KeyID != first.ID {
			t.Errorf("the key of the first call: %v", err)
		}
		if n := look.Number(`SELECT count(*) FROM calls WHERE result LIKE $1`, "%"+token.Reveal()+"%"); n != 0 {
			t.Error("the key is kept")
		}
		for what, call := range map[string]func() error{
			"for another user": func() error {
				_, _, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "eve", f, directory.Rate{}, "once")
				return err
			},
			"for another operation": func() error { _, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", "once"); return err },
			"a plan": func() error {
				_, _, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{}, "once")
				return err
			},
			"a blank":    func() error { _, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", "a b"); return err },
			"a line end": func() error { _, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", "a\n"); return err },
			"no ASCII":   func() error { _, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", "é"); return err },
			"too long": func() error {
				_, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", feed.IdempotencyKey(strings.Repeat("a", 256)))
				return err
			},
		} {
			if err := call(); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", feed.IdempotencyKey(strings.Repeat("~", 255))); err != nil {
			t.Errorf("as long as it may be: %v", err)
		}
		// The arguments are part of the call.
		for i, want := range []error{nil, nil, store.ErrInvalid} {
			credits := []usage.Limit{1, 1, 2}[i]
			if _, _, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{Credits: &credits}, "credits"); !errors.Is(err, want) {
				t.Errorf("call %d, with %d credits: %v", i, credits, err)
			}
		}
		if _, err := directory.New(db).DeleteUser(t.Context(), "ada", "gone"); err != nil {
			t.Error(err)
		}
		if c, err := directory.New(db).DeleteUser(t.Context(), "ada", "gone"); err != nil || !c.Repeated {
			t.Errorf("deleted again: %+v, %v", c, err)
		}
		// A call that was refused may be repeated.
		if _, _, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", "later"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a key of nobody: %v", err)
		}
		storetest.WithAda(t, db)
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", f); err != nil {
			t.Fatal(err)
		}
		if _, c, err := directory.NewKeys(db).RevokeKey(t.Context(), "ada", "later"); err != nil || c.Repeated {
			t.Errorf("made after it was refused: %+v, %v", c, err)
		}
	})
}

// A scoped key has at most the maximum length of a key, and never equals one of another name.
func TestAnIdempotencyKeyOfSomebody(t *testing.T) {
	name := "page:" + strings.Repeat("n", 128) // the longest name of a user
	seen := map[feed.IdempotencyKey]string{}
	for _, who := range []string{name, name[:100], "page:ada"} {
		for _, key := range []string{"x", strings.Repeat("~", 100), strings.Repeat("~", 254), strings.Repeat("~", 255), ":", ":x"} {
			once, err := feed.IdempotencyKey(key).Of(who)
			if earlier, met := seen[once]; err != nil || met || len(once) > 255 || !strings.HasPrefix(string(once), who+":") {
				t.Errorf("%.20s of %.20s: %q, %v, %s", key, who, once, err, earlier)
			}
			seen[once] = key + " of " + who
		}
	}
	if once, err := feed.IdempotencyKey("x").Of("page:ada"); once != "page:ada:x" || err != nil {
		t.Errorf("%q, %v", once, err)
	}
	if once, err := feed.IdempotencyKey("").Of("page:ada"); once != "" || err != nil {
		t.Errorf("none: %q, %v", once, err)
	}
	for _, key := range []string{"a b", "é", "\n", strings.Repeat("~", 256), strings.Repeat(" ", 200)} {
		if once, err := feed.IdempotencyKey(key).Of(name); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%q: %q, %v", key, once, err)
		}
	}
}

// Of many concurrent calls with one key, one takes effect, and all get its result.
func TestManyMakeACallOnce(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		const many = 16
		f := storetest.Format(t)
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", f); err != nil {
			t.Fatal(err)
		}
		other := storetest.Open(t, store.Config{URL: url}) // as in two processes
		look := storetest.SQL{T: t, DB: db.Changes}
		before := look.Newest()
		var made, tokens atomic.Int64
		var ids sync.Map
		var ready, all sync.WaitGroup
		ready.Add(many)
		for i := range many {
			all.Go(func() {
				ready.Done()
				ready.Wait()
				key, token, c, err := directory.NewKeys([]*store.DB{db, other}[i%2]).RegenerateKey(t.Context(), "ada", f, directory.Rate{}, "once")
				if err != nil {
					t.Error(err)
					return
				}
				ids.Store(key.ID, true)
				if !c.Repeated {
					made.Add(1)
				}
				if token.Reveal() != "" {
					tokens.Add(1)
				}
			})
		}
		all.Wait()
		n := 0
		ids.Range(func(any, any) bool { n++; return true })
		if made.Load() != 1 || tokens.Load() != 1 || n != 1 {
			t.Errorf("%d made it, %d keys were returned, with %d ids", made.Load(), tokens.Load(), n)
		}
		if keys := look.Number(`SELECT count(*) FROM keys`); keys != 2 {
			t.Errorf("%d keys", keys)
		}
		if got := look.Names(before); !slices.Equal(got, []string{"added", "user:ada"}) {
			t.Errorf("changes %q", got)
		}
		t.Logf("%d at once, %d made it, %d keys were returned", many, made.Load(), tokens.Load())
	})
}

// The same holds if the first call leaves the others nothing to do: its change does not cause its
// own repetition to be refused.
func TestManyMakeACallOnceThatIsRefusedAfterwards(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		const many = 8
		f := storetest.Format(t)
		db := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, db)
		other := storetest.Open(t, store.Config{URL: url}) // as in two processes
		for i := range 5 {
			user := fmt.Sprintf("user%d", i)
			storetest.WithUser(t, db, user)
			var live directory.Key
			for _, row := range []struct {
				what string
				call func(*store.DB, feed.IdempotencyKey) (directory.Key, feed.Confirmation, error)
			}{
				{"create", func(db *store.DB, once feed.IdempotencyKey) (directory.Key, feed.Confirmation, error) {
					key, _, c, err := directory.NewKeys(db).CreateKeyOnce(t.Context(), user, f, once)
					return key, c, err
				}},
				{"replace", func(db *store.DB, once feed.IdempotencyKey) (directory.Key, feed.Confirmation, error) {
					key, _, c, err := directory.NewKeys(db).ReplaceKey(t.Context(), user, live.ID, f, directory.Rate{N: 2, Per: time.Hour}, once)
					return key, c, err
				}},
				{"revoke", func(db *store.DB, once feed.IdempotencyKey) (directory.Key, feed.Confirmation, error) {
					return directory.NewKeys(db).RevokeKey(t.Context(), user, once)
				}},
			} {
				var made atomic.Int64
				var ready, all sync.WaitGroup
				keys := make([]directory.Key, many)
				ready.Add(many)
				for n := range many {
					all.Go(func() {
						ready.Done()
						ready.Wait()
						key, c, err := row.call([]*store.DB{db, other}[n%2], feed.IdempotencyKey(row.what+user))
						if err != nil {
							t.Errorf("%s: %v", row.what, err)
						}
						if !c.Repeated {
							made.Add(1)
						}
						keys[n] = key
					})
				}
				all.Wait()
				for _, key := range keys {
					if key.ID != keys[0].ID {
						t.Errorf("%s: the keys %s and %s", row.what, keys[0].ID, key.ID)
					}
				}
				if made.Load() != 1 {
					t.Errorf("%s: %d made it", row.what, made.Load())
				}
				live = keys[0]
			}
		}
	})
}

// A call with a commit that no standby has is not confirmed by repeating it, until a standby has
// it.
func TestARepeatedCallWaitsForTheStandby(t *testing.T) {
	t.Parallel()
	server := partstest.StartPostgres(t, parts.PostgresConfig{Major: 18})
	db, f := storetest.Open(t, store.Config{URL: server.URL("postgres")}), storetest.Format(t)
	storetest.WithAda(t, db)
	if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", f); err != nil {
		t.Fatal(err)
	}
	admin := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: server.URL("postgres")}).Changes}
	admin.Exec(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	time.Sleep(300 * time.Millisecond)
	var cancelled atomic.Int64
	canceller := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			for ctx.Err() == nil {
				var n int64
				if err := admin.DB.QueryRow(`SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&n); err != nil {
					t.Error(err)
				}
				cancelled.Add(n)
				time.Sleep(50 * time.Millisecond)
			}
		})
		return func() { cancel(); all.Wait() }
	}
	stop := canceller()
	_, token, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", f, directory.Rate{}, "once")
	if !errors.Is(err, store.ErrUnknownOutcome) || token.Reveal() != "" {
		t.Errorf("the first: %v", err)
	}
	made := admin.Number(`SELECT count(*) FROM keys`)
	for range 3 {
		if _, _, c, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", f, directory.Rate{}, "once"); !errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("repeated without a standby: %+v, %v", c, err)
		}
	}
	stop()
	admin.Exec(`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
	time.Sleep(300 * time.Millisecond)
	key, _, c, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", f, directory.Rate{}, "once")
	if err != nil || !c.Repeated || key.ID == "" {
		t.Errorf("repeated with one: %+v, %v", c, err)
	}
	if n := admin.Number(`SELECT count(*) FROM keys`); n != made || made != 2 {
		t.Errorf("%d keys, then %d", made, n)
	}
	t.Logf("%d waits cancelled", cancelled.Load())
}

// Tidy keeps the newest changes and the calls of a week.
func TestTidying(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		const kept = 10_000
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		f.Exec(fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO changes (epoch, id, what, made_at) SELECT 1000 + i, 'x' || i, 'user:u', 0 FROM n`, kept+5000))
		week := time.Now().Add(-7 * 24 * time.Hour).UnixMilli()
		f.Exec(fmt.Sprintf(`INSERT INTO calls (id, operation, result, made_at) VALUES ('old', 'x', '', %d), ('new', 'x', '', %d)`, week-60_000, week+60_000))
		newest := f.Newest()
		for range 2 {
			if err := feed.New(db).Tidy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := f.Number(`SELECT count(*) FROM changes WHERE epoch > $1`, newest-kept); n != kept {
				t.Errorf("%d of the newest %d changes are kept", n, kept)
			}
			if n := f.Number(`SELECT count(*) FROM changes WHERE epoch < $1`, newest-kept); n != 0 {
				t.Errorf("%d older ones are", n)
			}
			if n, old := f.Number(`SELECT count(*) FROM calls`), f.Number(`SELECT count(*) FROM calls WHERE id = 'old'`); n != 1 || old != 0 {
				t.Errorf("%d calls, %d old ones", n, old)
			}
		}
	})
}
