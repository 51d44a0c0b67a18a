package feed_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// A transaction that affects decisions makes one change when it commits, with all names that it
// touches; a transaction without effect makes none.
func TestWhateverIsChangedIsNamed(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
		wrong := 0
		tests := []struct {
			what       string
			statements []string
			want       []string
		}{
			{"an update of a key", []string{`UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`}, []string{"user:ada"}},
			{"of its digest", []string{`UPDATE keys SET digest = '` + storetest.Digest('x') + `' WHERE id = 'ka'`}, []string{"user:ada"}},
			{"a key that moves", []string{`UPDATE keys SET user_name = 'bob' WHERE id = 'ko'`}, []string{"user:ada user:bob"}},
			{"two keys that swap", []string{`UPDATE keys SET user_name = CASE id WHEN 'ko' THEN 'eve' ELSE 'ada' END, revoked_at = 7 WHERE id IN ('ko', 'ke')`}, []string{"user:ada user:eve"}},
			{"an insert of a key", []string{`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ('kn', 'bob', '` + storetest.Digest('n') + `', 0, 1)`}, []string{"added"}},
			{"a delete of a key", []string{`DELETE FROM keys WHERE id = 'kb'`}, []string{"user:bob"}},
			{"an upsert that inserts", []string{`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ('kn', 'eve', '` + storetest.Digest('n') + `', 0, 1)
				ON CONFLICT (id) DO UPDATE SET revoked_at = 3`}, []string{"added"}},
			{"an upsert that updates", []string{`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ('ka', 'eve', '` + storetest.Digest('n') + `', 0, 1)
				ON CONFLICT (id) DO UPDATE SET revoked_at = 3`}, []string{"user:ada"}},
			{"an upsert that does both", []string{`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ('ka', 'eve', '` + storetest.Digest('n') + `', 0, 1),
				('kn', 'bob', '` + storetest.Digest('m') + `', 0, 1) ON CONFLICT (id) DO UPDATE SET revoked_at = 3`}, []string{"added user:ada"}},
			{"an upsert of a plan", []string{`INSERT INTO plans SELECT * FROM plans WHERE name = 'pro' ON CONFLICT (name) DO UPDATE SET api_access = FALSE`}, []string{"plan:pro"}},
			{"a merge", []string{`MERGE INTO keys k USING (VALUES ('ka'), ('ke')) v (id) ON k.id = v.id
				WHEN MATCHED AND k.id = 'ka' THEN DELETE WHEN MATCHED THEN UPDATE SET revoked_at = 4`}, []string{"user:ada user:eve"}},
			{"a change inside of a query", []string{`WITH gone AS (DELETE FROM sessions RETURNING user_name), off AS (UPDATE users SET status = 'disabled' WHERE name = 'eve')
				SELECT count(*) FROM gone`}, []string{"user:ada user:bob user:eve"}},
			{"an update of a plan", []string{`UPDATE plans SET api_access = FALSE WHERE name = 'pro'`}, []string{"plan:pro"}},
			{"of its limits", []string{`UPDATE plans SET rate_limit = NULL WHERE name = 'free'`}, []string{"plan:free"}},
			{"a plan with another name", []string{`INSERT INTO plans SELECT 'old', api_access, rate_limit, rate_window, credits, pool FROM plans WHERE name = 'pro'`,
				`UPDATE plans SET name = 'new' WHERE name = 'old'`}, []string{"added", "plan:new plan:old"}},
			{"a delete of a plan", []string{`INSERT INTO plans SELECT 'old', api_access, rate_limit, rate_window, credits, pool FROM plans WHERE name = 'pro'`,
				`DELETE FROM plans WHERE name = 'old'`}, []string{"added", "plan:old"}},
			{"an update of an account", []string{`UPDATE accounts SET status = 'suspended' WHERE name = 'acme'`}, []string{"account:acme"}},
			{"of its plan", []string{`UPDATE accounts SET plan = 'free' WHERE name = 'acme'`}, []string{"account:acme"}},
			{"an update of users", []string{`UPDATE users SET status = 'disabled' WHERE account = 'acme'`}, []string{"user:ada user:bob"}},
			{"a user's subject", []string{`UPDATE users SET subject = 'x' WHERE name = 'ada'`}, []string{"user:ada"}},
			{"since when a user's tokens count", []string{`UPDATE users SET not_before = 5 WHERE name = 'ada'`}, []string{"user:ada"}},
			{"a user who moves", []string{`UPDATE users SET account = 'solo' WHERE name = 'ada'`}, []string{"user:ada"}},
			{"an update of a session", []string{`UPDATE sessions SET revoked_at = 4 WHERE user_name = 'bob'`}, []string{"user:bob"}},
			{"a delete of sessions", []string{`DELETE FROM sessions`}, []string{"user:ada user:bob"}},
			{"a truncate of keys", []string{`TRUNCATE keys`}, []string{"*"}},
			{"a truncate of sessions", []string{`TRUNCATE sessions`}, []string{"*"}},
			{"a truncate of users and below", []string{`TRUNCATE users CASCADE`}, []string{"*"}},
			{"a truncate of accounts and below", []string{`TRUNCATE accounts CASCADE`}, []string{"*"}},
			{"a truncate of plans and below", []string{`TRUNCATE plans CASCADE`}, []string{"*"}},
			{"several statements in one transaction", []string{`BEGIN`, `UPDATE plans SET credits = 1 WHERE name = 'pro'`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`,
				`UPDATE users SET status = 'disabled' WHERE name = 'ada'`, `UPDATE accounts SET status = 'cancelled' WHERE name = 'solo'`, `COMMIT`},
				[]string{"account:solo plan:pro user:ada"}},
			{"a transaction rolled back", []string{`BEGIN`, `UPDATE plans SET credits = 1`, `DELETE FROM keys`, `ROLLBACK`}, nil},
			{"a transaction rolled back after its trigger", []string{`BEGIN`, `DELETE FROM keys`, `SET CONSTRAINTS ALL IMMEDIATE`, `ROLLBACK`}, nil},
			{"rolled back to a savepoint", []string{`BEGIN`, `SAVEPOINT s`, `DELETE FROM keys`, `ROLLBACK TO s`, `COMMIT`}, nil},
			{"in part rolled back to a savepoint", []string{`BEGIN`, `UPDATE plans SET credits = 1 WHERE name = 'pro'`, `SAVEPOINT s`, `DELETE FROM keys`, `ROLLBACK TO s`,
				`UPDATE users SET status = 'disabled' WHERE name = 'eve'`, `RELEASE s`, `COMMIT`}, []string{"plan:pro user:eve"}},
			{"the same again after a savepoint", []string{`BEGIN`, `SAVEPOINT s`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`, `ROLLBACK TO s`,
				`UPDATE keys SET revoked_at = 6 WHERE id = 'ka'`, `COMMIT`}, []string{"user:ada"}},
			{"triggers at once, then rolled back to a savepoint", []string{`BEGIN`, `SAVEPOINT s`, `DELETE FROM keys WHERE id = 'kb'`, `SET CONSTRAINTS ALL IMMEDIATE`, `ROLLBACK TO s`,
				`UPDATE keys SET revoked_at = 6 WHERE id = 'ka'`, `COMMIT`}, []string{"user:ada"}},
			{"triggers at once in the middle", []string{`BEGIN`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`, `SET CONSTRAINTS ALL IMMEDIATE`,
				`UPDATE keys SET revoked_at = 5 WHERE id = 'kb'`, `UPDATE keys SET revoked_at = 6 WHERE id = 'ka'`, `COMMIT`}, []string{"user:ada", "user:bob", "user:ada"}},
			{"triggers at once and late again", []string{`BEGIN`, `SET CONSTRAINTS ALL IMMEDIATE`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`, `SET CONSTRAINTS ALL DEFERRED`,
				`UPDATE keys SET revoked_at = 5 WHERE id = 'kb'`, `COMMIT`}, []string{"user:ada", "user:bob"}},
			{"a session that plays replica", []string{`BEGIN`, `SET LOCAL session_replication_role = replica`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`, `COMMIT`}, []string{"user:ada"}},
			{"it truncates", []string{`BEGIN`, `SET LOCAL session_replication_role = replica`, `TRUNCATE sessions`, `COMMIT`}, []string{"*"}},
			{"it deletes", []string{`BEGIN`, `SET LOCAL session_replication_role = replica`, `DELETE FROM users WHERE name = 'eve'`, `DELETE FROM keys WHERE id = 'ke'`, `COMMIT`}, []string{"user:eve"}},
			{"with repeatable read", []string{`BEGIN ISOLATION LEVEL REPEATABLE READ`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`, `COMMIT`}, []string{"user:ada"}},
			{"serializable", []string{`BEGIN ISOLATION LEVEL SERIALIZABLE`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`, `COMMIT`}, []string{"user:ada"}},
			{"1,001 names", []string{`INSERT INTO users SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(1, 1001) i`,
				`UPDATE users SET status = 'disabled' WHERE name LIKE 'u%'`}, []string{"added", "*"}},
			{"600 names and 600 more", []string{`INSERT INTO users SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(1, 1200) i`, `BEGIN`,
				`UPDATE users SET status = 'disabled' WHERE name LIKE 'u%' AND substr(name, 2)::INT <= 600`,
				`UPDATE users SET status = 'disabled' WHERE name LIKE 'u%' AND substr(name, 2)::INT > 600`, `COMMIT`}, []string{"added", "*"}},

			{"new rows in one transaction", []string{`BEGIN`, `INSERT INTO plans SELECT 'new', api_access, rate_limit, rate_window, credits, pool FROM plans WHERE name = 'pro'`,
				`INSERT INTO accounts VALUES ('new', 'person', 'new', 'active')`, `INSERT INTO users VALUES ('new', 'person', 'new', 'active')`,
				`INSERT INTO keys (id, user_name, digest, created_at) VALUES ('kn', 'new', '` + storetest.Digest('n') + `', 0)`, `COMMIT`}, []string{"added"}},
			{"1,001 new users and a changed one", []string{`BEGIN`, `INSERT INTO users SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(1, 1001) i`,
				`UPDATE users SET status = 'disabled' WHERE name = 'ada'`, `COMMIT`}, []string{"added user:ada"}},
			{"a new plan, account, user and session", []string{`INSERT INTO plans SELECT 'new', api_access, rate_limit, rate_window, credits, pool FROM plans WHERE name = 'pro'`,
				`INSERT INTO accounts VALUES ('new', 'person', 'new', 'active')`, `INSERT INTO users VALUES ('new', 'person', 'new', 'active')`,
				`INSERT INTO sessions (digest, user_name, created_at, expires_at) VALUES ('` + storetest.Digest('v') + `', 'new', 0, 9)`}, []string{"added", "added", "added"}},
			{"the sealed copy", []string{`UPDATE keys SET sealed = 'x' WHERE id = 'ka'`}, nil},
			{"when a key was made", []string{`UPDATE keys SET created_at = 5`}, nil},
			{"the kind of an account and a user", []string{`UPDATE accounts SET kind = 'organization'`, `UPDATE users SET kind = 'service'`}, nil},
			{"a name for itself", []string{`UPDATE plans SET name = name`, `UPDATE accounts SET plan = plan`, `UPDATE users SET status = status`,
				`UPDATE keys SET revoked_at = revoked_at`, `UPDATE sessions SET expires_at = expires_at`}, nil},
			{"nothing", []string{`UPDATE keys SET revoked_at = 5 WHERE id = 'none'`, `DELETE FROM users WHERE name = 'none'`,
				`INSERT INTO keys SELECT * FROM keys WHERE id = 'none'`}, nil},
			{"an upsert that does nothing", []string{`INSERT INTO plans SELECT * FROM plans ON CONFLICT DO NOTHING`}, nil},
		}
		for _, test := range tests {
			f.Exec(storetest.People...)
			before := f.Newest()
			f.OnOne(test.statements)
			if got := f.Since(before); !slices.Equal(got, test.want) && len(got)+len(test.want) > 0 {
				wrong++
				t.Errorf("%s: changes %q, want %q", test.what, got, test.want)
			}
		}
		if n := f.Number(`SELECT count(*) FROM changes_pending`); n != 0 {
			t.Errorf("%d rows are left in changes_pending", n)
		}
		t.Logf("%d ways to change the data, %d wrong", len(tests), wrong)
	})
}

// A change of a plan with very many keys is one change with one name, and a bulk insert of users or
// keys is one that ends no valid answer. KEYPORTER_LONG=1 makes them a million.
func TestAMillionKeysAreOneChange(t *testing.T) {
	partstest.Slow(t)
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		many := 10_000
		if os.Getenv("KEYPORTER_LONG") != "" {
			many = 1_000_000
		}
		storetest.Open(t, store.Config{URL: url}) // creates the tables
		// like an operator's, it waits for a statement without a limit
		db, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		f := storetest.SQL{T: t, DB: db}
		f.Exec(storetest.People...)
		timed := func(what, statement string, want ...string) {
			before, begun := f.Newest(), time.Now()
			f.Exec(statement)
			took := time.Since(begun)
			got := f.Since(before)
			if !slices.Equal(got, want) && len(got)+len(want) > 0 {
				t.Errorf("%s: changes %.200q, want %q", what, got, want)
			}
			t.Logf("%s of %d: %v", what, many, took.Round(time.Millisecond))
		}
		timed("new users", fmt.Sprintf(`INSERT INTO users SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(1, %d) i`, many), "added")
		timed("new keys", fmt.Sprintf(`INSERT INTO keys (id, user_name, digest, created_at)
			SELECT 'k' || i, 'u' || i, decode(md5(i::TEXT) || md5('x' || i), 'hex'), 0 FROM generate_series(1, %d) i`, many), "added")
		timed("one plan above", `UPDATE plans SET api_access = FALSE WHERE name = 'pro'`, "plan:pro")
		timed("an update that changes no decision", `UPDATE keys SET created_at = 1`)
		f.Exec(`ALTER TABLE keys DISABLE TRIGGER USER`)
		timed("the same without triggers", `UPDATE keys SET created_at = 2`)
		f.Exec(`ALTER TABLE keys ENABLE TRIGGER USER`)
		timed("an update of one key among", `UPDATE keys SET revoked_at = 1 WHERE id = 'k1'`, "user:u1")
		timed("an update", `UPDATE keys SET revoked_at = 5`, "*")
		timed("a delete", `DELETE FROM keys`, "*")
	})
}

// COPY is recorded like any other insert.
func TestCopyIsNamed(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
		f.Exec(storetest.People...)
		before := f.Newest()
		tx, err := f.DB.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		copying, err := tx.Prepare(`COPY keys (id, user_name, digest, created_at, revoked_at) FROM STDIN`)
		if err != nil {
			t.Fatal(err)
		}
		for i, user := range []string{"ada", "eve"} {
			if _, err := copying.Exec(fmt.Sprint("copied", i), user, []byte(storetest.Digest(byte('0'+i))), 0, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(copying.Close(), tx.Commit()); err != nil {
			t.Fatal(err)
		}
		if got := f.Since(before); !slices.Equal(got, []string{"added"}) {
			t.Errorf("changes %q", got)
		}
	})
}

// Nothing of a long transaction is visible before its commit, and a reader that sees its epoch sees
// its effects.
func TestAChangeIsSeenWithItsEpoch(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
		f.Exec(storetest.People...)
		before := f.Newest()
		tx, err := f.DB.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		for _, statement := range []string{`UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`, `UPDATE plans SET api_access = FALSE`} {
			if _, err := tx.Exec(statement); err != nil {
				t.Fatal(err)
			}
			// others continue
			f.Exec(`UPDATE sessions SET revoked_at = coalesce(revoked_at, 0) + 1 WHERE user_name = 'bob'`)
		}
		if got := f.Since(before); !slices.Equal(got, []string{"user:bob", "user:bob"}) {
			t.Errorf("before the commit: changes %q", got)
		}
		before = f.Newest()
		var looks, early atomic.Int64
		stop := make(chan struct{})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					var epoch int64
					var revoked, access bool
					err := f.DB.QueryRow(`SELECT (SELECT max(epoch) FROM changes), (SELECT revoked_at IS NOT NULL FROM keys WHERE id = 'ka'),
						(SELECT bool_or(api_access) FROM plans)`).Scan(&epoch, &revoked, &access)
					if err != nil {
						t.Error(err)
						return
					}
					looks.Add(1)
					if (epoch > before) != revoked || revoked == access {
						early.Add(1)
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		time.Sleep(20 * time.Millisecond)
		close(stop)
		all.Wait()
		if got := f.Since(before); !slices.Equal(got, []string{"plan:free plan:pro user:ada"}) {
			t.Errorf("changes %q", got)
		}
		if early.Load() > 0 {
			t.Errorf("%d times the epoch and the data did not fit", early.Load())
		}
		t.Logf("%d looks, %d wrong", looks.Load(), early.Load())
	})
}

// Changes of a role are recorded even if it has rights on the data only, and a search path and a
// table of changes of its own. Our functions, which run with the rights of their owner, do nothing
// else for it.
func TestARoleWithoutRightsIsRecorded(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
		f.Exec(storetest.People...)
		role := fmt.Sprintf("mallory_%d", rand.Uint32())
		f.Exec(`CREATE ROLE `+role, `GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON plans, accounts, users, keys, sessions TO `+role)
		t.Cleanup(func() {
			for _, statement := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
				if _, err := f.DB.Exec(statement); err != nil {
					t.Error(err)
				}
			}
		})
		// A separate pool, so that no session state remains in the other one.
		db, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		as := storetest.SQL{T: t, DB: db}
		as.Exec(`SET ROLE `+role,
			`CREATE TEMP TABLE changes (epoch BIGINT, id TEXT, what TEXT, made_at BIGINT)`,
			`CREATE TEMP TABLE changes_pending (tx BIGINT, what TEXT)`,
			`CREATE TEMP TABLE new_rows AS SELECT * FROM public.keys`,
			`CREATE TEMP TABLE old_rows AS SELECT * FROM public.keys`,
			`CREATE FUNCTION pg_temp.changes_touch(touched TEXT[]) RETURNS VOID LANGUAGE sql AS 'SELECT NULL::VOID'`,
			`CREATE FUNCTION pg_temp.changes_now() RETURNS BIGINT LANGUAGE sql AS 'SELECT 1/0'`,
			`CREATE FUNCTION pg_temp.txid_current() RETURNS BIGINT LANGUAGE sql AS 'SELECT 1/0'`,
			`SET search_path = pg_temp, pg_catalog, public`)
		wrong := 0
		statements := map[string]string{
			`UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`:         "user:ada",
			`DELETE FROM keys WHERE id = 'kb'`:                       "user:bob",
			`UPDATE plans SET api_access = FALSE WHERE name = 'pro'`: "plan:pro",
			`UPDATE accounts SET status = 'cancelled'`:               "account:acme account:solo",
			`TRUNCATE sessions`:                                      "*",
		}
		for statement, want := range statements {
			before := f.Newest()
			as.Exec(statement)
			if got := f.Since(before); !slices.Equal(got, []string{want}) {
				wrong++
				t.Errorf("%s: changes %q, want %q", statement, got, want)
			}
		}
		for _, statement := range []string{
			`INSERT INTO public.changes (epoch, id, what, made_at) VALUES (1000000, 'x', '', 0)`,
			`DELETE FROM public.changes`, `DELETE FROM public.replicas`, `SELECT nextval('public.changes_epoch')`,
			`INSERT INTO public.changes_pending (tx, what) VALUES (txid_current(), '*')`,
			`INSERT INTO public.histories (id, accepted_at) VALUES ('x', 0)`,
			// A trigger of the role's own that calls our function with its owner's rights.
			`CREATE TRIGGER mine AFTER INSERT ON pg_temp.changes REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
				EXECUTE FUNCTION public.changes_of_keys()`,
			`CREATE TRIGGER other AFTER INSERT ON pg_temp.changes FOR EACH STATEMENT EXECUTE FUNCTION public.changes_everything()`,
			`CREATE TRIGGER mine AFTER INSERT ON pg_temp.changes_pending FOR EACH ROW EXECUTE FUNCTION public.changes_commit()`,
		} {
			var denied *pq.Error
			if _, err := db.Exec(statement); !errors.As(err, &denied) || denied.Code != "42501" {
				wrong++
				t.Errorf("%s: %v", statement, err)
			}
		}
		t.Logf("%d statements of a role without rights, %d wrong", len(statements)+9, wrong)
	})
}

// PostgreSQL refuses PREPARE TRANSACTION, since we use NOTIFY; so no change goes unrecorded.
func TestPreparedTransactionsAreRefused(t *testing.T) {
	t.Parallel()
	url := partstest.Database(t, 18)
	f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
	f.Exec(storetest.People...)
	if n := f.Number(`SELECT setting::INT FROM pg_settings WHERE name = 'max_prepared_transactions'`); n != 0 {
		t.Fatalf("%d prepared transactions", n)
	}
	before := f.Newest()
	conn, err := f.DB.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, statement := range []string{`BEGIN`, `UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`} {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	_, err = conn.ExecContext(t.Context(), `PREPARE TRANSACTION 'two'`)
	var refused *pq.Error
	if !errors.As(err, &refused) || refused.Code != "0A000" && refused.Code != "55000" {
		t.Errorf("error %v", err)
	}
	t.Logf("PREPARE TRANSACTION: %v", err)
	conn.ExecContext(t.Context(), `ROLLBACK`)
	if n := f.Number(`SELECT count(*) FROM keys WHERE id = 'ka' AND revoked_at IS NULL`); n != 1 || len(f.Since(before)) != 0 {
		t.Errorf("%d keys, changes %q", n, f.Since(before))
	}
}

// The order of epochs is the order of commits: no reader ever sees an epoch appear below one that
// was there before, for any kind and duration of transactions. None is aborted.
func TestEpochsAppearInTheirOrder(t *testing.T) {
	partstest.Slow(t)
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		const writers, transactions, readers = 32, 15, 3
		f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
		f.Exec(storetest.People...)
		f.Exec(fmt.Sprintf(`INSERT INTO users SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(0, %d) i`, writers),
			fmt.Sprintf(`INSERT INTO keys (id, user_name, digest, created_at)
				SELECT 'k' || i, 'u' || i, decode(md5(i::TEXT) || md5('x' || i), 'hex'), 0 FROM generate_series(0, %d) i`, writers))
		db, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxIdleConns(writers + readers)
		begins := []string{`BEGIN`, `BEGIN ISOLATION LEVEL REPEATABLE READ`}
		before := f.Newest()
		var aborted, looks, wrong atomic.Int64
		var writing, reading sync.WaitGroup
		for writer := range writers {
			writing.Go(func() {
				conn, err := db.Conn(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				for i := range transactions {
					statements := []string{begins[rand.N(len(begins))], fmt.Sprintf(`UPDATE keys SET revoked_at = %d WHERE id = 'k%d'`, i+1, writer)}
					switch rand.N(4) {
					case 0:
						statements = append(statements, `SET CONSTRAINTS ALL IMMEDIATE`)
					case 1:
						statements = append(statements, `SAVEPOINT s`, fmt.Sprintf(`DELETE FROM keys WHERE id = 'k%d'`, writer), `ROLLBACK TO s`)
					}
					if rand.N(3) > 0 {
						statements = append(statements, fmt.Sprintf(`SELECT pg_sleep(%f)`, rand.Float64()/100))
					}
					for _, statement := range append(statements, `COMMIT`) {
						if _, err := conn.ExecContext(t.Context(), statement); err != nil {
							aborted.Add(1)
							t.Errorf("%s: %v", statement, err)
							conn.ExecContext(t.Context(), `ROLLBACK`)
							break
						}
					}
				}
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range readers {
			reading.Go(func() {
				seen, last := map[int64]bool{}, int64(0)
				for ctx.Err() == nil {
					var newest int64
					var epochs pq.Int64Array
					if err := db.QueryRow(`SELECT max(epoch), array_agg(epoch) FROM changes WHERE epoch > $1`, before-1).Scan(&newest, &epochs); err != nil {
						t.Error(err)
						return
					}
					looks.Add(1)
					for _, epoch := range epochs {
						if !seen[epoch] && epoch <= last {
							wrong.Add(1)
						}
						seen[epoch] = true
					}
					last = newest
				}
			})
		}
		begun := time.Now()
		writing.Wait()
		took := time.Since(begun)
		cancel()
		reading.Wait()
		if n := len(f.Since(before)); n != writers*transactions || wrong.Load() != 0 {
			t.Errorf("%d changes of %d transactions; %d epochs appeared below one that was there", n, writers*transactions, wrong.Load())
		}
		t.Logf("%d transactions of %d writers in %v, %d aborted; %d looks, %d epochs out of order",
			writers*transactions, writers, took.Round(time.Millisecond), aborted.Load(), looks.Load(), wrong.Load())
	})
}

// Our lock aborts no transactions that touch several tables in one order.
func TestNoDeadlocks(t *testing.T) {
	partstest.Slow(t)
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		const writers, transactions = 16, 8
		f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
		f.Exec(storetest.People...)
		db, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxIdleConns(writers)
		before := f.Newest()
		var made, aborted atomic.Int64
		var all sync.WaitGroup
		for range writers {
			all.Go(func() {
				for range transactions {
					err := func() error {
						tx, err := db.BeginTx(t.Context(), nil)
						if err != nil {
							return err
						}
						defer tx.Rollback()
						for _, statement := range []string{
							`UPDATE plans SET credits = credits + 1 WHERE name = 'pro'`,
							`UPDATE accounts SET status = CASE status WHEN 'active' THEN 'suspended' ELSE 'active' END WHERE name = 'acme'`,
							`UPDATE users SET status = CASE status WHEN 'active' THEN 'disabled' ELSE 'active' END WHERE name = 'ada'`,
							`UPDATE keys SET revoked_at = coalesce(revoked_at, 0) + 1 WHERE id = 'ka'`,
							`UPDATE sessions SET expires_at = expires_at + 1 WHERE user_name = 'ada'`,
						} {
							if rand.N(2) == 0 {
								continue
							}
							if _, err := tx.Exec(statement); err != nil {
								return err
							}
						}
						return tx.Commit()
					}()
					if err != nil {
						aborted.Add(1)
						t.Error(err)
					}
					made.Add(1)
				}
			})
		}
		all.Wait()
		t.Logf("%d transactions, %d aborted, %d changes", made.Load(), aborted.Load(), len(f.Since(before)))
	})
}

// Transactions with REPEATABLE READ that touch different rows are never aborted. SERIALIZABLE ones
// may be, as usual: with 40001, and then nothing of them is recorded.
func TestIsolationLevels(t *testing.T) {
	partstest.Slow(t)
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		const writers, transactions = 8, 15
		f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
		f.Exec(storetest.People...)
		f.Exec(fmt.Sprintf(`INSERT INTO users SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(0, %d) i`, writers))
		db, err := sql.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxIdleConns(writers)
		for _, level := range []sql.IsolationLevel{sql.LevelRepeatableRead, sql.LevelSerializable} {
			before := f.Newest()
			var committed, aborted atomic.Int64
			var all sync.WaitGroup
			for writer := range writers {
				all.Go(func() {
					for range transactions {
						tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
						if err != nil {
							t.Error(err)
							return
						}
						_, err = tx.Exec(`UPDATE users SET status = CASE status WHEN 'active' THEN 'disabled' ELSE 'active' END WHERE name = $1`, fmt.Sprint("u", writer))
						time.Sleep(rand.N(3 * time.Millisecond))
						if err == nil {
							err = tx.Commit()
						}
						tx.Rollback()
						var failed *pq.Error
						switch {
						case err == nil:
							committed.Add(1)
						case errors.As(err, &failed) && failed.Code == "40001" && level == sql.LevelSerializable:
							aborted.Add(1)
						default:
							t.Errorf("%v: %v", level, err)
						}
					}
				})
			}
			all.Wait()
			if n := len(f.Since(before)); n != int(committed.Load()) {
				t.Errorf("%v: %d changes of %d transactions", level, n, committed.Load())
			}
			t.Logf("%v: %d transactions on different rows, %d committed, %d aborted", level, writers*transactions, committed.Load(), aborted.Load())
		}
	})
}

// Rows that SQLite silently removes to make room for another row are named as well, in a session
// with the settings of the sqlite3 shell: no foreign keys.
func TestReplacedRowsAreNamed(t *testing.T) {
	t.Parallel()
	url := storetest.Databases["SQLite"](t)
	f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: url}).Changes}
	shell, err := sql.Open("sqlite", "file:"+strings.TrimPrefix(url, "sqlite://")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	shell.SetMaxOpenConns(1)
	const key = `(id, user_name, digest, created_at, revoked_at) VALUES `
	const session = `(digest, user_name, created_at, expires_at) VALUES `
	tests := []struct{ what, statement, want string }{
		{"a key with the id of another's", `INSERT OR REPLACE INTO keys ` + key + `('ka', 'eve', '` + storetest.Digest('n') + `', 0, 1)`, "added user:ada"},
		{"with the digest of another's", `INSERT OR REPLACE INTO keys ` + key + `('kn', 'eve', '` + storetest.Digest('a') + `', 0, 1)`, "added user:ada"},
		{"with both", `INSERT OR REPLACE INTO keys ` + key + `('ka', 'eve', '` + storetest.Digest('b') + `', 0, 1)`, "added user:ada user:bob"},
		{"a second live key", `INSERT OR REPLACE INTO keys ` + key + `('kn', 'ada', '` + storetest.Digest('n') + `', 0, NULL)`, "added user:ada"},
		{"REPLACE INTO", `REPLACE INTO keys ` + key + `('kn', 'eve', '` + storetest.Digest('a') + `', 0, NULL)`, "added user:ada user:eve"},
		{"a key that takes another's id", `UPDATE OR REPLACE keys SET id = 'kb' WHERE id = 'ka'`, "user:ada user:bob"},
		{"another's digest", `UPDATE OR REPLACE keys SET digest = '` + storetest.Digest('b') + `' WHERE id = 'ka'`, "user:ada user:bob"},
		{"a live key that moves to who has one", `UPDATE OR REPLACE keys SET user_name = 'bob' WHERE id = 'ka'`, "user:ada user:bob"},
		{"an ended key that lives again", `UPDATE OR REPLACE keys SET revoked_at = NULL WHERE id = 'ko'`, "user:ada"},
		{"an upsert", `INSERT INTO keys ` + key + `('ka', 'eve', '` + storetest.Digest('n') + `', 0, 1) ON CONFLICT (id) DO UPDATE SET user_name = 'bob', revoked_at = 3`, "user:ada user:bob"},
		{"a session with the digest of another's", `INSERT OR REPLACE INTO sessions ` + session + `('` + storetest.Digest('s') + `', 'eve', 0, 9)`, "user:ada"},
		{"a session that takes another's", `UPDATE OR REPLACE sessions SET digest = '` + storetest.Digest('t') + `' WHERE user_name = 'ada'`, "user:ada user:bob"},
		{"a user", `INSERT OR REPLACE INTO users (name, kind, account, status) VALUES ('ada', 'person', 'solo', 'disabled')`, "added user:ada"},
		{"a user with another's subject", `INSERT OR REPLACE INTO users (name, kind, account, status, subject) VALUES ('new', 'person', 'solo', 'active', 'sub-a')`, "added user:ada"},
		{"a user who takes another's subject", `UPDATE OR REPLACE users SET subject = 'sub-a' WHERE name = 'bob'`, "user:ada user:bob"},
		{"a user with another's name", `UPDATE OR REPLACE users SET name = 'bob' WHERE name = 'ada'`, "user:ada user:bob"},
		{"an account", `INSERT OR REPLACE INTO accounts VALUES ('acme', 'person', 'free', 'cancelled')`, "account:acme added"},
		{"an account with another's name", `UPDATE OR REPLACE accounts SET name = 'solo' WHERE name = 'acme'`, "account:acme account:solo"},
		{"a plan", `INSERT OR REPLACE INTO plans VALUES ('pro', FALSE, 1, 60000, 1, 'user')`, "added plan:pro"},
		{"a plan with another's name", `UPDATE OR REPLACE plans SET name = 'free' WHERE name = 'pro'`, "plan:free plan:pro"},
		{"a key by its rowid", `INSERT OR REPLACE INTO keys (rowid, id, user_name, digest, created_at, revoked_at)
			SELECT rowid, 'kn', 'ada', '` + storetest.Digest('n') + `', 0, 1 FROM keys WHERE id = 'ka'`, "added user:ada"},
		{"a replacement by itself", `REPLACE INTO plans SELECT * FROM plans WHERE name = 'pro'`, "added"},
		{"an upsert that inserts", `INSERT INTO keys ` + key + `('kn', 'bob', '` + storetest.Digest('n') + `', 0, 1) ON CONFLICT (id) DO UPDATE SET revoked_at = 3`, "added"},
		{"all keys", `DELETE FROM keys`, "user:ada user:bob user:eve"},
		{"all sessions", `DELETE FROM sessions`, "user:ada user:bob"},
		{"all users", `DELETE FROM users`, "user:ada user:bob user:eve"},
		{"all accounts", `DELETE FROM accounts`, "account:acme account:solo"},
		{"all plans", `DELETE FROM plans`, "plan:free plan:pro"},
		{"a sealed copy", `UPDATE keys SET sealed = 'x' WHERE id = 'ka'`, ""},
		{"a name for itself", `UPDATE users SET name = name, kind = 'service'`, ""},
		{"a digest for itself", `UPDATE keys SET id = id, digest = digest`, ""},
		{"a session's digest for itself", `UPDATE sessions SET digest = digest`, ""},
		{"a new session", `INSERT INTO sessions ` + session + `('` + storetest.Digest('v') + `', 'eve', 0, 9)`, ""},
	}
	wrong := 0
	for _, test := range tests {
		(storetest.SQL{T: t, DB: shell}).Exec(storetest.People...)
		before := f.Newest()
		if _, err := shell.Exec(test.statement); err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
		if got := strings.Join(f.Names(before), " "); got != test.want {
			wrong++
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
	}
	t.Logf("%d statements, %d wrong", len(tests), wrong)
}

// A bulk change in SQLite makes one change for each row. KEYPORTER_LONG=1 makes them 100,000, which
// the race detector makes very slow.
func TestABulkChangeOfSQLite(t *testing.T) {
	t.Parallel()
	many := 3_000
	if os.Getenv("KEYPORTER_LONG") != "" {
		many = 100_000
	}
	f := storetest.SQL{T: t, DB: storetest.Open(t, store.Config{URL: storetest.Databases["SQLite"](t)}).Changes}
	f.Exec(storetest.People...)
	numbers := fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) `, many)
	f.Exec(`INSERT INTO users (name, kind, account, status) ` + numbers + `SELECT 'u' || i, 'person', 'acme', 'active' FROM n`)
	f.Exec(`INSERT INTO keys (id, user_name, digest, created_at) ` + numbers + `SELECT 'k' || i, 'u' || i, CAST(printf('%032d', i) AS BLOB), 0 FROM n`)
	before, begun := f.Newest(), time.Now()
	f.Exec(`UPDATE keys SET revoked_at = 5 WHERE id NOT IN ('ko')`)
	took := time.Since(begun)
	if n := f.Newest() - before; n != int64(many)+3 {
		t.Errorf("%d changes", n)
	}
	t.Logf("%d rows in %v", many, took.Round(time.Millisecond))
	before = f.Newest()
	f.Exec(`UPDATE plans SET api_access = FALSE WHERE name = 'pro'`)
	if got := f.Names(before); !slices.Equal(got, []string{"plan:pro"}) {
		t.Errorf("the plan above them: %q", got)
	}
}

// The cost of the commit of an import of many users by many statements is linear in their number.
// When it was quadratic, the commit of 200,000 did not end. The session has made small changes
// before, and has cached plans for these.
func TestALargeImportCommits(t *testing.T) {
	partstest.Slow(t)
	for name, small := range map[string]int{"in a new session": 0, "after small changes": 12} {
		t.Run(name, func(t *testing.T) {
			db := storetest.Open(t, store.Config{URL: partstest.Database(t, 18)})
			storetest.WithAda(t, db)
			f := storetest.SQL{T: t, DB: db.Changes}
			f.Exec(`VACUUM ANALYZE changes_pending`)
			session, err := f.DB.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			for i := range small {
				if _, err := session.ExecContext(t.Context(), `UPDATE plans SET credits = $1`, i); err != nil {
					t.Fatal(err)
				}
			}
			before := f.Newest()
			if looked := importUsers(t, session); looked > 10*imported {
				t.Errorf("%d rows of changes_pending were looked at for %d keys, want at most %d", looked, imported, 10*imported)
			}
			if got := f.Since(before); !slices.Equal(got, []string{"added"}) {
				t.Errorf("the changes are of %q, want one of added rows", got)
			}
		})
	}
}

// imported is the number of users that importUsers adds, each with a key.
const imported = 5000

// importUsers adds users in one transaction of many statements, and returns how many rows of
// changes_pending were read before its commit.
func importUsers(t *testing.T, session *sql.Conn) (looked int64) {
	tx, err := session.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	const each = 500
	for first := 0; first < imported; first += each {
		for _, statement := range []string{
			`INSERT INTO users (name, kind, account, status) SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series($1::INT, $2::INT) i`,
			`INSERT INTO keys (id, user_name, digest, created_at) SELECT 'k' || i, 'u' || i, sha256(i::TEXT::BYTEA), 0 FROM generate_series($1::INT, $2::INT) i`,
		} {
			if _, err := tx.ExecContext(t.Context(), statement, first, first+each-1); err != nil {
				t.Fatal(err)
			}
		}
	}
	// the first step of a commit
	if _, err := tx.ExecContext(t.Context(), `SET CONSTRAINTS ALL IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	// The statistics of a full scan omit deleted rows, so each scan counts as all rows that were
	// added.
	if err := tx.QueryRowContext(t.Context(), `SELECT pg_stat_get_xact_tuples_returned(indexrelid) + pg_stat_get_xact_numscans(indrelid) * $1
		FROM pg_index WHERE indrelid = 'changes_pending'::REGCLASS`, imported).Scan(&looked); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return looked
}

// "No API access", because the plan is missing, is read again once the plan is added. Foreign keys
// are off, as in the shell of SQLite by default, and in a session of PostgreSQL that plays replica.
func TestARowThatWasMissingIsFound(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		shell := storetest.Raw(t, url)
		shell.DB.SetMaxOpenConns(1)
		shell.Exec(storetest.People...)
		if strings.HasPrefix(url, "postgres") {
			shell.Exec(`SET session_replication_role = replica`)
		}
		if !strings.HasPrefix(url, "postgres") {
			shell.Exec(`UPDATE keys SET digest = CAST(digest AS BLOB)`)
		}
		r := storetest.StartReplica(t, db, 2*time.Second)
		r.AwaitLease(t)
		var d apikey.Digest
		copy(d[:], storetest.Digest('a'))
		shell.Exec(`DELETE FROM plans WHERE name = 'pro'`)
		applied := func() bool { return r.Position.Load() == shell.Newest() }
		partstest.Eventually(t, "the change applied", applied)
		p, origin, err := directory.NewLookups(db).ResolveKey(t.Context(), d)
		if err != nil || p.APIAccess {
			t.Fatal(p, err)
		}
		stamp := r.Read().Stamp(origin)
		shell.Exec(`INSERT INTO plans (name, api_access, rate_limit, rate_window, credits, pool) VALUES ('pro', TRUE, 60, 60000, 20000, 'user')`)
		partstest.Eventually(t, "the change applied", applied)
		if r.Fresh(&stamp) {
			t.Errorf("the plan is there, and the cached answer without it (%+v) is still valid", origin)
		}
	})
}

// A repeated set changes nothing, and ends no answer.
func TestARepeatedSetTouchesNothing(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		f.Exec(`UPDATE plans SET credits = 7 WHERE name = 'pro'`, `UPDATE users SET status = 'disabled' WHERE name = 'bob'`)
		before := f.Newest()
		_, _, err1 := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{}, "")
		_, _, err2 := directory.New(db).SetAccount(t.Context(), "solo", directory.AccountChange{}, "")
		_, _, err3 := directory.New(db).SetUser(t.Context(), "bob", directory.UserChange{}, "")
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatal(err1, err2, err3)
		}
		if got := f.Names(before); len(got) > 0 {
			t.Errorf("changes %q, want no names", got)
		}
	})
}
