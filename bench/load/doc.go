// Package load asks a server as fast as it answers, as cheaply as possible, so that what is measured
// is the server: [Checks] speaks gRPC to an authorizer as Envoy does, [Requests] speaks HTTP/1.1 to
// Envoy. Both verify every answer and end with an error at the first wrong one. They know nothing of
// how the programs at the other end are started, nor of what is done with the figures.
package load

import (
	"context"
	"slices"
	"time"
)

// Result is what one run of load has seen.
type Result struct {
	Elapsed   time.Duration
	Latencies []time.Duration // one for each answer, shortest first
}

// PerSecond returns how many answers came in a second.
func (r Result) PerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(len(r.Latencies)) / r.Elapsed.Seconds()
}

// Quantile returns the shortest latency that at least the fraction q of all answers did not exceed;
// 0 if there were none.
func (r Result) Quantile(q float64) time.Duration { return Quantile(r.Latencies, q) }

// Quantile returns the smallest of the sorted values that at least the fraction q of them do not
// exceed; the zero value if there are none.
func Quantile[V any](sorted []V, q float64) V {
	if len(sorted) == 0 {
		var none V
		return none
	}
	rank := int(q * float64(len(sorted)))
	if float64(rank) < q*float64(len(sorted)) {
		rank++
	}
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// connection is one connection's share of a load. ask opens no more requests once stop has passed,
// returns when all are answered, and appends the latencies to those it was given.
type connection interface {
	ask(stop time.Time, latencies []time.Duration) ([]time.Duration, error)
	SetDeadline(time.Time) error
}

// interrupt ends a read or write that waits, and lets later ones fail.
func interrupt(c interface{ SetDeadline(time.Time) error }) {
	_ = c.SetDeadline(time.Unix(1, 0)) // an error means that the connection has ended
}

// ask lets all connections ask side by side for as long as duration says.
func ask[C connection](ctx context.Context, connections []C, duration time.Duration) (Result, error) {
	type share struct {
		latencies []time.Duration
		err       error
	}
	var (
		start  = time.Now()
		stop   = start.Add(duration)
		shares = make(chan share)
	)
	for _, c := range connections {
		// Before anything can interrupt, or it would undo that.
		if err := c.SetDeadline(stop.Add(patience)); err != nil {
			return Result{}, err
		}
	}
	for _, c := range connections {
		go func() {
			defer context.AfterFunc(ctx, func() { interrupt(c) })()
			latencies, err := c.ask(stop, make([]time.Duration, 0, expected))
			shares <- share{latencies, err}
		}()
	}
	var all Result
	var failed error
	for range connections {
		s := <-shares
		all.Latencies = append(all.Latencies, s.latencies...)
		if s.err != nil && failed == nil {
			failed = s.err
			for _, c := range connections {
				interrupt(c)
			}
		}
	}
	all.Elapsed = time.Since(start)
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	if failed != nil {
		return Result{}, failed
	}
	slices.Sort(all.Latencies)
	return all, nil
}

// patience is how long a server may take to answer at all.
const patience = 10 * time.Second

// expected is how many answers a connection has room for without growing.
const expected = 1 << 16
