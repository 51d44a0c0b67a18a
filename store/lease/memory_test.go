package lease

import (
	"runtime"
	"sync"
	"testing"
)

// Of epochs that are heard of at once, the highest one stays: the lag that is told never shrinks by
// that.
func TestHintsAtOnceLeaveTheHighest(t *testing.T) {
	for range 200 {
		l := New(Config{})
		var hinting sync.WaitGroup
		begin := make(chan struct{})
		for epoch := range Epoch(16) {
			hinting.Go(func() { <-begin; l.Hint(epoch) })
		}
		close(begin)
		if hinting.Wait(); l.newest.Load() != 15 {
			t.Fatalf("the newest epoch is %d, want 15", l.newest.Load())
		}
	}
}

// An answer that is kept, and never asked for again, does not keep in memory what was known when it was
// read: each flush leaves two thirds of a megabyte behind.
func TestAnAnswerKeepsNoOldViewInMemory(t *testing.T) {
	l := New(Config{})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc >> 20
	}
	before := heap()
	var kept []Stamp
	for range 200 {
		kept = append(kept, l.Read().Stamp(Origin{Epoch: 1, User: "ada"}))
		l.forget(causeEverything)
	}
	if grown := heap() - min(heap(), before); grown > 30 {
		t.Errorf("%d answers keep %d MiB", len(kept), grown)
	}
	runtime.KeepAlive(kept)
}
