package nowait_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keyporter/keyporter/nowait"
)

// A call may wait unless its context says otherwise, also where another context lies around that.
func TestContexts(t *testing.T) {
	within := func(ctx context.Context) context.Context {
		ctx, cancel := context.WithTimeout(ctx, time.Hour)
		t.Cleanup(cancel)
		return ctx
	}
	for _, row := range []struct {
		name           string
		ctx            context.Context
		wait, repeated bool
	}{
		{"any context", t.Context(), true, false},
		{"one of calls that may not wait", nowait.Context(t.Context()), false, false},
		{"the same within another", within(nowait.Context(t.Context())), false, false},
		{"one of a repetition", nowait.Repetition(t.Context()), true, true},
		{"a repetition of a call that might not wait", nowait.Repetition(nowait.Context(t.Context())), true, true},
	} {
		if err := nowait.Err(row.ctx); errors.Is(err, nowait.ErrWouldWait) == row.wait {
			t.Errorf("%s: %v", row.name, err)
		}
		if got := nowait.Repeated(row.ctx); got != row.repeated {
			t.Errorf("%s: repeated is %v", row.name, got)
		}
	}
}
