package store

import (
	"context"
	"sync"
	"time"

	"github.com/lib/pq"
)

// Listener is told the announcements of a PostgreSQL database.
type Listener struct {
	// Silence is how long the server may send nothing before the connection is given up.
	Silence  time.Duration
	Ready    func()               // it listens; called once, on a goroutine of its own
	OnNotice func(payload string) // an announcement
	Missed   func()               // announcements may be missing: the connection was lost for a while
}

// Listen listens to the announcements on a channel until ctx ends. Announcements only speed things
// up: they are lost while the connection is down, and a PgBouncer in transaction mode loses all of
// them.
func (db *DB) Listen(ctx context.Context, channel string, l Listener) {
	period := l.Silence / 2
	listener := pq.NewDialListener(&dialer{ctx: ctx, silence: l.Silence, resolve: db.server.resolve}, db.server.dsn,
		min(period, time.Second), min(4*period, 5*time.Second), db.connections.listen)
	var all sync.WaitGroup
	defer all.Wait()
	defer func() {
		listener.Close()
		db.connections.listen(pq.ListenerEventDisconnected, nil)
		go func() { // until its goroutine ends, perhaps after a pause between two attempts
			for range listener.Notify {
			}
		}()
	}()
	all.Go(func() { ping(ctx, listener, period) })
	all.Go(func() {
		if err := listener.Listen(channel); err == nil {
			l.Ready()
		}
	})
	for {
		select {
		case n, ok := <-listener.Notify:
			switch {
			case !ok:
				return
			case n == nil: // reconnected, after an unknown time
				l.Missed()
			default:
				l.OnNotice(n.Extra)
			}
		case <-ctx.Done():
			return
		}
	}
}

// ping sends on the listener's connection in every period, so that a connection without replies is
// given up after two.
func ping(ctx context.Context, listener *pq.Listener, period time.Duration) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = listener.Ping() // the listener reconnects by itself
		case <-ctx.Done():
			return
		}
	}
}
