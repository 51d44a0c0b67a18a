package ratelimit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/usage"
)

// clock is set by hand.
type clock struct{ now atomic.Int64 }

func (c *clock) time() time.Duration { return time.Duration(c.now.Load()) }
func (c *clock) set(t time.Duration) { c.now.Store(int64(t)) }

// charged is a charge with a name and a matching number.
func charged(name string) ChargeRef {
	number := fnv.New64()
	number.Write([]byte(name))
	return ChargeRef{Name: name, Number: number.Sum64()}
}

// byNumber is the same charge as a [Memory] remembers it.
func byNumber(name string) ChargeRef { return ChargeRef{Number: charged(name).Number} }

// worst returns the maximum number of the times in any one window.
func worst(times []time.Duration, window time.Duration) (most int) {
	oldest := 0
	for i, t := range times {
		for t-times[oldest] >= window {
			oldest++
		}
		most = max(most, i-oldest+1)
	}
	return most
}

// shapes are traffic of which other algorithms admit too much or too little.
var shapes = map[string]func(*rand.Rand) []time.Duration{
	"hammering": func(*rand.Rand) []time.Duration { return every(0, 4*time.Minute, 20*time.Millisecond) },
	"a burst at the end of a minute, then hammering": func(*rand.Rand) []time.Duration {
		return append(every(59900*time.Millisecond, time.Minute, time.Millisecond), every(time.Minute, 4*time.Minute, 20*time.Millisecond)...)
	},
	"idle, a burst, hammering": func(*rand.Rand) []time.Duration {
		return append(every(10*time.Minute, 10*time.Minute+30*time.Millisecond, 500*time.Microsecond), every(10*time.Minute+100*time.Millisecond, 12*time.Minute, 20*time.Millisecond)...)
	},
	"exactly one window apart": func(*rand.Rand) (times []time.Duration) {
		for minute := range 10 {
			for range 100 {
				times = append(times, time.Duration(minute)*time.Minute)
			}
		}
		return times
	},
	"bursts at random": func(r *rand.Rand) (times []time.Duration) {
		spread := []time.Duration{100 * time.Millisecond, 5 * time.Second, 20 * time.Second}
		for t := time.Duration(0); t < 20*time.Minute; t += exponential(r, 15*time.Second) {
			for range 1 + r.IntN(90) {
				times = append(times, t+rand.N(spread[r.IntN(len(spread))]))
			}
		}
		slices.Sort(times)
		return times
	},
	"90 % of the limit, at random": func(r *rand.Rand) (times []time.Duration) {
		for t := time.Duration(0); t < 10*time.Hour; t += exponential(r, time.Minute/54) {
			times = append(times, t)
		}
		return times
	},
}

func every(from, to, step time.Duration) (times []time.Duration) {
	for t := from; t < to; t += step {
		times = append(times, t)
	}
	return times
}

func exponential(r *rand.Rand, mean time.Duration) time.Duration {
	return time.Duration(r.ExpFloat64() * float64(mean))
}

// No window of a minute has more than 60 admitted requests, and none is refused while there are
// fewer, whatever the traffic.
func TestTheRollingLimitIsExact(t *testing.T) {
	seeds := uint64(4)
	if os.Getenv("KEYPORTER_LONG") != "" {
		seeds = 30
	}
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			tried, most, wrong := 0, 0, 0
			for seed := range seeds {
				var c clock
				m := NewMemory(c.time)
				var admitted []time.Duration
				for i, at := range shape(rand.New(rand.NewPCG(seed, 0))) {
					c.set(at)
					v, _ := m.Admit(t.Context(), Attempt{User: "ann", ID: strconv.Itoa(i + 1), Limit: 60, Window: time.Minute})
					fits := inWindow(admitted, at, time.Minute) < 60
					if v.Admitted {
						admitted = append(admitted, at)
					}
					if v.Admitted != fits {
						wrong++
					}
					tried++
				}
				most = max(most, worst(admitted, time.Minute))
			}
			t.Logf("%d requests: at most %d admitted in any minute, %d decided wrongly", tried, most, wrong)
			if most > 60 || wrong > 0 {
				t.Errorf("at most %d admitted in any minute, want 60; %d decided wrongly, want 0", most, wrong)
			}
		})
	}
}

// inWindow counts the sorted times that count at a moment.
func inWindow(times []time.Duration, at, window time.Duration) (n int) {
	for i := len(times) - 1; i >= 0 && times[i] > at-window; i-- {
		n++
	}
	return n
}

// With any limit and window, with repeated and released requests, and with clocks that go back or
// stand still, the log agrees with a list of all admissions.
func TestTheLogAgreesWithAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c clock
		m := NewMemory(c.time)
		window := rapid.SampledFrom([]time.Duration{time.Second, 7 * time.Second, time.Minute}).Draw(t, "window")
		limit := rapid.IntRange(0, 20).Draw(t, "limit")
		type request struct {
			at, end    time.Duration
			id, charge string
		}
		twice := map[string]bool{}
		var list, recent []request // requests that count, and that may be repeated
		var now, newest time.Duration
		ids, charges := 0, 0
		known := false // a log exists from the first admitted request on
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				now += rapid.SampledFrom([]time.Duration{0, 1, time.Millisecond, time.Second / 3, window - 1, window, window + 1, 4 * time.Second}).Draw(t, "by")
				c.set(now)
			},
			"the clock goes back": func(t *rapid.T) { c.set(now - time.Second) },
			"the limit changes":   func(t *rapid.T) { limit = rapid.IntRange(0, 20).Draw(t, "to") },
			"a request": func(t *rapid.T) {
				ids++
				id := strconv.Itoa(ids)
				if rapid.Bool().Draw(t, "again") && ids > 1 {
					id = strconv.Itoa(rapid.IntRange(max(1, ids-10), ids-1).Draw(t, "which"))
				}
				at := max(c.time(), newest)
				list = slices.DeleteFunc(list, func(r request) bool { return r.at <= at-window })
				look := Verdict{Admitted: len(list) < limit, Remaining: max(0, int64(limit-len(list))), Used: int64(len(list))}
				if len(list) > 0 && limit > 0 {
					look.Reset = list[max(0, len(list)-limit)].at + window - at
				}
				if v, err := m.Peek(context.Background(), Attempt{User: "ann", Limit: usage.Limit(limit), Window: window}); err != nil || v != look {
					t.Fatalf("a look at %v of %d: %+v, want %+v, %v", at, limit, v, look, err)
				}
				recent = slices.DeleteFunc(recent, func(r request) bool { return r.end <= at })
				first := slices.IndexFunc(recent, func(r request) bool { return r.id == id })
				again := first >= 0
				twice[id] = again
				charges++
				charge := fmt.Sprint("charge ", charges) // another one at each Check
				caller := rapid.SampledFrom(fronts).Draw(t, "caller")
				v, err := m.Admit(context.Background(), Attempt{User: "ann", ID: id, Limit: usage.Limit(limit), Window: window, Charge: charged(charge), CallerTimeout: caller.timeout})
				want := Verdict{Admitted: again || len(list) < limit, Duplicate: again}
				if again {
					want.Charge = byNumber(recent[first].charge)
				} else if want.Admitted {
					admitted := request{at, at + caller.remembered, id, charge}
					list, recent = append(list, admitted), append(recent, admitted)
				}
				if known = known || want.Admitted; known {
					newest = at
				}
				want.Remaining = max(0, int64(limit-len(list)))
				if len(list) > 0 && limit > 0 {
					want.Reset = list[max(0, len(list)-limit)].at + window - at
				}
				if err != nil || v != want {
					t.Fatalf("at %v of %d: %+v, want %+v, %v", at, limit, v, want, err)
				}
			},
			"one is taken back": func(t *rapid.T) {
				if len(recent) == 0 {
					return
				}
				taken := recent[rapid.IntRange(0, len(recent)-1).Draw(t, "which")]
				m.Release(context.Background(), "ann", taken.id)
				is := func(r request) bool { return r == taken && !twice[r.id] }
				list, recent = slices.DeleteFunc(list, is), slices.DeleteFunc(recent, is)
			},
		})
	})
}

// However many callers ask at once, exactly the limit is admitted.
func TestManyCallersAtOnce(t *testing.T) {
	m := NewMemory(func() time.Duration { return time.Hour })
	const users, callers, limit = 50, 16, 60
	var admitted [users]atomic.Int64
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for i := range 10 * users {
				v, _ := m.Admit(t.Context(), Attempt{User: fmt.Sprint("user", i%users), ID: fmt.Sprint(caller, "-", i), Limit: limit, Window: time.Minute})
				if v.Admitted {
					admitted[i%users].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for i := range admitted {
		if n := admitted[i].Load(); n != limit {
			t.Errorf("user %d: %d admitted, want %d", i, n, limit)
		}
	}
}

// A user that was idle for a window costs no memory, and a refused request never does.
func TestIdleUsersAreForgotten(t *testing.T) {
	var c clock
	m := NewMemory(c.time)
	for i := range 1000 {
		m.Admit(t.Context(), Attempt{User: fmt.Sprint("user", i), ID: "", Limit: 60, Window: time.Minute})
		m.Admit(t.Context(), Attempt{User: fmt.Sprint("never", i), ID: "", Limit: 0, Window: time.Minute})
	}
	if n := m.Users(); n != 1000 {
		t.Errorf("%d users have a log, want 1000", n)
	}
	sweep := func() int {
		for i := range m.shards {
			m.shards[i].sweep(c.time())
		}
		return m.Users()
	}
	c.set(time.Minute - 1)
	if n := sweep(); n != 1000 {
		t.Errorf("after less than a minute %d users have a log, want 1000", n)
	}
	c.set(time.Minute)
	if n := sweep(); n != 0 {
		t.Errorf("after a minute %d users have a log, want 0", n)
	}
}

// A restart forgets nothing, and a clock that was set meanwhile neither admits too much nor refuses
// anybody for longer than a window.
func TestALogOutlivesItsProcess(t *testing.T) {
	for name, step := range map[string]time.Duration{"the clock was right": 0, "the clock was set back by an hour": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			var c clock
			before := NewMemory(c.time)
			wall := time.Unix(1_800_000_000, 0)
			for i := range 60 {
				c.set(time.Duration(i) * time.Second)
				before.Admit(t.Context(), Attempt{User: "ann", ID: strconv.Itoa(i), Limit: 60, Window: time.Minute})
			}
			var logs [][]byte
			before.Save(func() (time.Time, error) { return wall, nil }, func(piece []byte) error { logs = append(logs, bytes.Clone(piece)); return nil })
			var next clock // begins at 0, as after the start of a machine
			after := NewMemory(next.time)
			for _, piece := range logs {
				if err := after.Restore(wall.Add(step+500*time.Millisecond), piece); err != nil {
					t.Fatal(err)
				}
			}
			v, _ := after.Admit(t.Context(), Attempt{User: "ann", ID: "new", Limit: 60, Window: time.Minute})
			if v.Admitted {
				t.Error("61 requests in a minute")
			}
			next.set(time.Minute)
			if v, _ = after.Admit(t.Context(), Attempt{User: "ann", ID: "newer", Limit: 60, Window: time.Minute}); !v.Admitted {
				t.Error("refused after a minute")
			}
		})
	}
}

// Several stopped replicas may each have admitted requests of one user. Their snapshots add up to
// one list, whatever their order, and whatever window each of them knew.
func TestLogsOfSeveralProcessesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const stopped, started = time.Minute, 90 * time.Second
		wall := time.Unix(1_800_000_000, 0)
		var pieces [][]byte
		var list []time.Duration // admission times of the requests in their window at the stop
		for range rapid.IntRange(1, 4).Draw(t, "processes") {
			var c clock
			m, window := NewMemory(c.time), time.Duration(rapid.IntRange(1, 60).Draw(t, "window"))*time.Second
			times := rapid.SliceOfN(rapid.IntRange(0, 60), 0, 12).Draw(t, "requests")
			slices.Sort(times)
			for _, seconds := range times {
				at := time.Duration(seconds) * time.Second
				c.set(at)
				m.Admit(t.Context(), Attempt{User: "ann", Limit: 1000, Window: window})
				if at > stopped-window {
					list = append(list, at)
				}
			}
			c.set(stopped)
			m.Save(func() (time.Time, error) { return wall.Add(stopped), nil }, func(piece []byte) error {
				pieces = append(pieces, bytes.Clone(piece))
				return nil
			})
		}
		next := NewMemory(new(clock).time)
		for _, piece := range rapid.Permutation(pieces).Draw(t, "order") {
			if err := next.Restore(wall.Add(started), piece); err != nil {
				t.Fatal(err)
			}
		}
		window := time.Duration(rapid.IntRange(1, 120).Draw(t, "new window")) * time.Second
		want := len(slices.DeleteFunc(slices.Clone(list), func(at time.Duration) bool { return at <= started-window }))
		v, _ := next.Peek(t.Context(), Attempt{User: "ann", Limit: 1000, Window: window})
		if got := 1000 - int(v.Remaining); got != want {
			t.Errorf("%d requests count, want %d of %v", got, want, list)
		}
	})
}

// Requests admitted during a snapshot make it neither unreadable nor shorter.
func TestALogIsSavedWhileItGrows(t *testing.T) {
	var c clock
	m := NewMemory(c.time)
	admit := func() { m.Admit(t.Context(), Attempt{User: "ann", ID: "", Limit: 60, Window: time.Minute}) }
	admit()
	var pieces [][]byte
	wall := time.Unix(1_800_000_000, 0)
	err := m.Save(func() (time.Time, error) {
		c.set(time.Millisecond) // reading the time takes a while
		admit()
		return wall, nil
	}, func(piece []byte) error { pieces = append(pieces, bytes.Clone(piece)); return nil })
	next := NewMemory(c.time)
	for _, piece := range pieces {
		err = errors.Join(err, next.Restore(wall, piece))
	}
	v, _ := next.Peek(t.Context(), Attempt{User: "ann", Limit: 60, Window: time.Minute})
	if err != nil || v.Remaining != 58 {
		t.Errorf("%d more fit, want 58: %v", v.Remaining, err)
	}
}

// Any damaged snapshot is refused.
func FuzzRestore(f *testing.F) {
	m := NewMemory(nil)
	for i := range 10 {
		m.Admit(f.Context(), Attempt{User: "ann", ID: strconv.Itoa(i), Limit: 60, Window: time.Minute})
	}
	m.Save(func() (time.Time, error) { return time.Now(), nil }, func(piece []byte) error { f.Add(piece); return nil })
	f.Fuzz(func(t *testing.T, piece []byte) {
		NewMemory(nil).Restore(time.Now(), piece)
	})
}

// A duplicate is not counted, and a request with an empty id is never one.
func TestARequestWithoutAnIDIsCountedEachTime(t *testing.T) {
	m := NewMemory(nil)
	for i := range 5 {
		if v, _ := m.Admit(t.Context(), Attempt{User: "ann", ID: "", Limit: 3, Window: time.Minute}); v.Admitted != (i < 3) || v.Duplicate {
			t.Errorf("request %d: %+v", i, v)
		}
	}
}

// fronts are callers of Checks: for how long each waits for an answer, and how long its
// requests are remembered.
var fronts = []struct {
	name                string
	timeout, remembered time.Duration
}{
	{"the printed Envoy", 250 * time.Millisecond, 5 * time.Second},
	{"one that waits for 6 s", 6 * time.Second, 7 * time.Second},
	{"one that waits for 10 s", 10 * time.Second, 11 * time.Second},
	{"one that waits for a minute", time.Minute, time.Minute},
	{"one that waits for ten minutes", 10 * time.Minute, time.Minute},
	{"one that waits without a limit", 0, time.Minute},
}

// A repeated Check gets the charge of the first one, as long as its caller waits, within a minute.
// How long the caller waits after that is of no account. Later the same id is another request.
func TestASecondCheckIsToldTheFirstCharge(t *testing.T) {
	for _, caller := range fronts {
		t.Run(caller.name, func(t *testing.T) {
			var c clock
			m := NewMemory(c.time)
			secondCheck(t, caller.remembered, byNumber("first"), func(at time.Duration, a Attempt) Verdict {
				if a.CallerTimeout = 1; at == 0 {
					a.CallerTimeout = caller.timeout
				}
				c.set(at)
				v, _ := m.Admit(t.Context(), a)
				return v
			})
		})
	}
}

// secondCheck repeats a Check before and after the end of the time for which its request is
// remembered.
func secondCheck(t *testing.T, remembered time.Duration, first ChargeRef, ask func(at time.Duration, a Attempt) Verdict) {
	t.Helper()
	for _, check := range []struct {
		at   time.Duration
		want Verdict
	}{
		{0, Verdict{Admitted: true}},
		{remembered * 4 / 5, Verdict{Admitted: true, Duplicate: true, Charge: first}},
		{remembered - time.Millisecond, Verdict{Admitted: true, Duplicate: true, Charge: first}},
		{remembered + time.Millisecond, Verdict{Admitted: true}},
	} {
		charge := charged("first")
		if check.at > 0 {
			charge = charged(fmt.Sprint("after ", check.at))
		}
		v := ask(check.at, Attempt{User: "ann", ID: "1", Limit: usage.Unlimited, Window: time.Minute, Charge: charge})
		if v != check.want {
			t.Errorf("the Check after %v: %+v, want %+v", check.at, v, check.want)
		}
	}
}

// However long callers wait, their requests are remembered for a minute at most, in some 100 bytes
// each: docs/limits.md says so.
func TestRememberedRequestsTakeBoundedMemory(t *testing.T) {
	var c clock
	m := NewMemory(c.time)
	const second = 1000 // requests
	for i := range 150 * second {
		c.set(time.Duration(i) * time.Second / second)
		m.Admit(t.Context(), Attempt{User: strconv.Itoa(i % (5 * second)), ID: strconv.Itoa(i), Limit: usage.Unlimited, CallerTimeout: time.Hour})
	}
	requests, size := 0, 0
	for i := range m.shards {
		r := &m.shards[i].recent
		requests += int(r.next - r.first)
		size += len(r.ring)*int(unsafe.Sizeof(admitted{})) + len(r.index)*int(unsafe.Sizeof(r.index[0]))
	}
	t.Logf("%d requests of the last minute take %d bytes each", requests, size/requests)
	if requests < 60*second || requests > 65*second || size/requests > 112 {
		t.Errorf("%d requests are remembered, in %d bytes each; want %d, in at most 112", requests, size/requests, 60*second)
	}
}

func TestAdmitAllocates(t *testing.T) {
	var c clock
	m := NewMemory(c.time)
	i := 0
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = strconv.Itoa(i)
	}
	if n := testing.AllocsPerRun(5000, func() {
		i++
		c.set(time.Duration(i) * time.Second)
		m.Admit(context.Background(), Attempt{User: "ann", ID: ids[i%len(ids)], Limit: 60, Window: time.Minute})
	}); n > 0.01 {
		t.Errorf("%v allocations for a request, want 0", n)
	}
}
