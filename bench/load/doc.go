// Package load sends requests to a server as fast as it answers, as cheaply as possible, so that
// the measurement is about the server: [Checks] speaks gRPC to an authorizer like Envoy, [Requests]
// speaks HTTP/1.1 to Envoy. Both verify every answer and end with an error at the first wrong one.
// The package is independent of how the servers are started and how the figures are used.
package load

import (
	"context"
	"slices"
	"time"
)

// Result is the result of one run of load.
type Result struct {
	Elapsed   time.Duration
	Latencies []time.Duration // one per answer, shortest first
}

// PerSecond returns the number of answers per second.
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

// connection is one connection's share of a load. ask sends no more requests once stop has passed,
// returns once all are answered, and appends their latencies to the given ones.
type connection interface {
	ask(stop time.Time, latencies []time.Duration) ([]time.Duration, error)
	SetDeadline(time.Time) error
}

// interrupt ends a waiting read or write, and makes later ones fail.
func interrupt(c interface{ SetDeadline(time.Time) error }) {
	_ = c.SetDeadline(time.Unix(1, 0)) // an error means that the connection has ended
}

// ask makes all connections ask concurrently for the given duration.
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
		// Set this before the interrupts, which it would undo.
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

// patience is the maximum time for any answer.
const patience = 10 * time.Second

// expected is the number of answers for which a connection preallocates.
const expected = 1 << 16
