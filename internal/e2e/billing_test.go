package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keyporter/keyporter/client"
)

// The example of a billing system decides the next request of a user by each event, and by the
// newest one whatever arrives again, late or twice.
func TestTheNextRequestIsDecidedByTheNewestEvent(t *testing.T) {
	t.Parallel()
	a := startAdministered(t, "", 1)
	a.makeAda(client.PlanChange{})
	api := a.api(0, operatorToken, client.Options{})
	confirmed(api.SetPlan(t.Context(), "free", client.PlanChange{APIAccess: new(false)}))(t)
	key := confirmed(api.CreateKey(t.Context(), "ada"))(t).Key.Reveal()
	checkers := []*checker{newChecker(t, a.replicas[0])}

	folder := t.TempDir()
	program, token := filepath.Join(folder, "billing"), tokenFile(t)
	if out, err := exec.Command("go", "build", "-o", program, "github.com/keyporter/keyporter/examples/billing").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	events, err := filepath.Glob(filepath.Join(root, "examples", "billing", "events", "*.json"))
	if err != nil || len(events) != 7 {
		t.Fatal(events, err)
	}
	deliver := func(files ...string) {
		t.Helper()
		args := append([]string{"--server", "http://" + a.apis[0], "--token-file", token, "--books", filepath.Join(folder, "books.json")}, files...)
		if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	again := func(files []string) []string { // in the wrong order, and each twice
		twice := append(slices.Clone(files), files...)
		slices.Reverse(twice)
		return twice
	}
	for i, status := range []int32{403, 200, 200, 403, 200, 403, 200} {
		deliver(events[i])
		a.decides(t, checkers, key, status)
		deliver(again(events[:i+1])...)
		a.decides(t, checkers, key, status)
	}
	if granted := a.granted(); granted != 500 {
		t.Errorf("%d credits were granted, want 500", granted)
	}
	if err := os.Remove(filepath.Join(folder, "books.json")); err != nil {
		t.Fatal(err)
	}
	deliver(again(events)...) // the books are lost, and everything comes again, newest first
	a.decides(t, checkers, key, 200)
	if granted := a.granted(); granted != 500 {
		t.Errorf("%d credits were granted after the books were lost, want 500", granted)
	}
}
