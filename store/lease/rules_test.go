package lease_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// broken is a rule of the protocol, and a replacement of text in one file that breaks it.
type broken struct {
	rule     string
	file     string
	old, new string
	seed     int // the simulation finds it there, or soon after
}

const (
	leaseFile   = "store/lease/lease.go"
	viewFile    = "store/lease/view.go"
	barrierFile = "store/lease/barrier.go"
	cacheFile   = "store/cache/cache.go"
	simFile     = "store/lease/sim_test.go"
	modelFile   = "store/lease/sim_model_test.go"
)

// The rules that the simulation can see broken. It cannot see the following ones broken, since
// another rule covers each as far as the promise goes:
//
//   - cache.finish checks that an answer is fresh before it stores it: cached checks again on each
//     use.
//   - cache.landed checks that the lease is held: Hold has checked after the request arrived, and
//     the view holds everything confirmed before that. The check keeps requests that were already
//     under way from being answered long after.
//   - register forgets everything and fenced drops the lease: the position is kept, so all changes
//     since are applied before the lease is extended, and a fenced replica has no lease any more.
//   - A stamp names its view: an answer from before the view is refused for its epoch. If the
//     history was rewritten, epochs prove nothing; see TestTheHistoryOfTheDatabase.
var rules = []broken{
	{
		rule: "1: a lease counts from before its renewal was sent",
		file: leaseFile, old: "l.extend(sent + l.config.Life)", new: "l.extend(max(sent, l.config.Clock()) + l.config.Life)", seed: 11,
	}, {
		rule: "1: an answer from memory needs a lease",
		file: cacheFile, old: "for range readTries {", new: "for range readTries {\nif v, r, err := c.cached(k); r != absent {\nreturn v, r, err\n}", seed: 1,
	}, {
		rule: "1: a lease ends when it is over",
		file: leaseFile, old: "return int64(now) < l.until.Load()", new: "return int64(now) < l.until.Load() + int64(l.config.Life)/4", seed: 1,
	}, {
		rule: "2: changes are applied before the lease is extended",
		file: leaseFile, old: "updates, err := l.config.Registry.Renew(ctx, l.id, l.at)",
		new: "updates, err := l.config.Registry.Renew(ctx, l.id, l.at)\nif err == nil {\nl.extend(sent + l.config.Life)\ntime.Sleep(20 * time.Millisecond)\n}", seed: 4,
	}, {
		rule: "2: changes are acknowledged before the lease is extended",
		file: leaseFile, old: "if err == nil && l.acked != l.at {", new: "if err == nil && durably {\nl.extend(l.config.Clock() - time.Millisecond + l.config.Life)\n}\nif err == nil && l.acked != l.at {", seed: 5,
	}, {
		rule: "2: so durably that a crash of the database does not lose it",
		file: leaseFile, old: "l.take(ctx, updates, err, true)", new: "l.take(ctx, updates, err, false)", seed: 6,
	}, {
		rule: "2: what could not be acknowledged is acknowledged before the lease is extended",
		file: leaseFile, old: "durably); err == nil {", new: "durably); true {", seed: 7,
	}, {
		rule: "2: changes are applied before they are acknowledged",
		file: leaseFile, old: "if err == nil {\n\t\terr = l.follow(updates)", new: "if err == nil && updates.Known {\n_ = l.config.Registry.Ack(ctx, l.id, updates.Newest, durably)\n}\nif err == nil {\n\t\terr = l.follow(updates)", seed: 1,
	}, {
		rule: "3: a look-up carries the epoch of its own snapshot",
		file: viewFile, old: "epoch: int64(o.Epoch), anybody", new: "epoch: r.view.applied.Load(), anybody", seed: 2,
	}, {
		rule: "4: a value from memory is used only if it is fresh",
		file: cacheFile, old: "ok && c.config.Lease.Fresh(&e.stamp) && !expired(e.expires)", new: "ok && !expired(e.expires)",
	}, {
		rule: "4: a negative answer from memory is used only if it is fresh",
		file: cacheFile, old: "if e, ok := c.answers.Get(k); ok && c.config.Lease.Fresh(&e.stamp) {", new: "if e, ok := c.answers.Get(k); ok {", seed: 1,
	}, {
		rule: "4: an answer rests on its account",
		file: viewFile, old: " && s.epoch >= v.accounts[s.account].Load()", new: "", seed: 1,
	}, {
		rule: "4: an answer rests on its plan",
		file: viewFile, old: " && s.epoch >= v.plans[s.plan].Load()", new: "", seed: 1,
	}, {
		rule: "5: an answer that others have read is used only if it is fresh",
		file: cacheFile, old: "!c.config.Lease.Held() || !c.config.Lease.Fresh(&f.stamp) ||", new: "!c.config.Lease.Held() ||", seed: 2,
	}, {
		rule: "6: without a lease nothing is answered",
		file: leaseFile, old: "for !l.Held() {", new: "for l.Left() < -l.config.Life {", seed: 1,
	}, {
		rule: "7: changes that were deleted before they were followed make a replica forget everything",
		file: leaseFile, old: "case updates.Known && whole(updates):", new: "case updates.Known && whole(updates), len(updates.Changes) > 0 && whole(updates):", seed: 196,
	}, {
		rule: "7: so do changes that are too many to be told",
		file: leaseFile, old: "return n == 0 ||", new: "return true || n == 0 ||", seed: 716,
	}, {
		rule: "7: so does a change that touches everything",
		file: viewFile, old: "default:\n\t\treturn false", new: "default:\n\t\treturn true",
	}, {
		rule: "7: and what is forgotten is not used again",
		file: leaseFile, old: "l.newest.Store(0)\n\tl.forget(cause)", new: "l.newest.Store(0)", seed: 4,
	}, {
		rule: "7: an answer that is older than the view is not fresh",
		file: viewFile, old: "s.view != v.number || s.epoch < v.since", new: "s.view != v.number", seed: 4,
	}, {
		rule: "8: a change returns when all replicas have followed",
		file: barrierFile, old: "for len(open) > 0 {", new: "for false {",
	}, {
		rule: "8: silent replicas are waited for until their leases have ended",
		file: barrierFile, old: "if time.Since(seen) >= longest(open) {", new: "if time.Since(seen) >= longest(open)/20 {", seed: 1,
	}, {
		rule: "8: who has not acknowledged the newest change is waited for",
		file: barrierFile, old: "ok && m.Acked >= roll.Newest", new: "ok && m.Acked >= roll.Newest-1", seed: 1,
	}, {
		rule: "9: a replica has a lease only while it is on the list",
		file: leaseFile, old: "case errors.Is(err, ErrFenced):\n\t\tl.fenced()", new: "case errors.Is(err, ErrFenced):\n\t\terr = nil", seed: 1,
	}, {
		rule: "9: who leaves answers no more",
		file: leaseFile, old: "func (l *Lease) leave() {\n\tl.drop()", new: "func (l *Lease) leave() {", seed: 1,
	}, {
		rule: "9: only who has not acknowledged is fenced (model)",
		file: modelFile, old: "if db.acked[id] < epoch {", new: "if db.acked[id] < epoch+1e9 {", seed: 21,
	}, {
		rule: "9: what a replica has acknowledged never goes back (model)",
		file: modelFile, old: "max(db.acked[id], epoch)", new: "epoch", seed: 796,
	}, {
		rule: "10: a call that is repeated waits again (model)",
		file: simFile, old: "for !w.confirm(", new: "if !w.confirm(", seed: 2,
	}, {
		rule: "the margin: clocks differ by a percent or two, not by ten",
		file: simFile, old: "drift    = 0.01", new: "drift    = 0.10", seed: 15,
	},
}

// rulesInEachRun is the number of rules that a run breaks, selected at random: each takes five
// seconds of CPU time. KEYPORTER_LONG=1 breaks all of them.
const rulesInEachRun = 6

// The simulation detects every broken rule.
func TestEveryRuleIsNeeded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute: left out with -short")
	}
	for i, chosen := range rand.Perm(len(rules)) {
		b := rules[chosen]
		t.Run(b.rule, func(t *testing.T) {
			t.Parallel()
			if i >= rulesInEachRun && os.Getenv("KEYPORTER_LONG") == "" {
				b.text(t, filepath.Join("../..", b.file)) // the quoted text still exists
				return
			}
			output := b.simulate(t)
			_, found, ok := strings.Cut(output, violation)
			if !ok {
				t.Fatalf("broken, and not found from seed %d on:\n%s", b.seed, output)
			}
			found, _, _ = strings.Cut(found, "\n")
			t.Log(found)
		})
	}
}

// brokenSchedules is the maximum number of schedules until a broken rule is detected.
const brokenSchedules = 100

// simulate runs the simulation with a broken rule, and returns its output.
func (b broken) simulate(t *testing.T) string {
	program := b.build(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute) // only ends a run that hangs
	defer cancel()
	run := exec.CommandContext(ctx, program, "-test.run=^TestNoRequestIsAnsweredByAnOldState$")
	run.Env = append(os.Environ(), fmt.Sprint("KEYPORTER_SEED=", b.seed), fmt.Sprint("KEYPORTER_SCHEDULES=", brokenSchedules))
	output, _ := run.CombinedOutput() // it should fail
	return string(output)
}

// build compiles the tests of this package with a broken rule. It changes no source file.
func (b broken) build(t *testing.T) (program string) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	original, changed := filepath.Join(root, b.file), filepath.Join(dir, "changed.go")
	write(t, changed, b.text(t, original))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "overlay.json"), overlay)
	program = filepath.Join(dir, "simulation")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-ldflags=-s -w",
		"-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return program
}

// text returns the file with the rule broken.
func (b broken) text(t *testing.T, file string) []byte {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), b.old); n != 1 {
		t.Fatalf("%s has %q %d times, not once", b.file, b.old, n)
	}
	return []byte(strings.Replace(string(text), b.old, b.new, 1))
}

func write(t *testing.T, file string, content []byte) {
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
