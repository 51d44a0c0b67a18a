package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// An init interrupted at any point can be repeated: it leaves nothing behind that blocks the next
// one. Complete results are never removed.
func TestABrokenInitIsRepeated(t *testing.T) {
	all := []string{envoyName, databaseName, configName, sealKeyName}
	again := func(t *testing.T, dir string) (int, string) {
		var problems strings.Builder
		status := run(t.Context(), []string{"init", "--upstream", "127.0.0.1:3000", "--dir", dir}, io.Discard, &problems)
		return status, problems.String()
	}
	for placed := range len(all) + 1 {
		dir := t.TempDir()
		if status, problems := again(t, dir); status != exitDone {
			t.Fatal(problems)
		}
		if err := os.Mkdir(filepath.Join(dir, stageName), 0o700); err != nil {
			t.Fatal(err)
		}
		for i, name := range all { // as if killed after this many files
			path := filepath.Join(dir, name)
			if err := os.Link(path, filepath.Join(dir, stageName, name)); err != nil {
				t.Fatal(err)
			}
			if i >= placed {
				os.Remove(path)
			}
		}
		status, problems := again(t, dir)
		if complete := placed == len(all); (status == exitDone) == complete {
			t.Errorf("after %d files were put into their places: exit status %d, %s", placed, status, problems)
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(all)), namesIn(t, dir)); diff != "" {
			t.Errorf("after %d files were put into their places (-want +there)\n%s", placed, diff)
		}
	}
}

// An init that fails or is interrupted leaves no file behind, and removes the folder that it
// created.
func TestAFailedInitLeavesNothing(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	dir := t.TempDir()
	if status := run(ended, []string{"init", "--upstream", "127.0.0.1:3000", "--dir", dir}, io.Discard, io.Discard); status != exitFailed {
		t.Errorf("interrupted: exit status %d", status)
	}
	fresh := filepath.Join(dir, "fresh")
	if status := run(ended, []string{"init", "--upstream", "127.0.0.1:3000", "--dir", fresh}, io.Discard, io.Discard); status != exitFailed {
		t.Errorf("interrupted: exit status %d", status)
	}
	if names := namesIn(t, dir); len(names) > 0 {
		t.Errorf("%v are left", names)
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
