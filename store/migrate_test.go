package store_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	storeledger "github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// kept are databases that were made by the schema of each release, with a few rows of everything.
// They are never changed. A release that changes the schema adds its own:
// KEYPORTER_KEEP=VERSION go test -run TestDatabasesOfReleases ./store
var kept = []string{"100", "110", "115", "120", "130"}

const keptMonth = usage.Month(202611)

// Every later build opens a database of each release, and finds in it what was there.
func TestDatabasesOfReleases(t *testing.T) {
	if version := os.Getenv("KEYPORTER_KEEP"); version != "" {
		keepRelease(t, version)
	}
	for _, version := range kept {
		t.Run("SQLite "+version, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "kept.db")
			if err := os.WriteFile(path, unpack(t, version+".sqlite.gz"), 0o600); err != nil {
				t.Fatal(err)
			}
			checkKept(t, store.Config{URL: "sqlite://" + path})
		})
		t.Run("PostgreSQL "+version, func(t *testing.T) {
			t.Parallel()
			url := partstest.Database(t, 18)
			db, err := sql.Open("postgres", url)
			if err != nil {
				t.Fatal(err)
			}
			_, err = db.Exec(string(unpack(t, version+".postgres.sql.gz")))
			db.Close() // the dump has changed the settings of its session
			if err != nil {
				t.Fatal(err)
			}
			checkKept(t, store.Config{URL: url})
		})
	}
}

// The last kept database has the schema that this build makes: a released file of migrations was
// not edited, and a new one has a kept database.
func TestTheKeptSchemaIsTheOneMadeNow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kept.db")
	if err := os.WriteFile(path, unpack(t, kept[len(kept)-1]+".sqlite.gz"), 0o600); err != nil {
		t.Fatal(err)
	}
	schema := func(url string) (text string) {
		err := storetest.Raw(t, url).DB.QueryRow(`SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name)`).Scan(&text)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if schema("sqlite://"+path) != schema(storetest.Migrated["SQLite"](t)) {
		t.Error("store/testdata has another schema than a new database: keep one of this schema, or undo the change of a released migration")
	}
}

// checkKept opens a kept database as this build does, and as one with a further migration does.
func checkKept(t *testing.T, c store.Config) {
	t.Helper()
	c.Service = true
	for _, build := range []store.Config{c, c.Later(99999, `ALTER TABLE users ADD COLUMN later BIGINT`)} {
		build.Migrate = true
		db, err := store.Open(t.Context(), build)
		if err != nil {
			t.Fatal(err)
		}
		principal, err := directory.NewLookups(db).FindKey(t.Context(), keptDigest())
		if err != nil || principal.User != "ada" || principal.Plan != "pro" || principal.Credits != 20_000 || !principal.UserActive {
			t.Errorf("the key resolves to %+v, %v", principal, err)
		}
		wrong, pools, err := storeledger.New(db).Verify(t.Context())
		if err != nil || len(wrong) > 0 || pools != 2 {
			t.Errorf("%d pools, wrong: %v, %v", pools, wrong, err)
		}
		var used, refunded int64
		if err := db.Changes.QueryRow(`SELECT used, refunded FROM credit_pools WHERE kind = 'user' AND month = $1`, int64(keptMonth)).Scan(&used, &refunded); err != nil || used != 40 || refunded != 7 {
			t.Errorf("%d used, %d refunded, %v; want 40, 7", used, refunded, err)
		}
		if err := storeledger.New(db).Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := db.Changes.QueryRow(`SELECT CAST(sum(used) AS BIGINT), CAST(sum(refunded) AS BIGINT) FROM credit_daily WHERE user_name = 'ada' AND account = 'acme'`).Scan(&used, &refunded); err != nil || used != 40 || refunded != 7 {
			t.Errorf("on the days %d used, %d refunded, %v; want 40, 7", used, refunded, err)
		}
		if secrets, err := directory.NewKeys(db).TagSecrets(t.Context()); err != nil || len(secrets) != 1 {
			t.Errorf("%d tag secrets, %v", len(secrets), err)
		}
		db.Close()
	}
}

// keptDigest is the digest of the key in kept databases.
func keptDigest() (d apikey.Digest) {
	copy(d[:], storetest.Digest('k'))
	return d
}

// keepRelease writes the databases of a release.
func keepRelease(t *testing.T, version string) {
	t.Helper()
	for _, name := range []string{"SQLite", "PostgreSQL 18"} {
		url := storetest.Databases[name](t)
		db := storetest.Open(t, store.Config{URL: url})
		fill(t, db)
		var content []byte
		var err error
		file := version + ".postgres.sql.gz"
		if path, ok := strings.CutPrefix(url, "sqlite://"); ok {
			file = version + ".sqlite.gz"
			if _, err := db.Changes.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
				t.Fatal(err)
			}
			content, err = os.ReadFile(path)
		} else {
			content, err = exec.CommandContext(t.Context(), partstest.Postgres(t, 18).Program("pg_dump"), "--no-owner", "--no-privileges", "--inserts", url).Output()
		}
		if err != nil {
			t.Fatal(err)
		}
		pack(t, file, content)
	}
}

// fill makes a few rows of everything that later builds must find.
func fill(t *testing.T, db *store.DB) {
	t.Helper()
	storetest.WithAda(t, db)
	f := storetest.SQL{T: t, DB: db.Changes}
	for table, columns := range map[string]string{"keys": "id, created_at", "sessions": "expires_at, created_at", "login_links": "expires_at, created_at"} {
		digest := keptDigest()
		if _, err := db.Changes.Exec(`INSERT INTO `+table+` (user_name, digest, `+columns+`) VALUES ('ada', $1, 1900000000000, 1800000000000)`, digest[:]); err != nil {
			t.Fatal(err)
		}
	}
	f.Exec(fmt.Sprintf(`INSERT INTO credit_grants (id, month, kind, name, credits, made_at) VALUES ('grant_1', %d, 'user', 'ada', 500, 1800000000000)`, keptMonth))
	payer := ledger.Payer{Month: keptMonth, Kind: usage.PoolUser, User: "ada", Account: "acme"}
	storetest.SetClock(db, time.Until(keptMonth.Start().Add(time.Hour)))
	for i, outcomes := range [][]ledger.Outcome{nil, {outcomeOf(1, 10, 3)}, {outcomeOf(1, 10, 5), outcomeOf(2, 2, 2)}, {outcomeOf(3, 9, 0)}} {
		used := int64(10 * (1 + i))
		_, err := storeledger.New(db).Report(t.Context(), ledger.Report{
			Holder: "kept", Seq: int64(1 + i), Last: i == 3, Outcomes: outcomes,
			Asks:   []ledger.Ask{{Pool: ledger.Pool{Month: keptMonth, Kind: usage.PoolUser, Name: "ada"}, Used: used, Keep: used}},
			Usages: []ledger.Usage{{Payer: payer, Used: used}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func outcomeOf(number uint64, credits, refund int64) ledger.Outcome {
	o := ledger.Outcome{ChargeID: ledger.ChargeID{Holder: "kept", Number: number}, Month: keptMonth, User: "ada", Account: "acme", Credits: credits, Refund: refund}
	if refund > 0 {
		o.Cause = ledger.CauseSettled
	}
	return o
}

func pack(t *testing.T, file string, content []byte) {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	for line := range bytes.Lines(content) {
		if strings.HasSuffix(file, ".sqlite.gz") || !bytes.HasPrefix(line, []byte(`\`)) { // commands for psql alone
			w.Write(line)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", file), packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func unpack(t *testing.T, file string) []byte {
	t.Helper()
	packed, err := os.Open(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	r, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// A migration that fails changes nothing, and the error names the database; the next build that
// succeeds continues from there.
func TestAMigrationThatFails(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		c := store.Config{URL: url, Migrate: true}
		f := storetest.Raw(t, url)
		newest := f.Number(`SELECT max(version_id) FROM keyporter_schema`)
		refused(t, "a broken migration", c.Later(10001, `CREATE TABLE half (id BIGINT); CREATE TABLE half (id BIGINT)`), nil, "half")
		if n := f.Number(`SELECT max(version_id) FROM keyporter_schema`); n != newest {
			t.Errorf("the schema has version %d", n)
		}
		taken(t, "this build", c)
		taken(t, "the mended one", c.Later(10001, `CREATE TABLE half (id BIGINT)`))
		if n := f.Number(`SELECT count(*) FROM half`); n != 0 {
			t.Error(n)
		}
		refused(t, "this build, after a newer one", c, store.ErrSchemaTooNew, "10001", "newer keyporter")
	})
}

// A migration makes no trigger count as ours that somebody has replaced before it: PostgreSQL is
// refused, and SQLite repaired.
func TestAMigrationAcceptsNoReplacedTrigger(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		storetest.Open(t, store.Config{URL: url})
		f := storetest.Raw(t, url)
		later := store.Config{URL: url, Migrate: true, Service: true}.Later(10001, `CREATE TABLE later (id BIGINT)`)
		if strings.HasPrefix(url, "postgres") {
			f.Exec(`CREATE OR REPLACE FUNCTION changes_of_keys() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$BEGIN RETURN NULL; END$$`)
			refused(t, "this build", store.Config{URL: url, Service: true}, store.ErrUnrecorded, "replaced")
			refused(t, "a later build", later, store.ErrUnrecorded, "replaced")
			return
		}
		f.Exec(`DROP TRIGGER changes_keys_update`, `CREATE TRIGGER changes_keys_update AFTER UPDATE ON keys BEGIN SELECT 1; END`)
		refused(t, "this build", store.Config{URL: url, Service: true}, store.ErrUnrecorded, "replaced")
		taken(t, "a later build", later)
		f.Exec(storetest.People...)
		before := f.Newest()
		f.Exec(`UPDATE keys SET revoked_at = 5 WHERE id = 'ka'`)
		if got := f.Names(before); len(got) == 0 {
			t.Error("after the migration the revocation of ada's key is not in the change feed")
		}
	})
}

// A migration runs the text for both databases before that for one of them, and the lower version
// first.
func TestTheOrderOfMigrations(t *testing.T) {
	folder := fstest.MapFS{}
	for _, file := range []string{"00101_more.sql", "00101_also.postgres.sql", "00101_more.sqlite.sql", "00100_z.sql", "00102_a.sql", "00102_b.sqlite.sql"} {
		folder["migrations/"+file] = &fstest.MapFile{Data: []byte(file)}
	}
	for database, want := range map[string]string{
		"postgres": "00100_z.sql 00101_more.sql 00101_also.postgres.sql 00102_a.sql",
		"sqlite":   "00100_z.sql 00101_more.sql 00101_more.sqlite.sql 00102_a.sql 00102_b.sqlite.sql",
	} {
		if got, err := store.MigrationTexts(folder, database); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v; want %s", database, got, err, want)
		}
	}
}

// The triggers of SQLite are what their generator writes.
func TestTheTriggersOfSQLiteAreGenerated(t *testing.T) {
	partstest.Slow(t)
	fresh := filepath.Join(t.TempDir(), "triggers.sql")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "run", "migrations/generate.go", fresh).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want, err1 := os.ReadFile(fresh)
	got, err2 := os.ReadFile("migrations/00100_triggers.sqlite.sql")
	if err1 != nil || err2 != nil || !bytes.Equal(want, got) {
		t.Errorf("migrations/00100_triggers.sqlite.sql is not what `go generate ./store` writes (%v, %v)", err1, err2)
	}
}
