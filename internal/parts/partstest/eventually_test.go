package partstest_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// fatal is a test that records why it failed.
type fatal struct {
	testing.TB
	text string
}

func (f *fatal) Helper() {}

func (f *fatal) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// A test that waits in vain says for what, and what the last check has found.
func TestEventuallySaysWhatDidNotHappen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, began, done := &fatal{}, time.Now(), make(chan struct{})
		go func() {
			defer close(done)
			partstest.EventuallyNil(f, "the lease", func() error { return errors.New("it is held by two") })
		}()
		<-done
		if took := time.Since(began); took < partstest.Patience || took > partstest.Patience+time.Second {
			t.Errorf("it gives up after %v", took)
		}
		if !strings.Contains(f.text, "the lease: it is held by two") {
			t.Errorf("it says %q", f.text)
		}
	})
}

// The returned time is about when the event happened.
func TestEventuallyMeasures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, after := range []time.Duration{0, time.Millisecond, 100 * time.Millisecond, 30 * time.Second} {
			began := time.Now()
			took := partstest.Eventually(t, "some time has passed", func() bool { return time.Since(began) >= after })
			if took < after || took > after+after/10+time.Millisecond {
				t.Errorf("it happened after %v, measured %v", after, took)
			}
		}
	})
}
