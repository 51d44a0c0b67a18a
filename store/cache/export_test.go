package cache

import "github.com/keyporter/keyporter/store/lease"

// Landed returns the result of a caller that waited for a read with the given answer and wakes up
// only now, and whether the caller may use it.
func Landed[K comparable, V any](c *Cache[K, V], r lease.Reading, found Found[V], err error) (V, error, bool) {
	return c.landed(&flight[V]{found: found, err: err, answer: true, stamp: r.Stamp(found.Origin)})
}
