package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

func TestMain(m *testing.M) {
	code := partstest.M{M: m}.Run()
	if programDir != "" {
		os.RemoveAll(programDir)
	}
	os.Exit(code)
}

var programDir string

// built builds the program once per run. Scripts start it hundreds of times, which would take
// minutes under the race detector.
var built = sync.OnceValues(func() (path string, err error) {
	if programDir, err = os.MkdirTemp("", "keyporter-scripts-"); err != nil {
		return "", err
	}
	path = filepath.Join(programDir, "keyporter")
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building keyporter: %w\n%s", err, out)
	}
	return path, nil
})

// program returns the path of the program.
func program(t testing.TB) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Commands do what their help says, as an operator sees it: output, exit status and effects. Each
// script in testdata/script states its guarantee in its first lines.
func TestScripts(t *testing.T) {
	runScripts(t, "testdata/script", func(e *testscript.Env) error {
		address, err := parts.FreeAddr()
		e.Setenv("FREE", address)
		return err
	})
}

// The scripts in testdata/postgres find an empty PostgreSQL database.
func TestScriptsOnPostgres(t *testing.T) {
	url := partstest.Database(t, 18)
	runScripts(t, "testdata/postgres", func(e *testscript.Env) error {
		e.Setenv("POSTGRES", url)
		return nil
	})
}

func runScripts(t *testing.T, dir string, setup func(*testscript.Env) error) {
	folder := filepath.Dir(program(t))
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", folder+string(filepath.ListSeparator)+e.Getenv("PATH"))
			return setup(e)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status, "noleak": noLeak, "savekey": saveKey},
	})
}

// status runs a command and requires exactly the given exit status: `status 2 keyporter …`.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command [args]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s: exit status %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// saveKey stores the standard output of the last command, a key, in a variable: `savekey NAME`.
func saveKey(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: savekey NAME")
	}
	first, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n")
	ts.Setenv(args[0], first)
}

// noLeak fails if the output of the last command contains the value of a variable: `noleak NAME`.
func noLeak(ts *testscript.TestScript, neg bool, args []string) {
	secret := ts.Getenv(args[0])
	if neg || secret == "" {
		ts.Fatalf("usage: noleak NAME")
	}
	if strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), secret) {
		ts.Fatalf("the output holds $%s", args[0])
	}
}

func hasFlag(cmd *cobra.Command, name string) bool {
	return cmd.Flags().Lookup(name) != nil || slices.ContainsFunc(cmd.Commands(), func(sub *cobra.Command) bool { return hasFlag(sub, name) })
}

// Every setting is a flag of some command.
func TestEverySettingIsAFlag(t *testing.T) {
	root := (&app{}).root()
	for _, s := range config.Settings() {
		if root.PersistentFlags().Lookup(s.Name) == nil && !hasFlag(root, s.Name) {
			t.Errorf("no command has --%s", s.Name)
		}
	}
}

// Every command has help, with an example that calls the command.
func TestEveryCommandHasHelp(t *testing.T) {
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Short[len(cmd.Short)-1] == '.' {
			t.Errorf("%s: the short help is %q", cmd.CommandPath(), cmd.Short)
		}
		if !cmd.HasSubCommands() && !strings.HasPrefix(cmd.Example, "  "+cmd.CommandPath()) {
			t.Errorf("%s: the example is %q", cmd.CommandPath(), cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	for _, cmd := range (&app{}).root().Commands() {
		if cmd.Name() != "help" && cmd.Name() != "completion" { // cobra's own
			check(cmd)
		}
	}
}

// A change that was made, but whose confirmation was interrupted, is shown as made, with status 1
// and a note about the missing confirmation: otherwise a new key would be lost.
func TestAnUnconfirmedChangeIsShown(t *testing.T) {
	url := "sqlite://" + filepath.Join(t.TempDir(), "k.db")
	for _, command := range []string{"migrate", "plan set pro", "account set acme --plan pro", "user set ada --account acme", "key create ada"} {
		var problems strings.Builder
		if got := run(t.Context(), append(strings.Fields(command), "--database", url), io.Discard, &problems); got != exitDone {
			t.Fatalf("%s: %s", command, problems.String())
		}
	}
	db, err := store.Open(t.Context(), store.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()

	// A silent replica with the longest possible lease.
	registry, err := feed.NewRegistry(db, feed.Replica{Life: config.MaxLease})
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	if _, err := registry.Register(t.Context()); err != nil {
		t.Fatal(err)
	}

	before, err := directory.NewKeys(db).LiveKey(t.Context(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	var out, problems strings.Builder
	ended := make(chan int)
	go func() {
		ended <- run(ctx, []string{"key", "regenerate", "ada", "--database", url, "--output", "json"}, &out, &problems)
	}()
	awaitNewKey(t, db, before.ID)
	interrupt()
	got := <-ended
	if !strings.Contains(out.String(), `"key":"wh_`) || !strings.Contains(out.String(), `"confirmed":false,"replicas":{"total":`) {
		t.Errorf("the output of %d bytes lacks the key, or does not say that it is not confirmed", out.Len())
	}
	if got != exitFailed || !strings.Contains(problems.String(), "the change was made") ||
		!strings.Contains(problems.String(), "repeat the command with the same --idempotency-key; without one, see in `keyporter replicas`") {
		t.Errorf("exit status %d: %s", got, problems.String())
	}
}

// awaitNewKey waits until ada has another live key.
func awaitNewKey(t *testing.T, db *store.DB, old string) {
	t.Helper()
	partstest.Eventually(t, "the key is regenerated", func() bool {
		key, err := directory.NewKeys(db).LiveKey(t.Context(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		return key.ID != old
	})
}

// A schema made by a newer program is rejected, and stays unchanged.
func TestANewerSchemaIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k.db")
	var out, problems strings.Builder
	if got := run(t.Context(), []string{"migrate", "--database", "sqlite://" + file}, &out, &problems); got != exitDone {
		t.Fatal(problems.String())
	}
	newer(t, file)
	for _, command := range []string{"migrate", "plan list", "serve"} {
		problems.Reset()
		args := append(strings.Fields(command), "--database", "sqlite://"+file)
		if command == "serve" {
			args = append(args, "--listen-grpc", "127.0.0.1:0", "--listen-http", "off", "--listen-ops", "127.0.0.1:0")
		}
		if got := run(t.Context(), args, &out, &problems); got != exitFailed || !strings.Contains(problems.String(), "newer") {
			t.Errorf("%s: exit status %d, %s", command, got, problems.String())
		}
	}
}

// newer marks a database as made by a newer program.
func newer(t *testing.T, file string) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`INSERT INTO keyporter_schema (version_id, is_applied) VALUES (1000, true)`); err != nil {
		t.Fatal(err)
	}
}
