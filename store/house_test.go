package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

// newRole creates a role that may log in, until the test ends, and returns its name and its URL.
func newRole(f storetest.SQL, url string) (role, as string) {
	f.Helper()
	role = fmt.Sprintf("guest_%d", rand.Uint32())
	f.Exec(`CREATE ROLE ` + role + ` LOGIN`)
	f.Cleanup(func() {
		if _, err := f.DB.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role); err != nil {
			f.Error(err)
		}
	})
	scheme, rest, _ := strings.Cut(url, "://")
	return role, scheme + "://" + role + rest[strings.Index(rest, "@"):]
}

// refused checks that a database is refused, with an error that contains all the texts.
func refused(t *testing.T, what string, c store.Config, kind error, says ...string) {
	t.Helper()
	c.Create = true
	db, err := store.Open(t.Context(), c)
	if err == nil {
		db.Close()
		t.Errorf("%s: taken", what)
		return
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("%s: error %v, want %v", what, err, kind)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: error %q, want one that says %q", what, err, part)
		}
	}
}

func taken(t *testing.T, what string, c store.Config) {
	t.Helper()
	c.Create = true
	db, err := store.Open(t.Context(), c)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	db.Close()
}

// Another program's goose_db_version is neither trusted nor written, with any version in it. Tables
// of another program under our names are left alone and named. A database of an older build of ours
// is refused.
func TestOtherProgramsKeepTheirTables(t *testing.T) {
	storetest.OnEachEmpty(t, func(t *testing.T, url string) {
		f := storetest.Raw(t, url)
		f.Exec(`CREATE TABLE goose_db_version (id BIGINT PRIMARY KEY, version_id BIGINT NOT NULL, is_applied BOOLEAN NOT NULL)`)
		migrate := store.Config{URL: url, Migrate: true}
		all := []string{`CREATE TABLE users (id BIGINT)`, `CREATE VIEW keys AS SELECT 1 AS id`, `CREATE INDEX keys_live ON goose_db_version (version_id)`,
			`CREATE VIEW keyporter_schema AS SELECT 7 AS version_id`, `CREATE TABLE keyporter_schema (version BIGINT)`, `CREATE INDEX keyporter_schema ON goose_db_version (version_id)`}
		if strings.HasPrefix(url, "postgres") {
			all = append(all, `CREATE TYPE users AS ENUM ('a')`, `CREATE DOMAIN keys AS BIGINT`, `CREATE TYPE keyporter_schema AS ENUM ('a')`, `CREATE SEQUENCE keyporter_schema`)
		}
		for _, theirs := range all {
			f.Exec(theirs)
			name := strings.Fields(theirs)[2]
			refused(t, theirs, migrate, store.ErrDatabase, "another program", name, "of its own")
			refused(t, theirs, store.Config{URL: url}, store.ErrDatabase, "another program", name)
			f.Exec(`DROP ` + strings.Join(strings.Fields(theirs)[1:3], " "))
		}
		refused(t, "no tables", store.Config{URL: url}, store.ErrMigration)
		for i, version := range []int{3, 9, 1000} {
			f.Exec(fmt.Sprintf(`INSERT INTO goose_db_version (id, version_id, is_applied) VALUES (%d, %d, TRUE)`, i, version))
			taken(t, fmt.Sprintf("their version %d", version), migrate)
			if n := f.Number(`SELECT count(*) FROM tag_secrets`); n != 1 {
				t.Errorf("their version %d: %d tag secrets", version, n)
			}
		}
		if n, last := f.Number(`SELECT count(*) FROM goose_db_version`), f.Number(`SELECT max(version_id) FROM goose_db_version`); n != 3 || last != 1000 {
			t.Errorf("their table has %d rows up to %d, want their own 3 up to 1000", n, last)
		}
		// 13 is the version of the last build before the first release.
		old := []string{`UPDATE keyporter_schema SET version_id = 13 WHERE version_id >= 100`,
			`DROP TABLE keyporter_schema`} // of builds before that
		for _, made := range old {
			f.Exec(made)
			refused(t, made, migrate, store.ErrDatabase, "before its first release", "empty database")
			refused(t, made, store.Config{URL: url}, store.ErrDatabase, "before its first release")
		}
	})
}

// If a table that the migrations filled is empty, the error names it, and its remedy.
func TestTablesThatWereEmptied(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		storetest.SQL{T: t, DB: db.Changes}.Exec(`DELETE FROM tag_secrets`, `DELETE FROM charge_secrets WHERE purpose = 'log'`)
		_, tags := directory.NewKeys(db).TagSecrets(t.Context())
		_, _, charges := storeledger.New(db).ChargeSecrets(t.Context())
		for table, err := range map[string]error{"tag_secrets": tags, "charge_secrets": charges} {
			if !errors.Is(err, store.ErrDatabase) || !strings.Contains(err.Error(), table) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("%s is empty: %v", table, err)
			}
		}
	})
}

// The schema is that of the URL or the role. Each obstacle is reported, with its remedy.
func TestSchemasAndRoles(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		f := storetest.Raw(t, url)
		role, as := newRole(f, url)
		migrate := func(parameters string) store.Config { return store.Config{URL: as + parameters, Migrate: true} }
		refused(t, "no such schema", migrate("&search_path=house"), store.ErrDatabase, "none of the schemas", "house", role, "CREATE SCHEMA")
		f.Exec(`CREATE SCHEMA house`, `CREATE SCHEMA annex`)
		refused(t, "no USAGE", migrate("&search_path=house"), store.ErrDatabase, "GRANT USAGE ON SCHEMA", role)
		f.Exec(`GRANT USAGE ON SCHEMA house, annex TO ` + role)
		refused(t, "no CREATE", migrate("&search_path=house"), store.ErrRights, "GRANT CREATE ON SCHEMA house TO "+role)
		f.Exec(`GRANT CREATE ON SCHEMA house, annex TO ` + role)
		taken(t, "by search_path", migrate("&search_path=house"))
		taken(t, "by options", store.Config{URL: as + "&options=-c%20search_path%3Dhouse", Service: true})
		refused(t, "elsewhere", store.Config{URL: as}, store.ErrMigration, "in the schema house", "search_path=house")
		refused(t, "a schema before it", migrate("&search_path=annex,house"), store.ErrDatabase, "are in the schema house", "puts new ones into annex")
		f.Exec(`ALTER ROLE ` + role + ` SET search_path = annex`)
		taken(t, "by role", store.Config{URL: as, Migrate: true, Service: true})
		if n := f.Number(`SELECT count(*) FROM pg_tables WHERE tablename = 'keyporter_schema' AND schemaname IN ('house', 'annex')`); n != 2 {
			t.Errorf("%d schemas have our tables, want 2", n)
		}
		f.Exec(`CREATE SCHEMA "Haus 1" AUTHORIZATION ` + role)
		taken(t, "a name that has to be quoted", store.Config{URL: as + "&search_path=%22Haus%201%22", Migrate: true, Service: true})
		other, asOther := newRole(f, url)
		f.Exec(`GRANT USAGE, CREATE ON SCHEMA house TO `+other, `GRANT SELECT ON ALL TABLES IN SCHEMA house TO `+other)
		later := store.Config{URL: asOther + "&search_path=house", Migrate: true}.Later(10001, `CREATE TABLE later (id BIGINT)`)
		refused(t, "another's tables", later, store.ErrRights, "belong to the role "+role)

		f.Exec(`ALTER ROLE ` + role + ` SET default_transaction_read_only = on`)
		refused(t, "only reads", store.Config{URL: as, Service: true}, store.ErrDatabase, "default_transaction_read_only", role)
		taken(t, "a command that reads", store.Config{URL: as})
		refused(t, "plays replica", store.Config{URL: url + "&search_path=annex&session_replication_role=replica"}, store.ErrDatabase, "session_replication_role")
	})
}

// A service reports at its start which rights it lacks; a role with exactly the required rights can
// do its work.
func TestRightsOfAService(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		owner := storetest.Open(t, store.Config{URL: url})
		storetest.WithAda(t, owner)
		f := storetest.Raw(t, url)
		role, as := newRole(f, url)
		service := store.Config{URL: as, Service: true}
		refused(t, "no rights", service, store.ErrRights, role, "SELECT on ", "INSERT on ", "DELETE on ", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "+role)
		f.Exec(`GRANT SELECT ON ALL TABLES IN SCHEMA public TO ` + role)
		refused(t, "SELECT only", service, store.ErrRights, role, "INSERT on ", "UPDATE on ")
		taken(t, "SELECT only, a command", store.Config{URL: as})
		f.Exec(`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO `+role, `REVOKE INSERT ON keys FROM `+role)
		refused(t, "all but one", service, store.ErrRights, "INSERT on keys:")
		f.Exec(`GRANT INSERT ON keys TO `+role, `ALTER TABLE sessions ENABLE ROW LEVEL SECURITY`)
		refused(t, "hidden rows", service, store.ErrRights, "row-level security", "sessions", role)
		f.Exec(`ALTER TABLE sessions DISABLE ROW LEVEL SECURITY`, `ALTER TABLE histories RENAME TO gone`)
		refused(t, "a table is gone", service, store.ErrDatabase, "lacks tables of ours: histories")
		f.Exec(`ALTER TABLE gone RENAME TO histories`, `REVOKE ALL ON ALL TABLES IN SCHEMA public FROM `+role)
		for _, right := range store.ServiceRights() {
			f.Exec(`GRANT ` + right + ` TO ` + role)
		}
		worksAs(t, owner, service)
	})
}

// worksAs uses a database like a service.
func worksAs(t *testing.T, owner *store.DB, service store.Config) {
	t.Helper()
	db, err := store.Open(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	keys := storetest.Format(t)
	r := storetest.StartReplica(t, db, 2*time.Second)
	r.AwaitLease(t)
	_, link, err := directory.NewSessions(owner).CreateLoginLink(t.Context(), "ada", keys)
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func(context.Context) error{
		"regenerate": func(ctx context.Context) error {
			if _, _, err := directory.NewKeys(owner).CreateKey(ctx, "ada", keys); err != nil {
				return err
			}
			_, _, _, err := directory.NewKeys(db).RegenerateKey(ctx, "ada", keys, directory.Rate{N: 5, Per: time.Hour}, "once")
			return err
		},
		"log in and out": func(ctx context.Context) error {
			_, session, err := directory.NewSessions(db).UseLoginLink(ctx, link.Digest(), apikey.Digest{}, time.Hour, keys)
			if err != nil {
				return err
			}
			_, err = directory.NewSessions(db).EndSession(ctx, session.Digest())
			return err
		},
		"tidy":         feed.New(db).Tidy,
		"tidy links":   directory.NewSessions(db).Tidy,
		"tidy credits": storeledger.New(db).Tidy,
		"requests":     func(ctx context.Context) error { return requests.New(db).Tidy(ctx, time.Hour) },
		"requests are kept": func(ctx context.Context) error {
			record := usage.Record{User: "ada", KeyID: "k", At: time.Now(), Method: "GET", Path: "/", Status: 200}
			return requests.New(db).Save(ctx, []usage.Record{record}, []requests.Count{{User: "ada", KeyID: "k", Requests: 1, At: time.Now()}})
		},
		"a report": func(ctx context.Context) error {
			_, err := storeledger.New(db).Report(ctx, storetest.UseOf(storetest.Month(t, db), "h", 1, 3, false))
			return err
		},
		"roll call": func(ctx context.Context) error { _, err := feed.New(db).RollCall(ctx); return err },
		"refund":    func(ctx context.Context) error { _, err := storeledger.New(db).RefundUnreported(ctx); return err },
		"rate logs": func(ctx context.Context) error {
			_, _, err := requests.New(db).TakeRateLogs(ctx)
			return errors.Join(err, requests.New(db).SaveRateLog(ctx, []byte("x")))
		},
	} {
		if err := f(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	r.End()
}

// A database that cannot hold every text is refused, with its remedy.
func TestEncodings(t *testing.T) {
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		f := storetest.Raw(t, url)
		for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
			name := fmt.Sprintf("narrow_%d", rand.Uint32())
			f.Exec(`CREATE DATABASE ` + name + ` TEMPLATE template0 ENCODING '` + encoding + `' LOCALE 'C'`)
			t.Cleanup(func() {
				if _, err := f.DB.Exec(`DROP DATABASE ` + name); err != nil {
					t.Error(err)
				}
			})
			before, after, _ := strings.Cut(url, "?")
			there := before[:strings.LastIndex(before, "/")+1] + name + "?" + after
			for _, migrate := range []bool{true, false} {
				refused(t, encoding, store.Config{URL: there, Migrate: migrate}, store.ErrDatabase, encoding, "UTF8", "CREATE DATABASE")
			}
		}
		role, as := newRole(f, url)
		f.Exec(`GRANT CREATE ON SCHEMA public TO `+role, `ALTER ROLE `+role+` SET client_encoding = 'LATIN1'`)
		taken(t, "a role that speaks LATIN1 speaks UTF8 to us", store.Config{URL: as, Migrate: true})
	})
}

// The list of checked triggers contains all that the migrations create; on SQLite, also the
// statement for each.
func TestAllTriggersAreLookedAt(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		query := `SELECT c.relname || '.' || t.tgname, t.tgenabled::TEXT FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal ORDER BY 1`
		if strings.HasPrefix(url, "sqlite") {
			query = `SELECT name, sql || ';' FROM sqlite_master WHERE type = 'trigger' ORDER BY 1`
		}
		rows, err := db.Changes.Query(query)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		names, texts := db.Triggers()
		n := 0
		for ; rows.Next(); n++ {
			var name, is string
			if err := rows.Scan(&name, &is); err != nil {
				t.Fatal(err)
			}
			want := "A"
			if texts != nil {
				want = texts[name]
			}
			if !names[name] || is != want {
				t.Errorf("%s is %q, want %q, and looked at: %v", name, is, want, names[name])
			}
		}
		if n != len(names) {
			t.Errorf("%d triggers, %d are looked at", n, len(names))
		}
	})
}

// While triggers that record changes are disabled or missing, nothing is changed or confirmed and
// there is no lease. Migrating enables them, and earlier cached answers are not used.
func TestChangesThatAreNotRecorded(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db, keys := storetest.Open(t, store.Config{URL: url}), storetest.Format(t)
		storetest.WithAda(t, db)
		key, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", keys)
		if err != nil {
			t.Fatal(err)
		}
		r := storetest.StartReplica(t, db, 2*time.Second)
		f := storetest.SQL{T: t, DB: db.Changes}
		type unrecorded struct {
			what, says string
			feed, gone bool // feed: it is in the change feed; gone: it cannot be repaired
			statements []string
		}
		cases := []unrecorded{
			{"the feed is disabled", "keys.changes_update", true, false, []string{`ALTER TABLE keys DISABLE TRIGGER ALL`}},
			{"as after a restore", "keys.changes_update", true, false, []string{`ALTER TABLE keys DISABLE TRIGGER ALL`, `ALTER TABLE keys ENABLE TRIGGER ALL`}},
			{"only for replicas", "changes_pending.changes_commit", true, false, []string{`ALTER TABLE changes_pending ENABLE REPLICA TRIGGER changes_commit`}},
			{"the audit is off", "keys.audit_insert", false, false, []string{`ALTER TABLE keys DISABLE TRIGGER audit_insert`}},
			{"the feed is missing", "users.changes_update", true, true, []string{`DROP TRIGGER changes_update ON users`}},
		}
		if strings.HasPrefix(url, "sqlite") {
			cases = cases[:0]
			for _, name := range []string{"changes_keys_update", "audit_keys_insert", "audit_no_update"} {
				cases = append(cases, unrecorded{name, name, strings.HasPrefix(name, "changes"), false, []string{`DROP TRIGGER ` + name}})
			}
		}
		for _, c := range cases {
			r.AwaitLease(t)
			read := r.Read().Stamp(lease.Origin{Epoch: lease.Epoch(f.Newest()), User: "ada"})
			f.Exec(c.statements...)
			if _, _, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", keys, directory.Rate{}, ""); !errors.Is(err, store.ErrUnrecorded) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: a change: %v, want %v of %s", c.what, err, store.ErrUnrecorded, c.says)
			}
			if now, err := directory.NewKeys(db).LiveKey(t.Context(), "ada"); err != nil || now.ID != key.ID {
				t.Errorf("%s: the key is %s, %v, want still %s", c.what, now.ID, err, key.ID)
			}
			if c.feed {
				partstest.Eventually(t, c.what+": it is noticed", func() bool { return errors.Is(r.Problem(), store.ErrUnrecorded) })
				if r.Held() {
					t.Errorf("%s: the lease is held to its end", c.what)
				}
				if problem := r.Problem(); problem == nil || !strings.Contains(problem.Error(), c.says) {
					t.Errorf("%s: the lease says %v", c.what, problem)
				}
				partstest.Eventually(t, c.what+": the log says so", func() bool {
					return strings.Contains(r.Log.String(), "error=\"renewing the lease: changes are not recorded")
				})
			}
			refused(t, c.what, store.Config{URL: url, Service: true}, store.ErrUnrecorded, c.says)
			if c.gone {
				refused(t, c.what, store.Config{URL: url, Service: true, Migrate: true}, store.ErrUnrecorded, c.says, "backup")
				continue
			}
			var told []string
			taken(t, c.what, store.Config{URL: url, Service: true, Migrate: true, Notice: func(what string, why error) {
				told = append(told, fmt.Sprint(what, why))
			}})
			if len(told) != 1 || !strings.Contains(told[0], c.says) || !strings.Contains(told[0], "are on again") {
				t.Errorf("%s: told %q", c.what, told)
			}
			r.AwaitLease(t)
			partstest.Eventually(t, c.what+": what was read before is of no use", func() bool { return !r.Fresh(&read) })
		}
		// If an operator repairs it by hand, the feed does not show that something may have
		// changed.
		off, on := `ALTER TABLE keys DISABLE TRIGGER changes_update`, `ALTER TABLE keys ENABLE ALWAYS TRIGGER changes_update`
		if _, texts := db.Triggers(); texts != nil {
			off, on = `DROP TRIGGER changes_keys_update`, texts["changes_keys_update"]
		} else {
			f.Exec(`CREATE TRIGGER changes_update AFTER UPDATE ON users REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
				FOR EACH STATEMENT EXECUTE FUNCTION changes_of_users()`, `ALTER TABLE users ENABLE ALWAYS TRIGGER changes_update`)
		}
		r.AwaitLease(t)
		newest := f.Newest()
		read := r.Read().Stamp(lease.Origin{Epoch: lease.Epoch(newest), User: "ada"})
		f.Exec(off, `UPDATE keys SET revoked_at = 1`)
		partstest.Eventually(t, "no lease", func() bool { return !r.Held() })
		f.Exec(on)
		r.AwaitLease(t)
		if r.Fresh(&read) && newest == f.Newest() {
			t.Error("what was read before a change that nobody recorded is used after it")
		}
	})
}

// Open waits for a database that is not reachable yet, reports that at once and only now and then,
// and fails at once on errors that waiting cannot resolve.
func TestADatabaseThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	url := partstest.Database(t, 18)
	address := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}()
	host := url[strings.Index(url, "@")+1:]
	host = host[:strings.Index(host, "/")]
	for what, c := range map[string]struct{ url, code string }{
		"starting":        {url: starting(t, "57P03"), code: "57P03"},
		"full":            {url: starting(t, "53300"), code: "53300"},
		"not resolved":    {url: strings.Replace(url, host, "nowhere.invalid:5432", 1), code: "nowhere.invalid"},
		"nobody listens":  {url: strings.Replace(url, host, address, 1), code: "refused"},
		"closes at once":  {url: starting(t, ""), code: "EOF"},
		"wrong password":  {url: starting(t, "28P01")},
		"no such base":    {url: strings.Replace(url, "?", "_not?", 1)},
		"not that role":   {url: strings.Replace(url, "://", "://nobody:x@", 1)},
		"not encrypted":   {url: strings.Replace(url, "disable", "require", 1)},
		"unknown setting": {url: url + "&nonsense=1"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var told []string
			_, err := store.Open(ctx, store.Config{URL: c.url, Migrate: true, Patience: -1, Notice: func(what string, why error) {
				told = append(told, fmt.Sprint(what, ": ", why))
				cancel()
			}})
			if err == nil {
				t.Fatal("opened")
			}
			if c.code == "" && len(told) > 0 || c.code != "" && (len(told) != 1 || !strings.Contains(told[0], c.code)) {
				t.Errorf("told %q, then %v, want to be told of %q", told, err, c.code)
			}
			if len(told) > 0 && strings.Contains(told[0], context.DeadlineExceeded.Error()) {
				t.Errorf("told %q, and that only when the time was over", told)
			}
		})
	}
}

// starting returns the URL of a server that refuses every client with an error code; with "" it
// hangs up.
func starting(t *testing.T, code string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 1024)) // unread data would cause a reset
			if code != "" {
				fields := "SFATAL\x00VFATAL\x00C" + code + "\x00Mnot now\x00\x00"
				conn.Write(append([]byte{'E', 0, 0, 0, byte(len(fields) + 4)}, fields...))
			}
			conn.Close()
		}
	})
	return "postgres://ada@" + l.Addr().String() + "/x?sslmode=disable"
}

// A process that waits for the lock of the migrations reports that after a second, with the holder,
// and continues when the lock is free.
func TestTheLockOfMigrationsIsWaitedFor(t *testing.T) {
	partstest.Slow(t)
	t.Parallel()
	url := partstest.Database(t, 18)
	f := storetest.Raw(t, url+"&application_name=hanging")
	holder, err := f.DB.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if _, err := holder.ExecContext(t.Context(), `SELECT pg_advisory_lock(1262836048, 2)`); err != nil {
		t.Fatal(err)
	}
	var told []string
	db, err := store.Open(t.Context(), store.Config{URL: url, Migrate: true, Notice: func(what string, why error) {
		told = append(told, fmt.Sprint(what, ": ", why))
		if why != nil {
			if _, err := holder.ExecContext(t.Context(), `SELECT pg_advisory_unlock(1262836048, 2)`); err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if len(told) != 2 || !strings.Contains(told[0], "hanging") || !strings.Contains(told[1], "free") {
		t.Errorf("told %q, want who holds the lock, and that it is free", told)
	}
}

// Functions of triggers name their schema. If the schema was renamed, or one of them was replaced,
// no change that was announced elsewhere, or nowhere, is confirmed. Other triggers beside ours do
// no harm.
func TestTriggersThatWriteElsewhere(t *testing.T) {
	t.Parallel()
	url := partstest.Database(t, 18)
	f := storetest.Raw(t, url)
	f.Exec(`CREATE SCHEMA "Haus, 1"`, `CREATE SCHEMA own`, `CREATE FUNCTION own.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
	house, moved := url+"&search_path=%22Haus,%201%22", url+"&search_path=moved"
	taken(t, "a schema with a comma", store.Config{URL: house, Migrate: true, Service: true})
	f.Exec(`CREATE TRIGGER note AFTER UPDATE ON "Haus, 1".users EXECUTE FUNCTION own.note()`)
	taken(t, "a trigger of somebody else", store.Config{URL: house, Service: true})

	f.Exec(`ALTER SCHEMA "Haus, 1" RENAME TO moved`, `CREATE SCHEMA "Haus, 1"`)
	taken(t, "another installation", store.Config{URL: house, Migrate: true, Service: true})
	refused(t, "a renamed schema", store.Config{URL: moved, Service: true}, store.ErrUnrecorded, "write into another schema", "RENAME")
	refused(t, "a renamed schema that is migrated", store.Config{URL: moved, Migrate: true, Service: true}, store.ErrUnrecorded, "RENAME")
	db := storetest.Open(t, store.Config{URL: moved})
	if _, _, err := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{}, ""); !errors.Is(err, store.ErrUnrecorded) {
		t.Errorf("a change in a renamed schema: %v", err)
	}

	f.Exec(`CREATE OR REPLACE FUNCTION "Haus, 1".changes_of_keys() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
	refused(t, "a function that was replaced", store.Config{URL: house, Service: true}, store.ErrUnrecorded, "keys.changes_update", "replaced")
}

// A trigger that was recreated for another event or with a condition, or with a replaced function
// that has the same settings, records nothing: no change is made and no lease renewed. On SQLite
// migrating recreates the original.
func TestTriggersThatWereReplaced(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		db, keys := storetest.Open(t, store.Config{URL: url}), storetest.Format(t)
		storetest.WithAda(t, db)
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", keys); err != nil {
			t.Fatal(err)
		}
		r := storetest.StartReplica(t, db, 2*time.Second)
		f := storetest.SQL{T: t, DB: db.Changes}
		const onKeys = ` REFERENCING OLD TABLE AS old_rows%s FOR EACH STATEMENT %s EXECUTE FUNCTION changes_of_keys(); ALTER TABLE keys ENABLE ALWAYS TRIGGER changes_update`
		const on, off = `DROP TRIGGER changes_update ON keys; CREATE TRIGGER changes_update AFTER `, `CREATE OR REPLACE FUNCTION `
		const settings = ` RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS 'BEGIN RETURN NULL; END'`
		cases := map[string]string{
			`another event`:           on + fmt.Sprintf(`DELETE ON keys`+onKeys, ``, ``),
			`a condition`:             on + fmt.Sprintf(`UPDATE ON keys`+onKeys, ` NEW TABLE AS new_rows`, `WHEN (FALSE)`),
			`its function`:            off + `changes_of_keys()` + settings,
			`the last function`:       off + `changes_commit()` + settings,
			`the audit, its function`: off + `audit_of_changes()` + settings,
		}
		if strings.HasPrefix(url, "sqlite") {
			cases = map[string]string{
				`another event`: `DROP TRIGGER changes_keys_update; CREATE TRIGGER changes_keys_update AFTER DELETE ON keys BEGIN SELECT 1; END`,
				`a condition`:   `DROP TRIGGER changes_keys_update; CREATE TRIGGER changes_keys_update AFTER UPDATE ON keys WHEN FALSE BEGIN SELECT 1; END`,
				`the audit`:     `DROP TRIGGER audit_keys_update; CREATE TRIGGER audit_keys_update AFTER UPDATE ON keys BEGIN SELECT 1; END`,
			}
		}
		for what, statements := range cases {
			r.AwaitLease(t)
			before := definitions(f)
			f.Exec(statements)
			if _, _, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", keys, directory.Rate{}, ""); !errors.Is(err, store.ErrUnrecorded) || !strings.Contains(err.Error(), "replaced") {
				t.Errorf("%s: a change: %v, want %v", what, err, store.ErrUnrecorded)
			}
			if !strings.Contains(what, "audit") {
				partstest.Eventually(t, what+": no lease", func() bool { return !r.Held() && errors.Is(r.Problem(), store.ErrUnrecorded) })
			}
			refused(t, what, store.Config{URL: url, Service: true}, store.ErrUnrecorded, "were replaced")
			if !strings.HasPrefix(url, "sqlite") {
				refused(t, what, store.Config{URL: url, Service: true, Migrate: true}, store.ErrUnrecorded, "replaced", "backup")
				f.Exec(before...)
			}
			taken(t, what, store.Config{URL: url, Service: true, Migrate: true})
		}
		r.AwaitLease(t)
	})
}

// definitions returns the statements that recreate the functions of triggers, and the trigger that
// the test replaces; nothing on SQLite.
func definitions(f storetest.SQL) (statements []string) {
	f.Helper()
	if f.Number(`SELECT count(*) FROM trigger_definitions WHERE name = 'keys.changes_update'`) == 0 {
		return nil
	}
	rows, err := f.DB.Query(`SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prorettype = 'trigger'::regtype
		UNION ALL SELECT 'DROP TRIGGER changes_update ON keys' UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = 'changes_update' AND tgrelid = 'keys'::regclass
		UNION ALL SELECT 'ALTER TABLE keys ENABLE ALWAYS TRIGGER changes_update'`)
	if err != nil {
		f.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var statement string
		if err := rows.Scan(&statement); err != nil {
			f.Fatal(err)
		}
		statements = append(statements, statement)
	}
	return statements
}

// The roles in the documents work as written: the owner migrates, the other one serves.
func TestTheRolesOfTheDocument(t *testing.T) {
	t.Parallel()
	url := partstest.Database(t, 18)
	f := storetest.Raw(t, url)
	text, err := os.ReadFile("../docs/database.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "```sql\n")
	block, _, _ = strings.Cut(block, "```")
	f.Exec(block)
	t.Cleanup(func() {
		for _, role := range []string{"keyporter_service", "keyporter_owner"} {
			if _, err := f.DB.Exec(`DROP OWNED BY ` + role + ` CASCADE; DROP ROLE ` + role); err != nil {
				t.Error(err)
			}
		}
	})
	as := func(role string) string {
		scheme, rest, _ := strings.Cut(url, "://")
		return scheme + "://" + role + rest[strings.Index(rest, "@"):]
	}
	taken(t, "the owner migrates", store.Config{URL: as("keyporter_owner"), Migrate: true})
	taken(t, "the service starts", store.Config{URL: as("keyporter_service"), Service: true})
	refused(t, "the service migrates", store.Config{URL: as("keyporter_service") + "&search_path=public", Migrate: true}, store.ErrRights, "GRANT CREATE")
	owner, err := store.Open(t.Context(), store.Config{URL: as("keyporter_owner")})
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	storetest.WithAda(t, owner)
	worksAs(t, owner, store.Config{URL: as("keyporter_service"), Service: true})
}

// If a restore of data alone ends halfway, or leaves triggers disabled in another way, nothing can
// be changed; a whole backup brings its triggers back.
func TestRestores(t *testing.T) {
	partstest.Slow(t)
	storetest.OnPostgres(t, func(t *testing.T, url string) {
		major := 18
		if strings.HasSuffix(t.Name(), "16") {
			major = 16
		}
		server, backup := partstest.Postgres(t, major), filepath.Join(t.TempDir(), "backup")
		tool := func(program string, args ...string) error {
			out, err := exec.CommandContext(t.Context(), server.Program(program), args...).CombinedOutput()
			t.Logf("%s: %v\n%.300s", program, err, out)
			return err
		}
		db, keys := storetest.Open(t, store.Config{URL: url}), storetest.Format(t)
		storetest.WithAda(t, db)
		if _, _, err := directory.NewKeys(db).CreateKey(t.Context(), "ada", keys); err != nil {
			t.Fatal(err)
		}
		if err := tool("pg_dump", "--format=custom", "--file="+backup, url); err != nil {
			t.Fatal(err)
		}
		whole := partstest.Database(t, major)
		if err := tool("pg_restore", "--dbname="+whole, backup); err != nil {
			t.Fatal(err)
		}
		taken(t, "a whole backup", store.Config{URL: whole, Service: true})
		if err := tool("pg_restore", "--data-only", "--disable-triggers", "--exit-on-error", "--dbname="+url, backup); err == nil {
			t.Fatal("the restore went well, over the rows that are there")
		}
		if _, _, _, err := directory.NewKeys(db).RegenerateKey(t.Context(), "ada", keys, directory.Rate{}, ""); !errors.Is(err, store.ErrUnrecorded) {
			t.Errorf("a change after a restore that failed: %v, want %v", err, store.ErrUnrecorded)
		}
		refused(t, "after a restore that failed", store.Config{URL: url, Service: true}, store.ErrUnrecorded, "keyporter migrate")
		taken(t, "repaired", store.Config{URL: url, Service: true, Migrate: true})
	})
}
