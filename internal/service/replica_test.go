package service

import (
	"testing"
	"testing/synctest"
)

// An announcement that credits are wanted back reaches the credits, also one from before they run,
// and a burst of them blocks nobody: the last of a burst is followed by a recall.
func TestARecallIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, recalled := newRecalls(), 0
		r.announce()
		go r.passTo(t.Context(), func() { recalled++ })
		for want := 1; want <= 3; want++ {
			synctest.Wait()
			if recalled != want {
				t.Errorf("%d recalls, want %d", recalled, want)
			}
			r.announce()
		}
		synctest.Wait()
		before := recalled
		busy := make(chan struct{})
		go func() {
			for range 100 {
				r.announce()
			}
			close(busy)
		}()
		<-busy
		synctest.Wait()
		if recalled == before {
			t.Error("a burst was not passed on")
		}
	})
}
