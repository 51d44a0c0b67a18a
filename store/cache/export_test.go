package cache

import "github.com/keyporter/keyporter/store/lease"

// Landed returns what a caller gets who waited for a read that has found that, when the caller is woken
// only now, and whether it may use it.
func Landed[K comparable, V any](c *Cache[K, V], r lease.Reading, found Found[V], err error) (V, error, bool) {
	return c.landed(&flight[V]{found: found, err: err, answer: true, stamp: r.Stamp(found.Origin)})
}
