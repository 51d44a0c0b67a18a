package partstest

import (
	"errors"
	"testing"
	"time"
)

// Patience is how long a test waits for something that takes a moment. It is generous, because it
// only ends runs that hang, also on a busy machine.
const Patience = 90 * time.Second

// Eventually waits until ok returns true, and returns how long that took, within 5 %. It ends the
// test after [Patience]; what says what did not happen. It is for events in other processes and
// goroutines that give no sign.
func Eventually(t testing.TB, what string, ok func() bool) time.Duration {
	t.Helper()
	return EventuallyNil(t, what, func() error {
		if ok() {
			return nil
		}
		return errNotYet
	})
}

var errNotYet = errors.New("not yet")

// EventuallyNil is [Eventually] for a check that says what is missing. The last error is shown.
func EventuallyNil(t testing.TB, what string, check func() error) time.Duration {
	t.Helper()
	for began := time.Now(); ; {
		err := check()
		took := time.Since(began)
		switch {
		case err == nil:
			return took.Round(time.Millisecond)
		case took > Patience:
			t.Fatalf("not within %v: %s: %v", Patience, what, err)
		}
		time.Sleep(min(max(took/20, time.Millisecond), 50*time.Millisecond))
	}
}
