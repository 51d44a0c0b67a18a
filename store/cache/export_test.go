package cache

import (
	"context"
	"time"
)

// Wake returns what a caller gets who waited for a read that was sent at that time and has given v,
// when the caller is woken only now.
func Wake[V any](c *Cache[V], sent time.Time, v V, err error) (V, error) {
	f := &flight[V]{sent: sent, done: make(chan struct{}), value: v, err: err, negative: err != nil && c.config.Negative(err)}
	close(f.done)
	v, _, err = c.wait(context.Background(), f, shared)
	return v, err
}
