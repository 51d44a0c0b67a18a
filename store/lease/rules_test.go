package lease_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// broken is a rule of the protocol, and a mutation that breaks it.
type broken struct {
	rule, file, marker string
	code               string // in place of the marked line
	seed               int    // the simulation finds it there, or soon after
}

func (b broken) mutation() partstest.Mutation {
	return partstest.Mutation{Name: b.rule, File: b.file, Marker: b.marker, New: b.code}
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
	{"1: a lease counts from before its renewal was sent", leaseFile, "rule 1: from before sending",
		"l.extend(max(sent, l.config.Clock()) + l.config.Life)", 11},
	{"1: an answer from memory needs a lease", cacheFile, "rule 1: lease",
		"LINE\nif v, r, err := c.cached(k); r != absent {\nreturn v, r, err\n}", 1},
	{"1: a lease ends when it is over", leaseFile, "rule 1: its end",
		"LINE + int64(l.config.Life)/4", 1},
	{"2: changes are applied before the lease is extended", leaseFile, "rule 2: apply first",
		"LINE\nif err == nil {\nl.extend(sent + l.config.Life)\ntime.Sleep(20 * time.Millisecond)\n}", 4},
	{"2: changes are acknowledged before the lease is extended", leaseFile, "rule 2: acknowledge first",
		"if err == nil && durably {\nl.extend(l.config.Clock() - time.Millisecond + l.config.Life)\n}\nLINE", 5},
	{"2: so durably that a crash of the database does not lose it", leaseFile, "rule 2: durably",
		"if err := l.take(ctx, updates, err, false); err != nil {", 6},
	{"2: what could not be acknowledged is acknowledged before the lease is extended", leaseFile, "rule 2: retry",
		"if err = l.config.Registry.Ack(ctx, l.id, l.at, durably); true {", 7},
	{"2: changes are applied before they are acknowledged", leaseFile, "rule 2: apply, then acknowledge",
		"if err == nil && updates.Known {\n_ = l.config.Registry.Ack(ctx, l.id, updates.Newest, durably)\n}\nLINE", 1},
	{"3: a look-up carries the epoch of its own snapshot", viewFile, "rule 3: own epoch",
		`view: r.view.number, epoch: r.view.applied.Load(), anybody: o.User == "",`, 2},
	{"4: a value from memory is used only if it is fresh", cacheFile, "rule 4: values",
		"if e, ok := c.values.Get(k); ok && !expired(e.expires) {", 0},
	{"4: a negative answer from memory is used only if it is fresh", cacheFile, "rule 4: negative answers",
		"if e, ok := c.answers.Get(k); ok {", 1},
	{"4: an answer rests on its account", viewFile, "rule 4: all it rests on",
		"return s.epoch >= v.users[s.user].Load() && s.epoch >= v.plans[s.plan].Load()", 1},
	{"4: an answer rests on its plan", viewFile, "rule 4: all it rests on",
		"return s.epoch >= v.users[s.user].Load() && s.epoch >= v.accounts[s.account].Load()", 1},
	{"5: an answer that others have read is used only if it is fresh", cacheFile, "rule 5: shared reads",
		"if !c.config.Lease.Held() || expired(f.found.Expires) {", 2},
	{"6: without a lease nothing is answered", leaseFile, "rule 6: lease",
		"for l.Left() < -l.config.Life {", 1},
	{"7: changes that were deleted before they were followed make a replica forget everything", leaseFile, "rule 7: gap",
		"case updates.Known && whole(updates), len(updates.Changes) > 0 && whole(updates):", 196},
	{"7: so do too many changes", leaseFile, "rule 7: too many",
		"return true || n == 0", 716},
	{"7: so does a change that touches everything", viewFile, "rule 7: everything",
		"return true", 0},
	{"7: forgotten answers are not used again", leaseFile, "rule 7: forget",
		"", 4},
	{"7: an answer that is older than the view is not fresh", viewFile, "rule 7: older than the view",
		"if s.view != v.number {", 4},
	{"8: a change returns when all replicas have followed", barrierFile, "rule 8: wait",
		"for false {", 0},
	{"8: silent replicas are waited for until their leases have ended", barrierFile, "rule 8: the silent",
		"if time.Since(seen) >= longest(open)/20 {", 1},
	{"8: the barrier waits for replicas that lack the newest change", barrierFile, "rule 8: the newest change",
		"if _, ok := open[m.ID]; ok && m.Acked >= roll.Newest-1 {", 1},
	{"9: a replica has a lease only while it is on the list", leaseFile, "rule 9: fenced",
		"err = nil", 1},
	{"9: a replica that leaves answers no more", leaseFile, "rule 9: leave",
		"", 1},
	{"9: only silent replicas are fenced (model)", modelFile, "rule 9: the acknowledged",
		"if db.acked[id] < epoch+1e9 {", 21},
	{"9: an acknowledged position never goes back (model)", modelFile, "rule 9: never back",
		"db.acked[id] = epoch", 796},
	{"10: a call that is repeated waits again (model)", simFile, "rule 10: repeat",
		"if !w.confirm(r, rate, patience) && w.sleep(upTo(r, life/2)) {", 2},
	{"the margin: clocks differ by a percent or two, not by ten", simFile, "margin: drift",
		"drift = 0.10", 15},
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
				b.mutation().Apply(t, "../..") // the marker still exists
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

// build compiles the tests of this package with a broken rule.
func (b broken) build(t *testing.T) (program string) {
	program = filepath.Join(t.TempDir(), "simulation")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-ldflags=-s -w",
		"-overlay", b.mutation().Overlay(t, "../.."), "-o", program, ".")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return program
}
