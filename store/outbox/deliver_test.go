package outbox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/outbox"
)

// bench is an outbox with a clock, and the lease of one replica.
type bench struct {
	*testing.T
	db     *store.DB
	outbox *outbox.Outbox
	fence  int64
	passed time.Duration
}

func newBench(t *testing.T, url string, endpoints ...string) *bench {
	t.Helper()
	b := &bench{T: t, db: storetest.Open(t, store.Config{URL: url})}
	b.outbox = outbox.New(b.db)
	b.fence = lease(t, b.outbox, endpoints...)
	return b
}

// add makes events for an endpoint, each of a subject such as user:ada.
func (b *bench) add(endpoint string, subjects ...string) {
	b.Helper()
	for _, subject := range subjects {
		if _, err := b.db.Changes.Exec(`INSERT INTO events (endpoint, type, subject, data) VALUES ($1, 'key.created', $2, '{}')`, endpoint, subject); err != nil {
			b.Fatal(err)
		}
	}
}

// pass lets time pass, and keeps the lease.
func (b *bench) pass(d time.Duration) {
	b.Helper()
	b.passed += d
	moved := *b.db
	storetest.SetClock(&moved, b.passed)
	b.outbox = outbox.New(&moved)
	fence, held, err := b.outbox.Acquire(b.Context(), "a", time.Minute)
	if err != nil || !held {
		b.Fatalf("held %v, %v", held, err)
	}
	b.fence = fence
}

// ready checks which events are ready: the subject, and a ! if it is out of order.
func (b *bench) ready(endpoint string, want ...string) []outbox.Event {
	b.Helper()
	events, err := b.outbox.Ready(b.Context(), endpoint, 100)
	if err != nil {
		b.Fatal(err)
	}
	got := []string{}
	for _, e := range events {
		text := e.Subject
		if e.OutOfOrder {
			text += "!"
		}
		got = append(got, text)
	}
	if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
		b.Errorf("ready for %s:\n%s", endpoint, diff)
	}
	return events
}

func (b *bench) record(outcomes ...outbox.Outcome) {
	b.Helper()
	if err := b.outbox.Record(b.Context(), b.fence, outcomes); err != nil {
		b.Fatal(err)
	}
}

func failed(e outbox.Event) outbox.Outcome {
	return outbox.Outcome{Event: e, State: outbox.Pending, Wait: time.Minute, Problem: "answered 500"}
}

func delivered(e outbox.Event) outbox.Outcome {
	return outbox.Outcome{Event: e, State: outbox.Delivered}
}

// The events of a user come in their order, those of others and of other endpoints do not wait for
// them; after an hour the next ones go on, and say that they are out of order. So does the late one.
func TestTheOrderOfEachUser(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		b := newBench(t, url, "one", "two")
		b.add("one", "user:ada", "user:ada", "user:eve", "user:ada")
		b.add("two", "user:ada")
		events := b.ready("one", "user:ada", "user:eve")
		b.record(failed(events[0]), delivered(events[1]))
		b.ready("one")
		b.ready("two", "user:ada")
		b.pass(time.Minute)
		first := b.ready("one", "user:ada")
		if first[0].ID != events[0].ID || first[0].Attempts != 1 || first[0].Problem != "answered 500" || first[0].Trying < time.Minute {
			t.Errorf("the next attempt is of %+v, want one of %s", first[0], events[0].ID)
		}
		b.record(outbox.Outcome{Event: first[0], State: outbox.Pending, Wait: 2 * time.Hour})
		b.pass(58 * time.Minute)
		b.ready("one")
		b.pass(2 * time.Minute)
		second := b.ready("one", "user:ada!")
		if second[0].ID == first[0].ID {
			t.Error("the stuck event is ready before its time")
		}
		b.record(delivered(second[0]))
		third := b.ready("one", "user:ada!")
		b.pass(2 * time.Hour)
		late := b.ready("one", "user:ada!") // it goes before the third, now that its time has come
		if late[0].ID != first[0].ID {
			t.Errorf("%s goes first, want %s", late[0].ID, first[0].ID)
		}
		b.record(delivered(late[0]))
		if next := b.ready("one", "user:ada"); next[0].ID != third[0].ID {
			t.Errorf("%s is next, want %s", next[0].ID, third[0].ID)
		}
		b.record(delivered(third[0]))
		b.ready("one")
		b.add("one", "user:ada")
		b.ready("one", "user:ada")
	})
}

// Of two replicas one holds the lease, and after a takeover the former one records nothing.
func TestOneReplicaDelivers(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		b := newBench(t, url, "one")
		b.add("one", "user:ada")
		event := b.ready("one", "user:ada")[0]
		if _, held, err := b.outbox.Acquire(t.Context(), "b", time.Minute); held || err != nil {
			t.Errorf("a second replica has the lease: %v, %v", held, err)
		}
		again, held, err := b.outbox.Acquire(t.Context(), "a", time.Minute)
		if err != nil || !held || again != b.fence {
			t.Errorf("a renewal has the fence %d, %v, %v; want %d", again, held, err, b.fence)
		}
		if err := b.outbox.Release(t.Context(), b.fence); err != nil {
			t.Fatal(err)
		}
		fence, held, err := b.outbox.Acquire(t.Context(), "b", time.Minute)
		if err != nil || !held || fence <= b.fence {
			t.Errorf("the takeover has the fence %d, %v, %v; want more than %d", fence, held, err, b.fence)
		}
		for what, err := range map[string]error{
			"an outcome": b.outbox.Record(t.Context(), b.fence, []outbox.Outcome{delivered(event)}),
			"endpoints":  b.outbox.SetEndpoints(t.Context(), b.fence, nil),
			"a release":  b.outbox.Release(t.Context(), b.fence),
		} {
			if !errors.Is(err, outbox.ErrFenced) {
				t.Errorf("%s of the former replica: %v", what, err)
			}
		}
		b.ready("one", "user:ada")
	})
}

// An event that was put aside comes back by a retry, with the same id. A disabled endpoint gets
// nothing until a retry or another URL; its events wait.
func TestRetries(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		b := newBench(t, url, "one")
		b.add("one", "user:ada", "user:ada")
		event := b.ready("one", "user:ada")[0]
		b.record(outbox.Outcome{Event: event, State: outbox.Aside, Problem: "answered 500"})
		b.ready("one", "user:ada!")
		if _, _, err := b.outbox.RetryEvent(t.Context(), event.ID, ""); err != nil {
			t.Fatal(err)
		}
		if again := b.ready("one", "user:ada")[0]; again.ID != event.ID || again.Trying != 0 || again.Attempts != 0 {
			t.Errorf("after a retry: %+v", again)
		}
		for _, id := range []string{"evt_1", "evt_1_" + strings.Repeat("0", 32), "evt_99999999999999999999_" + strings.Repeat("0", 32)} {
			if _, _, err := b.outbox.RetryEvent(t.Context(), id, ""); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %v", id, err)
			}
		}
		b.record(outbox.Outcome{Event: event, State: outbox.Pending, Problem: "answered 410 Gone", Gone: true})
		b.ready("one")
		status, err := b.outbox.Status(t.Context())
		if err != nil || len(status) != 1 || !status[0].Disabled || !status[0].Known || status[0].Pending != 2 {
			t.Errorf("status %+v, %v", status, err)
		}
		set := func(target string) {
			t.Helper()
			if err := b.outbox.SetEndpoints(t.Context(), b.fence, []outbox.Endpoint{{Name: "one", Target: target}}); err != nil {
				t.Fatal(err)
			}
		}
		set("t")
		b.ready("one")
		set("another")
		b.ready("one", "user:ada")
		b.record(outbox.Outcome{Event: event, State: outbox.Pending, Wait: time.Hour, Gone: true})
		if n, _, err := b.outbox.RetryEndpoint(t.Context(), "one", ""); n != 1 || err != nil {
			t.Errorf("%d retried, %v", n, err)
		}
		b.ready("one", "user:ada")
		if _, _, err := b.outbox.RetryEndpoint(t.Context(), "other", ""); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}

// Delivered events go after three days, all others after seven; and without a replica that delivers
// nothing is written any more after a day.
func TestTheOutboxIsBoundedInTime(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		b := newBench(t, url, "one")
		for i := range 3 {
			b.add("one", fmt.Sprintf("user:u%d", i))
		}
		events := b.ready("one", "user:u0", "user:u1", "user:u2")
		b.record(delivered(events[0]), outbox.Outcome{Event: events[1], State: outbox.Aside}, failed(events[2]))
		tidied := func(rows, subscriptions int) {
			t.Helper()
			if err := b.outbox.Tidy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n, m := storetest.RowsOf(t, b.db, "events"), storetest.RowsOf(t, b.db, "event_subscriptions"); n != rows || m != subscriptions {
				t.Errorf("after %v: %d events, %d subscriptions; want %d, %d", b.passed, n, m, rows, subscriptions)
			}
		}
		all := len(outbox.Types())
		tidied(3, all)
		b.pass(72*time.Hour + time.Minute)
		tidied(2, all)
		b.pass(96 * time.Hour)
		tidied(0, all)
		moved := *b.db
		storetest.SetClock(&moved, b.passed+25*time.Hour)
		b.outbox = outbox.New(&moved)
		tidied(0, 0)
	})
}
