package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

// hostile is a text that clears a screen, moves to another line, changes the direction of text, and
// ends in invalid UTF-8.
const hostile = "a\x1b[2J\r\n\x00b\u202ec\u2066d\u009b31m\u2028e\U000e0041\xff"

// hostileDatabase returns a database with hostile texts in every column that accepts them.
func hostileDatabase(t *testing.T) (url string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "k.db")
	url = "sqlite://" + file
	for _, command := range []string{"migrate", "plan set pro", "account set acme --plan pro", "user set ada --account acme", "key create ada",
		"key regenerate ada", "credits grant ada 5"} {
		command, _ := called(t, command, url)
		if command.status != exitDone {
			t.Fatal(command.problems)
		}
	}
	db, err := store.Open(t.Context(), store.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := feed.NewRegistry(db, feed.Replica{Name: hostile, Address: hostile, Version: hostile, Routes: hostile, Life: time.Second}); err != nil {
		t.Fatal(err)
	}
	key, err := directory.NewKeys(db).LiveKey(t.Context(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	err = requests.New(db).Save(t.Context(), []usage.Record{{User: "ada", KeyID: key.ID, At: time.Now(), Method: hostile, Path: hostile, Status: 200, Reason: hostile}},
		[]requests.Count{
			{User: "ada", KeyID: key.ID, Address: hostile, Agent: hostile, At: time.Now(), Requests: 1},
			{User: "ada", KeyID: "old", Ended: true, Address: hostile, Agent: hostile, At: time.Now(), Requests: 1},
		})
	if err != nil {
		t.Fatal(err)
	}
	shell, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	shell.SetMaxOpenConns(1) // the actor is set on the connection
	text, month := strings.ToValidUTF8(hostile, "?"), int64(usage.MonthOf(time.Now()))
	for _, statement := range []string{
		`INSERT INTO audit_actor (id, actor) VALUES (1, $1)`,
		`UPDATE users SET subject = $1 WHERE name = 'ada'`,
		`INSERT INTO keys (id, user_name, digest, created_at, revoked_at) VALUES ($1, 'ada', zeroblob(32), 1800000000000, 1800000000000)`,
		`INSERT INTO credit_refunds (month, user_name, account, charge, total, credits, cause, made_at) VALUES (` + fmt.Sprint(month) + `, 'ada', 'acme', $1, 1, 1, $1, 1800000000000)`,
	} {
		if _, err := shell.Exec(statement, text); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return url
}

type outcome struct {
	status        int
	out, problems string
}

// called runs a command on a database, and returns its text and its JSON output.
func called(t *testing.T, line, url string) (text, asJSON outcome) {
	t.Helper()
	one := func(more ...string) (o outcome) {
		args := strings.Fields(line)
		for i, arg := range args {
			args[i] = strings.ReplaceAll(arg, "HOSTILE", hostile)
		}
		var out, problems bytes.Buffer
		o.status = run(t.Context(), append(append(args, "--database", url), more...), &out, &problems)
		o.out, o.problems = out.String(), problems.String()
		return o
	}
	return one(), one("--output", "json")
}

// With any content of the database and any arguments, the output contains no invisible characters
// and none that move others. The output of --output json is JSON, with names and times in their
// usual form.
func TestOutputCannotBeTurnedAgainstItsReader(t *testing.T) {
	url := hostileDatabase(t)
	commands := []string{
		"audit --limit 1000", "export", "export --format jsonl", "import HOSTILE.csv", "plan list", "account list", "user list", "key list", "key list ada", "user show ada", "replicas", "events list", "events endpoints", "events retry HOSTILE", "events retry --endpoint HOSTILE",
		"credits show ada", "credits statement ada", "credits statement --account acme", "usage", "usage --group-by user --csv", "usage --group-by day", "usage --user HOSTILE", "ledger verify", "check /api/v1/brands", "check /HOSTILE", "check /api -H Cookie:HOSTILE",
		"version", "config show", "config check", "migrate", "envoy", "envoy secret ca --authz-tls-ca HOSTILE", "envoy check HOSTILE.yaml", "healthcheck --listen-ops 127.0.0.1:1",
		"user show HOSTILE", "plan set HOSTILE", "plan set pro --pool HOSTILE", "account set HOSTILE", "user set ada --subject HOSTILE", "nonsense HOSTILE",
		"plan list --HOSTILE", "config check --config HOSTILE", "session create ada", "session create ada --link", "session revoke ada",
		"plan set pro --rate-limit 61", "account set acme --status active", "user set ada --status active --subject x", "credits grant ada 1",
		"key regenerate ada", "key revoke ada", "key create bob", "replicas accept-history", "drill revoke --replica 127.0.0.1:1",
		"user delete ada", "account delete acme", "plan delete pro", "seal init " + filepath.Join(t.TempDir(), "HOSTILE"), "seal rotate HOSTILE",
		"init --upstream HOSTILE", "init --upstream http://127.0.0.1:1 --dir " + filepath.Join(t.TempDir(), "new"),
	}
	for _, line := range commands {
		text, asJSON := called(t, line, url)
		for kind, shown := range map[string]string{"text": text.out, "problems": text.problems, "JSON": asJSON.out, "problems with JSON": asJSON.problems} {
			if i := strings.IndexFunc(shown, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }); i >= 0 {
				t.Errorf("keyporter %s: %s: %+q", line, kind, shown[max(0, i-20):min(len(shown), i+20)])
			}
		}
		if asJSON.out != "" {
			walkJSON(t, "keyporter "+line, asJSON.out)
		}
	}
	everyCommand(t, commands)
}

// everyCommand checks that a list contains every command.
func everyCommand(t *testing.T, lines []string) {
	t.Helper()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		path := strings.TrimPrefix(cmd.CommandPath(), "keyporter ")
		if cmd.HasSubCommands() || slices.Contains([]string{"serve", "demo", "help"}, path) || strings.HasPrefix(path, "completion") {
			return // they print texts that others logged, requested or wrote
		}
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, path) }) {
			t.Errorf("%s is not tried", path)
		}
	}
	walk((&app{}).root())
}

var (
	snakeCase = regexp.MustCompile(`^@?[a-z][a-z0-9_]*$`)
	looksDate = regexp.MustCompile(`^\d{4}-\d\d-\d\dT`)
	// mayBeNull are the fields that may be null: times in the future, missing keys, unknown values.
	mayBeNull = []string{"key", "at", "last_at", "last_used_at", "revoked_at", "lease_left_ms", "rate_limit", "credits", "subject"}
)

// walkJSON checks all names and values in a JSON value.
func walkJSON(t *testing.T, where, text string) {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Errorf("%s: %v: %.200q", where, err, text)
		return
	}
	var walk func(path string, value any)
	walk = func(path string, value any) {
		switch value := value.(type) {
		case map[string]any:
			for name, one := range value {
				// Envoy's own names
				if !snakeCase.MatchString(name) && !strings.HasPrefix(name, "envoy.") {
					t.Errorf("%s: %s has the name %q", where, path, name)
				}
				if one == nil && !slices.Contains(mayBeNull, name) {
					t.Errorf("%s: %s.%s is null", where, path, name)
				}
				walk(path+"."+name, one)
			}
		case []any:
			for i, one := range value {
				walk(fmt.Sprintf("%s[%d]", path, i), one)
			}
		case string:
			at, err := time.Parse(time.RFC3339, value)
			if looksDate.MatchString(value) && (err != nil || at.Year() < 2020) {
				t.Errorf("%s: %s is the time %q", where, path, value)
			}
			if strings.Contains(value, "%!") || strings.Contains(value, "<nil>") || strings.Contains(value, "0xc0") {
				t.Errorf("%s: %s is %q", where, path, value)
			}
		}
	}
	walk("", value)
}

// meddler is a standard output that changes the database once the first rows are printed.
type meddler struct {
	bytes.Buffer
	meddle  func()
	largest int
}

func (m *meddler) Write(p []byte) (int, error) {
	if m.meddle != nil {
		m.meddle()
		m.meddle = nil
	}
	m.largest = max(m.largest, len(p))
	return m.Buffer.Write(p)
}

// A list of any length is printed while it is read: its last rows show changes made while its first
// rows are printed, and no write is longer than a page. Both formats are the same as if printed at
// once.
func TestListsArePrintedAsTheyAreRead(t *testing.T) {
	const n = 2*pageRows + 1
	file := filepath.Join(t.TempDir(), "k.db")
	url := "sqlite://" + file
	for _, command := range []string{"migrate", "plan set pro", "account set acme --plan pro"} {
		if status := run(t.Context(), append(strings.Fields(command), "--database", url), io.Discard, io.Discard); status != exitDone {
			t.Fatal(command)
		}
	}
	shell, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	fill := func(from, to int) {
		t.Helper()
		const names = `WITH RECURSIVE n (i) AS (VALUES ($1) UNION ALL SELECT i + 1 FROM n WHERE i < $2), names AS (SELECT 'n' || printf('%06d', i) AS name FROM n) `
		for _, statement := range []string{
			`INSERT INTO plans (name, api_access, rate_limit, rate_window, credits, pool) SELECT name, TRUE, 1, 60000, 1, 'user' FROM names`,
			`INSERT INTO accounts (name, kind, plan, status) SELECT name, 'person', 'pro', 'active' FROM names`,
			`INSERT INTO users (name, kind, account, status) SELECT name, 'person', 'acme', 'active' FROM names`,
			`INSERT INTO keys (id, user_name, digest, created_at) SELECT name, name, CAST(name || '_________________________' AS BLOB), 1800000000000 FROM names`,
		} {
			if _, err := shell.Exec(names+statement, from, to); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
	}
	fill(1, n)
	for i, list := range []string{"user list", "account list", "plan list", "key list"} {
		for j, format := range []string{"text", "json"} {
			last := n + 1 + 2*i + j
			out := &meddler{meddle: func() { fill(last, last) }}
			if status := run(t.Context(), append(strings.Fields(list), "--database", url, "--output", format), out, io.Discard); status != exitDone {
				t.Fatal(list)
			}
			if !strings.Contains(out.String(), fmt.Sprintf("n%06d", last)) || out.largest > out.Len()*3/5 {
				t.Errorf("%s: of %d bytes at most %d at once, and the last one made is not there: it is read as a whole", list, out.Len(), out.largest)
			}
			if format == "json" {
				walkJSON(t, list, out.String())
			} else if lines := strings.Count(out.String(), "\n"); lines < last {
				t.Errorf("%s: %d lines", list, lines)
			}
		}
	}
	var out bytes.Buffer
	if status := run(context.Background(), []string{"audit", "--limit", "3000", "--database", url, "--output", "json"}, &out, io.Discard); status != exitDone || strings.Count(out.String(), `"action"`) != 3000 {
		t.Errorf("audit --limit 3000: status %d, %d entries", status, strings.Count(out.String(), `"action"`))
	}
}
