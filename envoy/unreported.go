package envoy

import (
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/authz"
)

// unreported tracks how long charges have been made without an access log. It is called for every
// Check and every entry, and mostly only reads.
type unreported struct {
	began  time.Time
	since  atomic.Int64 // first charge after the last entry with one, in ns after began; 0: none
	others atomic.Bool  // entries have arrived since then, but named none
}

// charged records a charge that an access log should report. An Envoy gives each request an ID; a
// Check without one comes from a drill, and nobody reports it.
func (u *unreported) charged(r *authz.Request, d *authz.Decision) {
	if d.Charge.Receipt == "" || r.ID == "" || d.Rule != nil && d.Rule.Refund.Never {
		return
	}
	if u.since.Load() == 0 {
		u.others.Store(false)
		u.since.CompareAndSwap(0, max(1, int64(time.Since(u.began))))
	}
}

// reported records an entry.
func (u *unreported) reported(namesCharge bool) {
	switch {
	case namesCharge && u.since.Load() != 0:
		u.since.Store(0)
	case !namesCharge && !u.others.Load():
		u.others.Store(true)
	}
}

// lasting returns how long an entry has been awaited, 0 if none is, and whether entries that name
// no charge have arrived meanwhile.
func (u *unreported) lasting() (time.Duration, bool) {
	since := u.since.Load()
	if since == 0 {
		return 0, false
	}
	return time.Since(u.began) - time.Duration(since), u.others.Load()
}
