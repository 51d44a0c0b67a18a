package cache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/store/cache"
)

var errNoKey = errors.New("no such key")

// keysOf is a database of marks by group, each read of which takes a while.
type keysOf struct {
	mu     sync.Mutex
	groups map[string][]uint64 // guarded by mu
	fails  error               // guarded by mu
	reads  []string            // guarded by mu
}

func (k *keysOf) add(group string, marks ...uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.groups[group] = append(k.groups[group], marks...)
}

func (k *keysOf) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails = err
}

func (k *keysOf) read(_ context.Context, group string, each func(uint64) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reads = append(k.reads, group)
	if k.fails != nil {
		return k.fails
	}
	for name, marks := range k.groups {
		for _, mark := range marks {
			if group != "" && group != name {
				continue
			}
			if err := each(mark); err != nil {
				return err
			}
		}
	}
	return nil
}

func newKnown(t *testing.T, of *keysOf, size int) *cache.Known {
	known := cache.NewKnown(cache.KnownConfig{
		Read: func(ctx context.Context, group string, each func(uint64) error) error {
			time.Sleep(10 * time.Millisecond)
			return of.read(ctx, group, each)
		},
		Unknown: errNoKey, Size: size, Places: 3, Turns: 2,
	})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go known.Run(ctx)
	return known
}

// admitted says what becomes of a mark: read, unknown, or undecided.
func admitted(known *cache.Known, mark uint64) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	leave, err := known.Admit(ctx, mark)
	switch {
	case err == nil:
		leave()
		return "read"
	case errors.Is(err, errNoKey):
		return "unknown"
	case errors.Is(err, cache.ErrNoPlace) && errors.Is(err, cache.ErrBusy):
		return "undecided"
	}
	return err.Error()
}

// A key that is not on the complete list is refused at once. From the announcement of an import
// until it was read, no key is refused, and those on the list are read like before. The import alone
// is read.
func TestTheListFollowsImports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := &keysOf{groups: map[string][]uint64{"1": {10, 20}, "2": {30}}}
		known := newKnown(t, of, 0)
		expect := func(when string, want map[uint64]string) {
			t.Helper()
			for mark, what := range want {
				if got := admitted(known, mark); got != what {
					t.Errorf("%s, %d: %s, want %s", when, mark, got, what)
				}
			}
		}
		known.Announce("1") // nobody wants the list yet
		synctest.Wait()
		if len(of.reads) != 0 {
			t.Error(of.reads)
		}
		expect("before the list is read", map[uint64]string{10: "read", 11: "read"}) // and this asks for it
		time.Sleep(time.Second)
		expect("with the list", map[uint64]string{10: "read", 20: "read", 30: "read", 11: "unknown", 0: "unknown"})
		of.add("3", 11, 5)
		known.Announce("3")
		expect("while an import is read", map[uint64]string{10: "read", 11: "read", 12: "read"})
		time.Sleep(time.Second)
		expect("after the import", map[uint64]string{10: "read", 11: "read", 5: "read", 12: "unknown"})
		if got := fmt.Sprint(of.reads); got != "[ 3]" {
			t.Errorf("read %q", got)
		}
		known.Announce("")
		known.Announce("3")
		time.Sleep(time.Second)
		expect("after everything was read again", map[uint64]string{10: "read", 5: "read", 12: "unknown"})
		if got := fmt.Sprint(of.reads); got != "[ 3 ]" {
			t.Errorf("read %q", got)
		}
	})
}

// An import that is announced while it is read is read again before a key is refused.
func TestTheListReadsWhatComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := &keysOf{groups: map[string][]uint64{}}
		known := newKnown(t, of, 0)
		known.Want()
		time.Sleep(time.Second)
		known.Announce("7")
		time.Sleep(5 * time.Millisecond) // half way
		known.Announce("7")
		time.Sleep(8 * time.Millisecond) // the first read has ended
		if got := admitted(known, 1); got != "read" {
			t.Error(got)
		}
		time.Sleep(time.Second)
		if got := admitted(known, 1); got != "unknown" {
			t.Error(got)
		}
	})
}

// While the list cannot be read it is a hint: keys on it are read, all others compete for the
// places. It is tried again each second.
func TestTheListThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := &keysOf{groups: map[string][]uint64{"1": {10}}}
		known := newKnown(t, of, 0)
		known.Want()
		time.Sleep(time.Second)
		of.fail(errors.New("away"))
		known.Announce("")
		time.Sleep(5 * time.Second)
		var leaves []func()
		for range 2 { // both turns
			leave, err := known.Admit(t.Context(), 99)
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		waiting := make(chan string)
		go func() { waiting <- admitted(known, 98) }() // the last place
		synctest.Wait()
		if got := admitted(known, 97); got != "undecided" {
			t.Errorf("without a place: %s", got)
		}
		if got := <-waiting; got != "undecided" {
			t.Errorf("without a turn: %s", got)
		}
		if got := admitted(known, 10); got != "read" {
			t.Errorf("on the list: %s", got)
		}
		if _, err := known.Admit(nowait.Context(t.Context()), 99); !errors.Is(err, nowait.ErrWouldWait) {
			t.Errorf("one that may not wait: %v", err)
		}
		for _, leave := range leaves {
			leave()
		}
		if n := len(of.reads); n < 5 || n > 7 {
			t.Errorf("%d reads in 5 seconds", n)
		}
		of.fail(nil)
		time.Sleep(2 * time.Second)
		if got := admitted(known, 99); got != "unknown" {
			t.Errorf("once it was read: %s", got)
		}
	})
}

// A list that does not fit refuses nothing, until everything may have changed.
func TestTheListThatDoesNotFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := &keysOf{groups: map[string][]uint64{"1": {1, 2}}}
		known := newKnown(t, of, 3)
		known.Want()
		time.Sleep(time.Second)
		of.add("2", 3, 4)
		known.Announce("2")
		time.Sleep(time.Second)
		for mark := range uint64(6) {
			if got := admitted(known, mark); got != "read" {
				t.Errorf("%d: %s", mark, got)
			}
		}
		of.mu.Lock()
		delete(of.groups, "2")
		of.mu.Unlock()
		known.Announce("2")
		time.Sleep(time.Second)
		if got := admitted(known, 9); got != "read" {
			t.Error(got)
		}
		known.Announce("")
		time.Sleep(time.Second)
		if got := admitted(known, 9); got != "unknown" {
			t.Error(got)
		}
	})
}

// The list finds every mark after any number of imports, and no other.
func TestTheListOfManyKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := &keysOf{groups: map[string][]uint64{}}
		known := newKnown(t, of, 0)
		known.Want()
		time.Sleep(time.Second)
		for i := range uint64(40) {
			marks := make([]uint64, 5000)
			for j := range marks {
				marks[j] = (uint64(j)*40 + i) * 2654435761 << 1
			}
			of.add(fmt.Sprint(i), marks...)
			known.Announce(fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		for j := range uint64(200_000) {
			if mark := j * 2654435761 << 1; admitted(known, mark) != "read" || admitted(known, mark+1) != "unknown" {
				t.Fatalf("mark %d of key %d", mark, j)
			}
		}
	})
}
