package requestlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/portal/requestlog"
	"github.com/keyporter/keyporter/usage"
)

// saver records the batches that it is given, and fails with the result of fails.
type saver struct {
	fails func() error // nil: never

	mu  sync.Mutex
	all []requestlog.Batch // guarded by mu
}

func (s *saver) save(_ context.Context, b requestlog.Batch) error {
	if s.fails != nil {
		if err := s.fails(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, b)
	return nil
}

// sums returns the number of saved records, of counted requests and of counts.
func (s *saver) sums() (records int, requests int64, counts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.all {
		records += len(b.Records)
		counts += len(b.Counts)
		for _, c := range b.Counts {
			requests += c.Requests
		}
	}
	return records, requests, counts
}

// run runs a Log until stop is called. The function stop waits for its end.
func run(l *requestlog.Log) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	return func() { cancel(); <-done }
}

func record(user, agent string) usage.Record {
	return usage.Record{User: user, KeyID: "key of " + user, At: time.Now(), Method: "GET", Path: "/", Status: 200, Reason: "allowed", Address: "10.0.0.1", Agent: agent, Credits: 1}
}

// expect requires these numbers of requests per result, and none that was refused.
func expect(t *testing.T, g prometheus.Gatherer, saved, counted, dropped, failed float64) {
	t.Helper()
	want := map[string]float64{"saved": saved, "counted": counted, "dropped": dropped, "refused": 0, "failed": failed}
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			result := m.GetLabel()[0].GetValue()
			if got := m.GetCounter().GetValue(); got != want[result] {
				t.Errorf("%v requests are %s, want %v", got, result, want[result])
			}
			delete(want, result)
		}
	}
	if len(want) > 0 {
		t.Errorf("no metric for %v", want)
	}
}

// A request is saved unchanged within a second, and the last ones when the Log ends.
func TestRequestsAreSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s saver
		registry := prometheus.NewRegistry()
		l := requestlog.New(requestlog.Config{Save: s.save, Metrics: registry})
		stop := run(l)
		first, tried := record("ada", "curl"), record("ada", "curl")
		tried.Reason = "revoked_key"
		l.Add(first)
		l.Add(tried)
		l.Add(record("ada", "curl"))
		time.Sleep(1500 * time.Millisecond)
		if records, requests, counts := s.sums(); records != 3 || requests != 3 || counts != 2 {
			t.Fatalf("%d records, %d requests in %d counts; want 3, 3, and those with the ended key apart", records, requests, counts)
		}
		if s.all[0].Records[0] != first {
			t.Errorf("saved: %+v, want %+v", s.all[0].Records[0], first)
		}
		l.Add(record("eve", "curl"))
		stop()
		if records, _, _ := s.sums(); records != 4 {
			t.Errorf("%d records were saved when it ended, want 4", records)
		}
		expect(t, registry, 4, 0, 0, 0)
	})
}

// A Save that hangs delays no Add, and the unsaved data stays bounded: most of a flood is dropped,
// and each of its requests is counted under its result.
func TestASaveThatHangsDelaysNobody(t *testing.T) {
	stuck, release := make(chan struct{}, 10), make(chan struct{})
	var s saver
	s.fails = func() error {
		stuck <- struct{}{}
		<-release // ignores its context
		return errors.New("too late")
	}
	registry := prometheus.NewRegistry()
	l := requestlog.New(requestlog.Config{Save: s.save, Interval: time.Millisecond, Log: slog.New(slog.DiscardHandler), Metrics: registry})
	stop := run(l)
	l.Add(record("ada", "first"))
	<-stuck
	const requests, text = 300_000, 200
	before, began, slowest := heap(), time.Now(), time.Duration(0)
	for i := range requests {
		r := record(fmt.Sprint("user ", i%20_000), fmt.Sprintf("%0*d", text, i))
		r.At = began // sources are counted by time slot
		added := time.Now()
		l.Add(r)
		slowest = max(slowest, time.Since(added))
	}
	t.Logf("%.0f adds a second, the slowest took %v", requests/time.Since(began).Seconds(), slowest)
	if grown := heap() - before; grown > 32<<20 {
		t.Errorf("what waits takes %d bytes", grown)
	}
	close(release)
	stop()
	const kept = 2_500 + 15*2_500 // the first users with sources, and later ones without
	expect(t, registry, 0, 0, requests-kept, kept+1)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A flood by one user, with any number of agents, leaves room for the requests and sources of
// others. The user's own requests all count, most of them without a source.
func TestAFloodOfOneUserLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s saver
		registry := prometheus.NewRegistry()
		l := requestlog.New(requestlog.Config{Save: s.save, Metrics: registry})
		for i := range 50_000 {
			r := record("eve", fmt.Sprint("agent ", i))
			r.Reason, r.Credits = "revoked_key", 0
			l.Add(r)
		}
		l.Add(record("ada", "curl"))
		run(l)()
		if records, requests, counts := s.sums(); records != 51 || requests != 50_001 || counts != 102 {
			t.Errorf("%d records, %d requests in %d counts; want 50, 50,000 and 101 of the flood, and one", records, requests, counts)
		}
		ada := record("ada", "curl")
		if got := s.all[0].Counts[requestlog.Source{User: "ada", KeyID: ada.KeyID, Slot: ada.At.UnixMilli() / 600_000, Address: ada.Address, Agent: "curl"}]; got.Requests != 1 {
			t.Errorf("of the other user: %+v", got)
		}
		expect(t, registry, 51, 50_000-50, 0, 0)
	})
}

// Forged access-log entries take no room from charged requests, whether they use the same user's
// name or invented users, keys or times. The counts per user are bounded.
func TestWhatIsMadeUpTakesNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s saver
		l := requestlog.New(requestlog.Config{Save: s.save, Retention: 24 * time.Hour})
		forged := func(user string, i int) usage.Record {
			r := record(user, fmt.Sprint("agent ", i))
			r.KeyID, r.Credits, r.At = fmt.Sprint("key_", i), 0, r.At.Add(-time.Duration(i)*time.Second)
			return r
		}
		for i := range 20_000 {
			l.Add(forged("ada", i))
			l.Add(forged(fmt.Sprint("nobody ", i), i))
		}
		for _, user := range []string{"ada", "bob"} {
			for i := range 60 {
				l.Add(record(user, fmt.Sprint("own ", i)))
			}
		}
		run(l)()
		own, ofAda := map[string]int{}, 0
		for source, count := range s.all[0].Counts {
			if strings.HasPrefix(source.Agent, "own") {
				own[source.User] += int(count.Requests)
			} else if source.User == "ada" {
				ofAda++
			}
			if age := time.Since(count.Last); age > time.Hour {
				t.Fatalf("it counts as of %v ago", age)
			}
		}
		listed := map[string]int{}
		for _, r := range s.all[0].Records {
			if r.Credits > 0 {
				listed[r.User]++
			}
		}
		for _, user := range []string{"ada", "bob"} {
			if own[user] != 60 || listed[user] != 50 {
				t.Errorf("%s: %d requests are counted with their source and %d listed, want 60 and 50", user, own[user], listed[user])
			}
		}
		if ofAda > 200 || len(s.all[0].Counts) > 5_000+120 {
			t.Errorf("%d counts, %d of them made up of one user", len(s.all[0].Counts), ofAda)
		}
	})
}

// A request with a time outside the accepted range is refused, however far off it is. One from a
// clock that is slightly ahead counts as now.
func TestTimesThatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s saver
		l := requestlog.New(requestlog.Config{Save: s.save, Retention: 24 * time.Hour})
		for _, at := range []time.Time{
			{}, time.Unix(0, 0), time.Unix(-1, 0), time.Unix(1<<40, 0), time.Unix(1<<62, 0), time.Unix(-1<<62, 999_999_999),
			time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().Add(time.Hour), time.Now().Add(-25 * time.Hour),
		} {
			r := record("ada", "curl")
			r.At = at
			l.Add(r)
		}
		ahead, old := record("ada", "curl"), record("ada", "curl")
		ahead.At, old.At = ahead.At.Add(time.Minute), old.At.Add(-23*time.Hour)
		l.Add(ahead)
		l.Add(old)
		run(l)()
		records := s.all[0].Records
		if len(records) != 2 || !records[0].At.Equal(time.Now()) || !records[1].At.Equal(old.At) {
			t.Errorf("kept: %+v", records)
		}
	})
}

// While nothing can be saved, requests are dropped. This is logged once, and so is the recovery.
func TestWhatCannotBeSavedIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s saver
		var logs bytes.Buffer
		away := true
		s.fails = func() error {
			if away {
				return errors.New("the database is away")
			}
			return nil
		}
		registry := prometheus.NewRegistry()
		l := requestlog.New(requestlog.Config{Save: s.save, Log: slog.New(slog.NewTextHandler(&logs, nil)), Metrics: registry})
		stop := run(l)
		for range 5 {
			l.Add(record("ada", "curl"))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		away = false
		l.Add(record("ada", "curl"))
		stop()
		if text := logs.String(); strings.Count(text, "cannot be saved") != 1 || strings.Count(text, "saved again") != 1 {
			t.Errorf("logged: %s", text)
		}
		expect(t, registry, 1, 0, 0, 5)
	})
}

// Concurrent adding, saving and stopping loses no request that is not counted as lost.
func TestNothingIsLostUncounted(t *testing.T) {
	var s saver
	registry := prometheus.NewRegistry()
	l := requestlog.New(requestlog.Config{Save: s.save, Interval: time.Millisecond, Metrics: registry})
	stop := run(l)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 5000 {
				l.Add(record(fmt.Sprint(i), "curl"))
			}
		})
	}
	all.Wait()
	stop()
	records, requests, _ := s.sums()
	if requests != 20_000 {
		t.Errorf("%d requests were saved, want 20,000", requests)
	}
	expect(t, registry, float64(records), float64(20_000-records), 0, 0)
}

func BenchmarkAdd(b *testing.B) {
	l := requestlog.New(requestlog.Config{Save: func(context.Context, requestlog.Batch) error { return nil }})
	r := record("ada", "python-requests/2.32")
	b.ReportAllocs()
	for b.Loop() {
		l.Add(r)
	}
}
