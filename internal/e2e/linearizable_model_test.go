package e2e_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// facts determine the answer to a user's key. The zero value is a user who does not exist.
type facts struct {
	exists   bool
	live     int  // number of the live key; 0: none
	onFree   bool // the account is on a plan without API access
	noAccess bool // the account's own plan has no API access either
}

// status returns the only right answer to a key.
func (f facts) status(key int) int {
	switch {
	case !f.exists || f.live != key:
		return 401
	case f.onFree || f.noAccess:
		return 403
	}
	return 200
}

// change is one call that may change the facts.
type change struct {
	verb verb
	key  int  // number of the new key, if the call makes one
	sure bool // made and confirmed; otherwise it may have been made
}

type verb string

const (
	regenerate verb = "regenerate"
	create     verb = "create a key"
	remove     verb = "delete the user"
	admit      verb = "create the user"
	planOff    verb = "plan without access"
	planOn     verb = "plan with access"
	toFree     verb = "account to the free plan"
	toOwn      verb = "account to its own plan"
)

// after returns the facts after a change, and whether the change is possible.
func (f facts) after(c change) (facts, bool) {
	possible := true
	switch c.verb {
	case regenerate:
		possible = f.live != 0
		f.live = c.key
	case create:
		possible = f.exists && f.live == 0
		f.live = c.key
	case remove:
		possible = f.exists
		f.exists, f.live = false, 0
	case admit:
		f.exists = true
	case planOff, planOn:
		f.noAccess = c.verb == planOff
	case toFree, toOwn:
		f.onFree = c.verb == toFree
	}
	return f, possible
}

// most is the maximum number of replicas in a world.
const most = 3

// world is the sequential specification: the database, and how far each replica has followed it. A
// change consists of two kinds of steps: it is made at one moment of its call, and each replica
// applies it at a moment of its own, later in the same call and in the order of the changes. So
// replicas may differ during a call, but not after its return. A world is a value: == compares.
type world struct {
	stored   facts
	pending  string      // changes not yet applied by every replica, oldest first, as bytes
	taken    [most]int   // how many of them each replica has applied
	replicas [most]facts // each replica decides by these
}

// step is an event at one moment.
type step struct {
	kind    stepKind
	replica int
	change  int // index in the history; for made and taken
	key     int // for asked
}

type stepKind string

const (
	made  stepKind = "made"
	taken stepKind = "taken over"
	asked stepKind = "asked"
)

// history records the changes of one user, and the answers about their keys. Its methods are safe
// for concurrent use.
type history struct {
	replicas int
	clock    func() time.Duration

	mu      sync.Mutex
	changes []change
	steps   []porcupine.Operation
	lost    int // changes with an unknown outcome
}

// outcome is what the caller of a change knows about it.
type outcome string

const (
	done    outcome = "done"    // and enforced everywhere
	refused outcome = "refused" // nothing was changed
	unknown outcome = "unknown" // it may have been made, or may still be
)

// change records a call. It passes do the number of the key that the call may make. A rejected call
// is not recorded: it changes nothing and waits for no replica, so it may reflect another change
// before that change returns.
func (h *history) change(v verb, do func(key int) outcome) outcome {
	h.mu.Lock()
	n := len(h.changes)
	c := change{verb: v, key: n + 2} // the first key exists from the start
	h.changes = append(h.changes, c)
	h.mu.Unlock()
	called := int64(h.clock())
	o := do(c.key)
	returned := int64(h.clock())
	h.mu.Lock()
	defer h.mu.Unlock()
	switch o {
	case refused:
		return o
	case unknown:
		h.lost++
		// a change that is never made is equivalent to one that is made last
		returned = math.MaxInt64
	}
	h.changes[n].sure = o == done
	h.steps = append(h.steps, porcupine.Operation{Input: step{kind: made, change: n}, Call: called, Return: returned})
	for i := range h.replicas {
		h.steps = append(h.steps, porcupine.Operation{Input: step{kind: taken, replica: i, change: n}, Call: called, Return: returned})
	}
	return o
}

// check records a question about a key. A question without an answer is not recorded.
func (h *history) check(replica, key int, do func() (int, error)) (int, error) {
	called := int64(h.clock())
	status, err := do()
	returned := int64(h.clock())
	if err != nil {
		return status, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.steps = append(h.steps, porcupine.Operation{
		Input: step{kind: asked, replica: replica, key: key}, Output: status, Call: called, Return: returned,
	})
	return status, nil
}

// model returns the specification of one user's history, which begins with their first key
// enforced.
func (h *history) model() porcupine.Model {
	return porcupine.Model{
		Init: func() any {
			start := facts{exists: true, live: 1}
			return world{stored: start, replicas: [most]facts{start, start, start}}
		},
		Step: func(state, input, output any) (bool, any) {
			w, s := state.(world), input.(step)
			switch s.kind {
			case made:
				return h.make(w, s)
			case taken:
				return h.take(w, s)
			case asked:
				return output == 503 || output == w.replicas[s.replica].status(s.key), w
			}
			return false, w
		},
	}
}

func (h *history) make(w world, s step) (bool, world) {
	c := h.changes[s.change]
	next, possible := w.stored.after(c)
	if !possible {
		return !c.sure, h.queue(w, s)
	}
	w.stored = next
	return true, h.queue(w, s)
}

func (h *history) queue(w world, s step) world {
	w.pending += string([]byte{byte(s.change)})
	return w
}

func (h *history) take(w world, s step) (bool, world) {
	n := w.taken[s.replica]
	if n == len(w.pending) || w.pending[n] != byte(s.change) {
		return false, w
	}
	if next, possible := w.replicas[s.replica].after(h.changes[s.change]); possible {
		w.replicas[s.replica] = next
	}
	w.taken[s.replica]++
	if slices.Min(w.taken[:h.replicas]) > 0 {
		w.pending = w.pending[1:]
		for i := range h.replicas {
			w.taken[i]--
		}
	}
	return true, w
}

// judge reports whether the history is linearizable. It must not run concurrently with recording.
func (h *history) judge(limit time.Duration) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(h.model(), h.steps, limit)
}

// explain shows where a history stops being linearizable: the steps around the first one that the
// longest partial linearization cannot place.
func (h *history) explain(limit time.Duration) string {
	_, info := porcupine.CheckOperationsVerbose(h.model(), h.steps, limit)
	placed := map[string]bool{}
	for _, partition := range info.PartialLinearizationsOperations() {
		longest := slices.MaxFunc(partition, func(a, b []porcupine.Operation) int { return len(a) - len(b) })
		for _, o := range longest {
			placed[h.line(o)] = true
		}
	}
	steps := slices.Clone(h.steps)
	slices.SortFunc(steps, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	first := slices.IndexFunc(steps, func(o porcupine.Operation) bool { return !placed[h.line(o)] })
	var b strings.Builder
	for _, o := range steps[max(0, first-25):min(len(steps), first+15)] {
		mark := " "
		if !placed[h.line(o)] {
			mark = "?"
		}
		fmt.Fprintln(&b, mark, h.line(o))
	}
	return b.String()
}

// line formats a step with the times of its call and its return.
func (h *history) line(o porcupine.Operation) string {
	returned := "never"
	if o.Return != math.MaxInt64 {
		returned = time.Duration(o.Return).String()
	}
	when := fmt.Sprintf("%v to %s: ", time.Duration(o.Call), returned)
	switch s := o.Input.(step); s.kind {
	case made:
		return fmt.Sprintf("%s%s (key %d, sure: %t)", when, h.changes[s.change].verb, h.changes[s.change].key, h.changes[s.change].sure)
	case taken:
		return fmt.Sprintf("%s  taken over by replica %d: change %d, %s", when, s.replica, s.change, h.changes[s.change].verb)
	default:
		return fmt.Sprintf("%s  replica %d about key %d: %v", when, s.replica, s.key, o.Output)
	}
}

// The specification accepts possible histories and rejects impossible ones; otherwise its verdict
// on a real history would prove nothing.
func TestLinearizableModel(t *testing.T) {
	t.Parallel()
	type event struct {
		called, returned int64
		verb             verb // "" for a question
		outcome          outcome
		replica, key     int
		status           int
	}
	change := func(from, to int64, v verb, o outcome) event { return event{from, to, v, o, 0, 0, 0} }
	ask := func(at int64, replica, key, status int) event { return event{at, at + 1, "", "", replica, key, status} }
	for name, row := range map[string]struct {
		events []event
		want   porcupine.CheckResult
	}{
		"the old key after the return":      {[]event{change(10, 20, regenerate, done), ask(21, 0, 1, 200)}, porcupine.Illegal},
		"the old key refused after it":      {[]event{change(10, 20, regenerate, done), ask(21, 0, 1, 401), ask(23, 1, 2, 200)}, porcupine.Ok},
		"undecided after it":                {[]event{change(10, 20, regenerate, done), ask(21, 0, 1, 503)}, porcupine.Ok},
		"the new key refused after it":      {[]event{change(10, 20, regenerate, done), ask(21, 0, 2, 401)}, porcupine.Illegal},
		"replicas differ during it":         {[]event{change(10, 20, planOff, done), ask(11, 0, 1, 403), ask(14, 1, 1, 200)}, porcupine.Ok},
		"one replica goes back":             {[]event{change(10, 20, planOff, done), ask(11, 0, 1, 403), ask(14, 0, 1, 200)}, porcupine.Illegal},
		"before the call":                   {[]event{ask(5, 0, 1, 403), change(10, 20, planOff, done)}, porcupine.Illegal},
		"unknown, and made late":            {[]event{change(10, 20, planOff, unknown), ask(21, 0, 1, 200), ask(30, 0, 1, 403)}, porcupine.Ok},
		"unknown, and undone by itself":     {[]event{change(10, 20, planOff, unknown), ask(21, 0, 1, 403), ask(30, 0, 1, 200)}, porcupine.Illegal},
		"unknown, and impossible":           {[]event{change(10, 20, create, unknown), ask(21, 0, 1, 200)}, porcupine.Ok},
		"two at once, replicas agree":       {[]event{change(10, 20, planOff, done), change(11, 19, planOn, done), ask(21, 0, 1, 403), ask(21, 1, 1, 403)}, porcupine.Ok},
		"two at once, replicas disagree":    {[]event{change(10, 20, planOff, done), change(11, 19, planOn, done), ask(21, 0, 1, 403), ask(21, 1, 1, 200)}, porcupine.Illegal},
		"deleted, and a key made after all": {[]event{change(10, 20, remove, done), change(21, 30, create, done)}, porcupine.Illegal},
		"deleted and made anew": {[]event{change(10, 20, remove, done), change(21, 30, admit, done), change(31, 40, create, done),
			ask(41, 2, 1, 401), ask(41, 2, 4, 200)}, porcupine.Ok},
		"the free plan, and back": {[]event{change(10, 20, toFree, done), ask(21, 0, 1, 403), change(30, 40, toOwn, done), ask(41, 0, 1, 200)}, porcupine.Ok},
	} {
		t.Run(name, func(t *testing.T) {
			var at int64
			h := &history{replicas: most, clock: func() time.Duration { return time.Duration(at) }}
			for _, e := range row.events {
				at = e.called
				if e.verb == "" {
					h.check(e.replica, e.key, func() (int, error) { at = e.returned; return e.status, nil })
					continue
				}
				h.change(e.verb, func(int) outcome { at = e.returned; return e.outcome })
			}
			if got := h.judge(time.Minute); got != row.want {
				t.Errorf("%s, want %s:\n%s", got, row.want, h.explain(time.Minute))
			}
		})
	}
}
