package envoy

import (
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/authz"
)

// untold knows since when charges are made of which no access log tells. It is asked about every
// Check and entry, and mostly only reads.
type untold struct {
	began  time.Time
	since  atomic.Int64 // of the first charge after the last entry that named one, in ns after began; 0: there is none
	others atomic.Bool  // entries have come since then, but named none
}

// charged takes note of a charge that an access log should tell of. An Envoy gives each request an
// ID; who asks without one is a drill, and nobody will tell of it.
func (u *untold) charged(r *authz.Request, d *authz.Decision) {
	if d.Charge.Receipt == "" || r.ID == "" || d.Rule != nil && d.Rule.Refund.Never {
		return
	}
	if u.since.Load() == 0 {
		u.others.Store(false)
		u.since.CompareAndSwap(0, max(1, int64(time.Since(u.began))))
	}
}

// told takes note of an entry.
func (u *untold) told(namesCharge bool) {
	switch {
	case namesCharge && u.since.Load() != 0:
		u.since.Store(0)
	case !namesCharge && !u.others.Load():
		u.others.Store(true)
	}
}

// Untold returns for how long charges have been made without an access log that has told of one; 0
// where the last entry named one, or none is awaited. The second result says whether entries have
// come, but named none.
func (s *Server) Untold() (time.Duration, bool) {
	since := s.untold.since.Load()
	if since == 0 {
		return 0, false
	}
	return time.Since(s.untold.began) - time.Duration(since), s.untold.others.Load()
}
