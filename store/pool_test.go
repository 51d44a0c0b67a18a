package store_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/store"
)

// An abandoned attempt that takes long to end does not delay another one.
func TestWhatIsGivenUpKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts atomic.Int32
		connect, end := store.PoolOf(func(context.Context) error {
			if attempts.Add(1) == 1 {
				time.Sleep(time.Minute) // even if it is not needed
			}
			return nil
		})
		defer end()
		if err := connect(t.Context()); err != nil { // with the second attempt
			t.Fatal(err)
		}
		began := time.Now()
		if err := connect(t.Context()); err != nil || time.Since(began) > 0 {
			t.Errorf("another connection came after %v, %v", time.Since(began), err)
		}
	})
}

// A connection whose attempt was given up at its very end is closed, so no caller gets it.
func TestAConnectionThatEndsWithItsAttemptIsNotOpen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if open, err := store.EndDuring(l.Addr().String()); open || err != nil {
		t.Errorf("open: %v, %v", open, err)
	}
}
