//go:build !linux

package load

import (
	"errors"
	"time"
)

// ticks needs Linux, as the bench does.
type ticks struct{}

func newTicks(_, _ time.Duration) (*ticks, error) {
	return nil, errors.New("a load with a rate needs Linux")
}

func (*ticks) wait() (int, error) { return 0, errors.ErrUnsupported }

func (*ticks) Close() error { return nil }
