package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
)

// skipWithoutEnvoy skips a test on a machine without Envoy; in CI the test fails instead.
func skipWithoutEnvoy(t *testing.T) {
	t.Helper()
	_, err := parts.FindEnvoy()
	if missing := (*parts.MissingError)(nil); errors.As(err, &missing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
}

// The whole bench works, every answer is right, and nothing is left behind.
func TestShortRun(t *testing.T) {
	skipWithoutEnvoy(t)
	file := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte(tableMarkers.start+"\n"+tableMarkers.end+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"--short", "--write", file, "--json", file + ".json"}, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	table, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(table), stdout.String()) {
		t.Errorf("the file holds %s, %v; printed was %s", table, err, stdout.String())
	}
	if rows := strings.Count(stdout.String(), "\n| "); rows != 18 {
		t.Errorf("%d lines below the head of the table, want 18:\n%s", rows, stdout.String())
	}
	if !strings.Contains(stdout.String(), "Left out, as no binary was given: opa-envoy-plugin (--opa), path-external-auth-server (--peas).") {
		t.Errorf("it is not said what was left out:\n%s", stdout.String())
	}
	samples, err := os.ReadFile(file + ".json")
	if err != nil || strings.Count(string(samples), `"answers_per_second"`) != 17 {
		t.Errorf("the file with all samples: %s, %v", samples, err)
	}
	assertNoChildren(t)
}

// Each part of an answer is measured, and nothing is left behind.
func TestShortCosts(t *testing.T) {
	skipWithoutEnvoy(t)
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"--costs", "--short"}, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if rows, want := strings.Count(stdout.String(), "\n| "), 1+len(answerParts()); rows != want {
		t.Errorf("%d lines below the head of the table, want %d:\n%s", rows, want, stdout.String())
	}
	assertNoChildren(t)
}

// Many users are measured with both databases, and the table includes PostgreSQL's share.
func TestShortCrowd(t *testing.T) {
	skipWithoutEnvoy(t)
	for name, flags := range map[string][]string{"SQLite": nil, "PostgreSQL": {"--postgres"}} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := run(t.Context(), append(flags, "--short", "--crowd", "2000"), &stdout, &stderr)
			if missing := (*parts.MissingError)(nil); errors.As(err, &missing) && os.Getenv("CI") != "true" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			if told := strings.Contains(stdout.String(), "PostgreSQL took"); told != (name == "PostgreSQL") {
				t.Errorf("whether PostgreSQL took anything: %v\n%s", told, stdout.String())
			}
			if !strings.Contains(stdout.String(), "Keyporter took at most ") {
				t.Errorf("no memory:\n%s", stdout.String())
			}
			if !strings.Contains(stdout.String(), "| allow, 2000 users at 60 a minute |") {
				t.Errorf("no row of the many:\n%s", stdout.String())
			}
			assertNoChildren(t)
		})
	}
}

// All growth is measured, and nothing is left behind.
func TestShortGrowth(t *testing.T) {
	if os.Getenv("KEYPORTER_LONG") == "" {
		t.Skip("starts servers for a minute on a busy machine: set KEYPORTER_LONG=1")
	}
	skipWithoutEnvoy(t)
	file := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte(growthMarkers.start+"\n"+growthMarkers.end+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"--growth", "--short", "--write", file, "--json", file + ".json"}, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	table, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(table), stdout.String()) {
		t.Errorf("the file holds %s, %v; printed was %s", table, err, stdout.String())
	}
	const findings = 29
	if rows := strings.Count(stdout.String(), "\n| "); rows != findings+1 {
		t.Errorf("%d lines below the head of the table, want %d:\n%s", rows, findings+1, stdout.String())
	}
	samples, err := os.ReadFile(file + ".json")
	if n := strings.Count(string(samples), `"what"`); err != nil || n != findings {
		t.Errorf("%d findings in the file with all samples, %v; want %d", n, err, findings)
	}
	assertNoChildren(t)
}

// cancelAt is a writer that cancels a context when a text is written.
type cancelAt struct {
	text   string
	cancel context.CancelFunc
}

func (c cancelAt) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.text)) {
		c.cancel()
	}
	return len(p), nil
}

// An interrupt at any point ends the bench and everything that it has started.
func TestInterruptLeavesNothingBehind(t *testing.T) {
	skipWithoutEnvoy(t)
	for _, moment := range []string{"building", "straight, keyporter"} {
		ctx, cancel := context.WithCancel(t.Context())
		err := run(ctx, []string{"--short"}, io.Discard, cancelAt{moment, cancel})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted at %q: %v, want %v", moment, err, context.Canceled)
		}
		assertNoChildren(t)
	}
}

func assertNoChildren(t *testing.T) {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range threads {
		children, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, child := range strings.Fields(string(children)) {
			name, _ := os.ReadFile("/proc/" + child + "/comm")
			t.Errorf("%s still runs with PID %s of %d threads", bytes.TrimSpace(name), child, len(threads))
		}
	}
}

// Before many users are measured, all their keys are in memory; then all connections together use
// all keys in turn.
func TestManyAreInMemoryFirst(t *testing.T) {
	skipWithoutEnvoy(t)
	o, err := parseFlags([]string{"--short", "--crowd", "2000"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	lab, err := startLab(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.stop()
	rows := lab.rows()
	if err := rows[len(rows)-1].first(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := lab.keyporter.metric(t.Context(), cacheEntries); n != 2000 || err != nil {
		t.Errorf("%v keys are in memory, %v; want 2000", n, err)
	}
	config := question{server: lab.keyporter, keys: lab.crowd, status: 200}.config(false)
	if checks, err := config.Checks(); len(config.Keys) != 2000 || len(checks) != 1 || err != nil {
		t.Errorf("%d keys, and %d Checks for each connection, %v; want 2000 and 1", len(config.Keys), len(checks), err)
	}
}

// A missing program is reported before anything is built.
func TestMissingProgram(t *testing.T) {
	skipWithoutEnvoy(t)
	for _, flag := range []string{"--opa", "--peas", "--keyporter"} {
		err := run(t.Context(), []string{"--short", flag, "no/such"}, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), flag+" wants a program") {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestFlagsThatMakeNoSense(t *testing.T) {
	for _, args := range [][]string{{"--rounds", "0"}, {"--load", "-1s"}, {"--nope"}, {"short"}, {"--opa", "x", "--crowd", "5"}, {"--peas", "x", "--growth"}} {
		if _, err := parseFlags(args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
	if o, err := parseFlags([]string{"--rounds", strconv.Itoa(3)}, io.Discard); err != nil || o.plan.rounds != 3 {
		t.Errorf("%d rounds, %v; want 3", o.plan.rounds, err)
	}
}
