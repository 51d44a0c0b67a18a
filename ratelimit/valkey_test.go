package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// serverClock is a Valkey clock that is set by hand: the scripts read a key in place of TIME.
type serverClock struct {
	t      testing.TB
	valkey *Valkey
}

const clockKey = "test:clock"

// keepAll begins scripts that count by a serverClock. Valkey itself forgets by the real time, and
// any amount of that can pass on a busy machine. Texts end by the serverClock.
const keepAll = `
local server = redis
local redis = { pcall = server.pcall, call = function(name, ...)
  local key, value, option, life = ...
  if name == 'PEXPIRE' then return 1 end
  local now = tonumber(server.call('GET', '` + clockKey + `') or 0)
  if name == 'SET' and option == 'PX' then
    server.call('SET', key .. ':end', string.format('%.0f', now + life * 1000))
    return server.call('SET', key, value)
  end
  if name == 'GET' and now > tonumber(server.call('GET', key .. ':end') or now) then return false end
  return server.call(name, ...)
end }
`

func (c serverClock) set(now time.Duration) {
	// On a busy machine Valkey may not answer in time.
	partstest.EventuallyNil(c.t, "the clock is set", func() error {
		client, err := c.valkey.connect()
		if err != nil {
			return err
		}
		return client.Do(context.Background(), client.B().Set().Key(clockKey).Value(microseconds(now)).Build()).Error()
	})
}

// replicas returns limiters that share a server and count by the clock; n is their number.
func replicas(t testing.TB, server *parts.Valkey, n int) ([]*Shared, serverClock) {
	t.Helper()
	lua := strings.Replace(clockLua, "clock[1] * 1000000 + clock[2]", "tonumber(redis.call('GET', '"+clockKey+"') or 0)", 1)
	if lua == clockLua {
		t.Fatal("clock.lua has another form than this test expects")
	}
	clock := serverClock{t, dial(t, server.Addr())}
	clock.set(0)
	var all []*Shared
	for range n {
		v := dial(t, server.Addr())
		v.load(keepAll + lua)
		s := NewShared(SharedConfig{Valkey: v, Replicas: func() int { return n }, Timeout: 10 * time.Second})
		s.Connect(t.Context())
		s.since.Store(-int64(time.Hour)) // the memory is not new
		all = append(all, s)
	}
	return all, clock
}

func dial(t testing.TB, address string) *Valkey {
	t.Helper()
	v, err := NewValkey("redis://" + address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// No window of a minute has more than 60 admitted requests, and none is refused while there are
// fewer, whatever the traffic, and whichever of three replicas each request reaches.
func TestReplicasThatShareAValkeyAreExact(t *testing.T) {
	partstest.Slow(t)
	seeds, requests := uint64(1), 4000 // more than a window of each
	if os.Getenv("KEYPORTER_LONG") != "" {
		seeds, requests = 30, 100_000
	}
	all, clock := replicas(t, partstest.Valkey(t), 3)
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			tried, most, wrong := 0, 0, 0
			for seed := range seeds {
				r := rand.New(rand.NewPCG(seed, 0))
				var admitted []time.Duration
				times := shape(r)
				for i, at := range times[:min(len(times), requests)] {
					at = at.Truncate(time.Microsecond) + 1000*time.Hour
					clock.set(at)
					v, err := all[r.IntN(3)].Admit(t.Context(), Attempt{User: fmt.Sprint(name, seed), ID: strconv.Itoa(i), Limit: 60, Window: time.Minute})
					if err != nil {
						t.Fatal(err)
					}
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
	for i, s := range all {
		if s.down.Load() {
			t.Errorf("replica %d has decided alone", i)
		}
	}
}

// With any limit and window, with repeated and released requests, and with a server clock that goes
// back or stands still, the log in Valkey agrees with a list of all admissions.
func TestTheLogInValkeyAgreesWithAList(t *testing.T) {
	all, clock := replicas(t, partstest.Valkey(t), 3)
	users := 0
	rapid.Check(t, func(t *rapid.T) {
		users++
		user := fmt.Sprint("user", users)
		window := rapid.SampledFrom([]time.Duration{time.Second, 7 * time.Second, time.Minute}).Draw(t, "window")
		limit := rapid.IntRange(0, 20).Draw(t, "limit")
		type request struct {
			at         time.Duration // moves when the clock goes back
			real, end  time.Duration
			id, charge string
			twice      bool
		}
		var list, recent []*request // requests that count, and that may be repeated
		now := 1000 * time.Hour
		ids := 0
		clock.set(now)
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				now += rapid.SampledFrom([]time.Duration{0, time.Microsecond, time.Millisecond, 333 * time.Millisecond, window - time.Microsecond, window, window + time.Microsecond, 4 * time.Second}).Draw(t, "by")
				clock.set(now)
			},
			"the clock goes back": func(t *rapid.T) {
				now -= rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, time.Hour}).Draw(t, "by")
				clock.set(now)
			},
			"the limit changes": func(t *rapid.T) { limit = rapid.IntRange(0, 20).Draw(t, "to") },
			"a request": func(t *rapid.T) {
				ids++
				id, charge := strconv.Itoa(ids), fmt.Sprint("charge ", ids)
				if rapid.Bool().Draw(t, "again") && ids > 1 {
					id = strconv.Itoa(rapid.IntRange(max(1, ids-10), ids-1).Draw(t, "which"))
				}
				if n := len(list); n > 0 && list[n-1].at > now {
					back := list[n-1].at - now
					for _, r := range list {
						r.at -= back
					}
				}
				list = slices.DeleteFunc(list, func(r *request) bool { return r.at <= now-window })
				look := Verdict{Admitted: len(list) < limit, Remaining: max(0, int64(limit-len(list))), Used: int64(len(list))}
				if len(list) > 0 && limit > 0 {
					look.Reset = list[max(0, len(list)-limit)].at + window - now
				}
				if v, err := all[0].Peek(context.Background(), Attempt{User: user, Limit: usage.Limit(limit), Window: window}); err != nil || v != look {
					t.Fatalf("a look at %v of %d: %+v, want %+v, %v", now, limit, v, look, err)
				}
				first := slices.IndexFunc(recent, func(r *request) bool {
					return r.id == id && now <= r.end && (now-r.real).Abs() < maxRemembered
				})
				caller := rapid.SampledFrom(fronts).Draw(t, "caller")
				want := Verdict{Admitted: first >= 0 || len(list) < limit, Duplicate: first >= 0}
				if first >= 0 {
					want.Charge, recent[first].twice = ChargeRef{Name: recent[first].charge}, true
				} else if want.Admitted {
					r := &request{at: now, real: now, end: now + caller.remembered, id: id, charge: charge}
					recent = slices.DeleteFunc(recent, func(r *request) bool { return r.id == id })
					list, recent = append(list, r), append(recent, r)
				}
				want.Remaining = max(0, int64(limit-len(list)))
				if len(list) > 0 && limit > 0 {
					want.Reset = list[max(0, len(list)-limit)].at + window - now
				}
				s := all[rapid.IntRange(0, 2).Draw(t, "replica")]
				v, err := s.config.Valkey.Admit(10*time.Second, *s.identity.Load(), Attempt{User: user, ID: id, Limit: usage.Limit(limit), Window: window, Charge: charged(charge), CallerTimeout: caller.timeout})
				if err != nil || v != want {
					t.Fatalf("at %v of %d: %+v, want %+v, %v", now, limit, v, want, err)
				}
			},
			"one is taken back": func(t *rapid.T) {
				if len(recent) == 0 {
					return
				}
				taken := recent[rapid.IntRange(0, len(recent)-1).Draw(t, "which")]
				want := taken.twice || now > taken.end
				if stands, err := all[0].config.Valkey.Release(context.Background(), user, taken.id); stands != want || err != nil {
					t.Fatalf("%v stands: %v, %v", taken, stands, err)
				}
				is := func(r *request) bool { return r == taken && !want }
				list, recent = slices.DeleteFunc(list, is), slices.DeleteFunc(recent, is)
			},
		})
	})
}

// A Check that is repeated on another replica gets the charge of the first one, as long as its
// caller waits, within a minute. Later the same id is another request.
func TestASecondCheckElsewhereIsToldTheFirstCharge(t *testing.T) {
	server := partstest.Valkey(t)
	for _, caller := range fronts {
		t.Run(caller.name, func(t *testing.T) {
			all, clock := replicas(t, server, 2)
			secondCheck(t, caller.remembered, ChargeRef{Name: "first"}, func(at time.Duration, a Attempt) Verdict {
				s := all[1]
				if a.CallerTimeout = 1; at == 0 {
					a.CallerTimeout, s = caller.timeout, all[0]
				}
				a.User = caller.name
				clock.set(1000*time.Hour + at)
				v, err := s.Admit(t.Context(), a)
				if err != nil {
					t.Fatal(err)
				}
				return v
			})
		})
	}
}

// Each Check comes one to five times, to the same and to other replicas, one after the other and at
// once: it is counted once, and every answer names the charge of the first.
func TestARepeatedCheckIsCountedOnceByAllReplicas(t *testing.T) {
	server := partstest.Valkey(t)
	all, clock := replicas(t, server, 3)
	clock.set(1000 * time.Hour)
	const requests = 2000
	var checks, firsts, wrong atomic.Int64
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 0))
			for i := range requests / 8 {
				var again sync.WaitGroup
				var charges sync.Map
				for copy := range 1 + r.IntN(5) {
					s, atOnce := all[r.IntN(3)], r.IntN(2) == 0
					ask := func() {
						checks.Add(1)
						id := fmt.Sprint(worker, "-", i)
						charge := fmt.Sprint(id, "-", copy)
						v, err := s.Admit(t.Context(), Attempt{User: "ann", ID: id, Limit: requests, Window: time.Minute, Charge: charged(charge)})
						if err != nil || !v.Admitted {
							wrong.Add(1)
						}
						if !v.Duplicate {
							firsts.Add(1)
							v.Charge.Name = charge
						}
						charges.Store(v.Charge.Name, true)
					}
					if atOnce {
						again.Go(ask)
					} else {
						ask()
					}
				}
				again.Wait()
				names := 0
				charges.Range(func(any, any) bool { names++; return true })
				if names != 1 {
					wrong.Add(1)
				}
			}
		})
	}
	wg.Wait()
	client, _ := all[0].config.Valkey.connect()
	counted, err := client.Do(t.Context(), client.B().Zcard().Key(logKey("ann")).Build()).AsInt64()
	t.Logf("%d Checks of %d requests: %d counted, %d answers wrong", checks.Load(), requests, counted, wrong.Load())
	if err != nil || counted != requests || firsts.Load() != requests || wrong.Load() > 0 {
		t.Errorf("%d counted, %d answered as the first, want %d; %d answers wrong; %v", counted, firsts.Load(), requests, wrong.Load(), err)
	}
}

// The requests of a batch are counted one after another, each by its own limit and with its own
// verdict.
func TestABatchIsCountedOneByOne(t *testing.T) {
	all, clock := replicas(t, partstest.Valkey(t), 1)
	clock.set(1000 * time.Hour)
	v := all[0].config.Valkey
	b := &batch{identity: *all[0].identity.Load()}
	var want []Verdict
	for _, c := range []struct {
		user, id string
		limit    usage.Limit
		want     Verdict
	}{
		{"ann", "1", 1, Verdict{Admitted: true, Reset: time.Minute}},
		{"ann", "2", 1, Verdict{Reset: time.Minute}},
		{"bob", "1", 3, Verdict{Admitted: true, Remaining: 2, Reset: time.Minute}},
		{"ann", "1", 1, Verdict{Admitted: true, Duplicate: true, Charge: ChargeRef{Name: "charge 0"}, Reset: time.Minute}},
		{"eve", "1", 0, Verdict{}},
		{"ian", "1", usage.Unlimited, Verdict{Admitted: true}},
		{"bob", "2", 3, Verdict{Admitted: true, Remaining: 1, Reset: time.Minute}},
	} {
		b.attempts = append(b.attempts, Attempt{User: c.user, ID: c.id, Limit: c.limit, Window: time.Minute, Charge: charged(fmt.Sprint("charge ", len(want)))})
		want = append(want, c.want)
	}
	got, err := v.count(t.Context(), b)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	b.identity = "another"
	if got, err := v.count(t.Context(), b); !errors.Is(err, errForgotten) || got != nil {
		t.Errorf("another memory answers %+v, %v", got, err)
	}
}

// Setting the server's clock back makes no request a repetition of one long ago.
func TestAClockThatIsSetBackRevivesNoCheck(t *testing.T) {
	all, clock := replicas(t, partstest.Valkey(t), 1)
	for i, at := range []time.Duration{1000 * time.Hour, 999 * time.Hour} {
		clock.set(at)
		v, err := all[0].config.Valkey.Admit(10*time.Second, *all[0].identity.Load(), Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Minute})
		if err != nil || v.Duplicate || v.Remaining != int64(59-i) {
			t.Errorf("request %d: %+v, %v", i+1, v, err)
		}
	}
}

// Keys in Valkey expire, and not before their time.
func TestNothingStaysInValkey(t *testing.T) {
	v := dial(t, partstest.Valkey(t).Addr())
	identity, _, err := v.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]time.Duration{logKey("ann"): time.Minute}
	b := &batch{identity: identity}
	for _, caller := range fronts {
		b.attempts = append(b.attempts, Attempt{User: "ann", ID: caller.name, Limit: 60, Window: time.Minute, CallerTimeout: caller.timeout})
		ends[recordKey("ann", caller.name)] = caller.remembered
	}
	began := time.Now()
	if _, err := v.count(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	client, _ := v.connect()
	for key, most := range ends {
		left, err := client.Do(t.Context(), client.B().Pttl().Key(key).Build()).AsInt64()
		if least := most - time.Since(began); err != nil || left < least.Milliseconds()-1 || left > most.Milliseconds()+1 {
			t.Errorf("%s ends in %d ms, want %v: %v", key, left, most, err)
		}
	}
}

// An unusable URL is refused without repeating it, and a usable one is shown without any part that
// may be a password.
func TestValkeyURLs(t *testing.T) {
	for address, shown := range map[string]string{
		"redis://valkey:6379":                   "redis://valkey:6379",
		"redis://valkey":                        "redis://valkey",
		"redis://ann:hunter2@valkey:6379/2":     "redis://xxxxx@valkey:6379/2",
		"rediss://:hunter2@valkey:6379":         "rediss://xxxxx@valkey:6379",
		"redis://hunter2@valkey:6379":           "redis://xxxxx@valkey:6379",
		"redis://a:hunter2@valkey?master_set=m": "redis://xxxxx@valkey?…",
		"valkey://valkey:6379":                  "valkey://valkey:6379",
	} {
		if err := CheckValkeyURL(address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		if got := MaskValkeyURL(address); got != shown {
			t.Errorf("%s is shown as %s, want %s", address, got, shown)
		}
	}
	for _, address := range []string{
		"", "valkey:6379", "http://valkey", "redis://", "redis:///1", "redis://a:hunter2@valkey/one", "redis://a:hun/ter2@valkey", "redis://a:hunter2#@valkey", "redis://a:%zzhunter2@valkey", "redis://a:hunter2@valkey:port",
	} {
		err := CheckValkeyURL(address)
		if err == nil {
			t.Errorf("%s is accepted", address)
		}
		if text := fmt.Sprint(err, MaskValkeyURL(address)); strings.Contains(text, "hun") {
			t.Errorf("%s is shown as %s", address, text)
		}
	}
}
