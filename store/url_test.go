package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
)

// An unusable database URL is reported without connecting, by the name of the parameter, and
// without any part of a password.
func TestDatabaseURLs(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for url, says := range map[string]string{
		// Valid.
		"sqlite://keyporter.db":                   "",
		"postgres://kp@h1:5432,h2:5433/kp":        "",
		"postgres://kp:hunter2@h1:5432,h2/kp":     "",
		"postgresql://kp@[::1]:5432,[fe80::1]/kp": "",
		"postgres:///kp?host=a,b&port=1,2":        "",
		"postgres:///kp?host=a,,b&port=1,,2":      "",
		"postgres://%2Fvar%2Frun%2Fpostgresql/kp": "",
		"postgres:///kp?host=/var/run/postgresql": "",
		"postgres://": "",
		"postgres://kp:a%2F%3F%40%25hunter2@h/kp":    "",
		"postgres://kp:hunter2#x@h/kp":               "",
		"postgres://kp@h/kp?sslmode=verify-full":     "",
		"postgres://kp@h/kp?ssl=true":                "",
		"postgres://kp@h/kp?search_path=kp,public":   "",
		"postgres://kp@h/kp?role=owner":              "",
		"postgres://kp@h/kp?options=-c%20geqo%3Doff": "",
		"postgres://kp@h/kp?app.tenant=x":            "",
		"postgres://kp@h,i/kp?target_session_attrs=read-write&load_balance_hosts=random&connect_timeout=2": "",
		// Invalid.
		"sqlite://":               "sqlite://PATH",
		"mysql://kp:hunter2@h/kp": "postgres://",
		"postgres://kp:hunter2@h/kp?sslmode=verify_full":                  "did you mean verify-full?",
		"postgres://kp:hunter2@h/kp?sslmode=on":                           "want one of disable, allow, prefer, require, verify-ca, verify-full",
		"postgres://kp:hunter2@h/kp?sslmod=require":                       `no parameter "sslmod"`,
		"postgres://kp:hunter2@h/kp?channel_binding=require":              "channel_binding is a parameter of libpq",
		"postgres://kp:hunter2@h/kp?sslcrl=x":                             "sslcrl is a parameter of libpq",
		"postgres://kp:hunter2@h/kp?connect_timeout=soon":                 "connect_timeout",
		"postgres://kp:hunter2@h/kp?client_encoding=latin1":               "client_encoding",
		"postgres://kp:hunter2@h/kp?target_session_attrs=standby":         "primary or read-write",
		"postgres://kp:hunter2@h/kp?sslnegotiation=direct&sslmode=prefer": "sslnegotiation",
		"postgres://kp:hunter2@h:99999/kp":                                "1 to 65535",
		"postgres://kp:hunter2@h:0/kp":                                    "1 to 65535",
		"postgres://kp:hunter2@h1:1,h2:x/kp":                              "1 to 65535",
		"postgres://kp:hunter2@h1,h2/kp?port=1,2,3":                       "port",
		"postgres://kp:hunter2@::1/kp":                                    "brackets",
		"postgres://kp:hunter2@[::1/kp":                                   "brackets",
		"postgres://kp:hunter2@h/kp?sslmode":                              "NAME=VALUE",
		"postgres://kp:a/hunter2@h/kp":                                    "%2F",
		"postgres://kp:12/hunter2@h/kp":                                   "%2F",
		"postgres://kp:12?hunter2=1@h/kp":                                 "%3F",
		"postgres://kp:12?hunter2@h/kp":                                   "%3F",
		"postgres://kp:%zzhunter2@h/kp":                                   "%25",
	} {
		err := store.CheckURL(url)
		switch {
		case says == "" && err != nil:
			t.Errorf("%s: %v", url, err)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("%s: %v, want %q", url, err, says)
		case err != nil && strings.Contains(err.Error(), secret):
			t.Errorf("%s: %v shows the password", url, err)
		}
		if shown := store.MaskURL(url); strings.Contains(shown, secret) {
			t.Errorf("%s is shown as %s", url, shown)
		}
	}
	for url, shown := range map[string]string{
		"postgres://kp:hunter2@h1:1,h2:2/kp?sslmode=require": "postgres://kp:xxxxx@h1:1,h2:2/kp?…",
		"postgres://kp@[::1]:1,[::2]/kp":                     "postgres://kp@[::1]:1,[::2]/kp",
		"postgres://kp:hunter2@h1/kp":                        "postgres://kp:xxxxx@h1/kp",
	} {
		if got := store.MaskURL(url); got != shown {
			t.Errorf("%s is shown as %s, want %s", url, got, shown)
		}
	}
}

// An unknown parameter is reported with the known ones, for a suggestion.
func TestAnUnknownParameter(t *testing.T) {
	t.Parallel()
	unknown := (*store.ParameterError)(nil)
	if err := store.CheckURL("postgres://h/kp?sslmod=require"); !errors.As(err, &unknown) || unknown.Name != "sslmod" {
		t.Fatalf("%v", err)
	}
	if known := strings.Join(unknown.Known, " "); !strings.Contains(known, "sslmode") || !strings.Contains(known, "statement_timeout") {
		t.Errorf("known: %s", known)
	}
}

// Every session setting of PostgreSQL may be part of a URL.
func TestEverySettingOfASessionIsKnown(t *testing.T) {
	t.Parallel()
	for _, major := range []int{16, 18} {
		out, err := partstest.Postgres(t, major).SQL(t.Context(), "postgres",
			`SELECT name FROM pg_settings WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend')`)
		if err != nil {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(out) {
			// libpq gives it another meaning
			if err := store.CheckURL("postgres://h/kp?" + name + "=UTF8"); err != nil && !strings.EqualFold(name, "DateStyle") && name != "tcp_user_timeout" {
				t.Errorf("PostgreSQL %d has %s: %v", major, name, err)
			}
		}
	}
}

// A certificate file that is missing or holds no certificate is reported before connecting, even if
// the driver would continue without it, and verify nothing.
func TestFilesOfADatabaseURL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text.pem")
	if err := os.WriteFile(text, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.pem")
	for parameters, says := range map[string]string{
		"sslmode=disable&sslrootcert=" + missing:                 "",
		"sslmode=verify-full":                                    "",
		"sslmode=verify-full&sslrootcert=system":                 "",
		"sslmode=verify-full&sslrootcert=" + missing:             "sslrootcert of the database: open " + missing,
		"sslmode=require&sslrootcert=" + missing:                 "sslrootcert of the database: open " + missing,
		"sslmode=verify-full&sslrootcert=" + text:                "the certificates of the database",
		"sslmode=require&sslcert=" + missing:                     "sslcert of the database: open " + missing,
		"sslmode=require&sslcert=" + text + "&sslkey=" + missing: "sslkey of the database: open " + missing,
		"sslmode=require&sslcert=" + text + "&sslkey=" + text:    "the certificates of the database",
	} {
		url := "postgres://kp:hunter2@127.0.0.1:1/kp?" + parameters
		err := store.CheckURLFiles(url)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v, want %q", parameters, err, says)
		}
		if _, err := store.Open(t.Context(), store.Config{URL: url}); err == nil || says != "" && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: opened, %v, want %q", parameters, err, says)
		}
	}
}
