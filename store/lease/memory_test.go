package lease

import (
	"runtime"
	"sync"
	"testing"
)

// Of concurrently announced epochs the highest one stays, so they never lower the reported lag.
func TestHintsAtOnceLeaveTheHighest(t *testing.T) {
	for range 200 {
		l := New(Config{})
		var hinting sync.WaitGroup
		begin := make(chan struct{})
		for epoch := range Epoch(16) {
			hinting.Go(func() { <-begin; l.Notify(epoch) })
		}
		close(begin)
		if hinting.Wait(); l.newest.Load() != 15 {
			t.Fatalf("the newest epoch is %d, want 15", l.newest.Load())
		}
	}
}

// A stored answer that is never looked up again does not keep the view of its read in memory.
// Otherwise each flush would leave two thirds of a megabyte behind.
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
