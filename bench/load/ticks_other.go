//go:build !linux

package load

import (
	"errors"
	"time"
)

// ticks requires Linux, as does the bench.
type ticks struct{}

func newTicks(_, _ time.Duration) (*ticks, error) {
	return nil, errors.New("a load with a rate needs Linux")
}

func (*ticks) wait() (int, error) { return 0, errors.ErrUnsupported }

func (*ticks) Close() error { return nil }
