package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/keyporter/keyporter/bench/load"
	"github.com/keyporter/keyporter/internal/parts"
)

// row is one line of the table: one kind of answer of one server, on one way to it.
type row struct {
	way       string // direct or through Envoy
	server    string
	answer    string
	yardstick bool // the other rows of the same way are compared with it

	authorizer *server         // nil if Envoy asks no authorizer
	envoy      *server         // nil if direct
	database   *parts.Postgres // nil if the database is embedded
	// dial connects a load that keeps the server busy, or, with alone, one with one request at a
	// time.
	dial func(ctx context.Context, alone bool) (asker, error)

	// first runs once, before the first round; nil: nothing to do.
	first func(ctx context.Context) error

	samples []sample // one per round
}

func (r *row) name() string { return r.way + ", " + r.server + ", " + r.answer }

// asker is a load.Checks or a load.Requests.
type asker interface {
	Ask(ctx context.Context, duration time.Duration) (load.Result, error)
	Close() error
}

// sample is the result of one round for one row. Times are in microseconds.
type sample struct {
	perSecond   float64
	cpu         float64 // of the authorizer, per answer
	envoyCPU    float64 // of Envoy, per answer
	databaseCPU float64 // of PostgreSQL, per answer
	clientCPU   float64 // of the load itself, per answer
	mallocs     float64 // of the authorizer, per answer
	p50, p99    float64 // under load
	p999        float64
	aloneP50    float64 // one request at a time
	aloneP99    float64
	otherCPU    float64 // share of the machine that other programs used
}

// measureAll measures all rows in turn, round after round, so that a temporary disturbance affects
// all of them. Every other round runs in reverse order, so that no row always follows the same one.
func measureAll(ctx context.Context, rows []*row, p plan, progress func(string, ...any)) error {
	order := slices.Clone(rows)
	for round := range p.rounds {
		progress("round %d of %d", round+1, p.rounds)
		for _, r := range order {
			s, err := r.measure(ctx, p)
			if err != nil {
				return fmt.Errorf("measuring %s: %w", r.name(), err)
			}
			progress("  %-45s %7.0f/s %6.1f µs of CPU", r.name(), s.perSecond, s.cpu)
			r.samples = append(r.samples, s)
		}
		slices.Reverse(order)
	}
	return nil
}

func (r *row) measure(ctx context.Context, p plan) (sample, error) {
	if r.first != nil && len(r.samples) == 0 {
		if err := r.first(ctx); err != nil {
			return sample{}, err
		}
	}
	var s sample
	err := r.with(ctx, true, func(a asker) error {
		if _, err := a.Ask(ctx, p.warm/4); err != nil {
			return err
		}
		result, err := a.Ask(ctx, p.alone)
		s.aloneP50, s.aloneP99 = micros(result.Quantile(0.5)), micros(result.Quantile(0.99))
		return err
	})
	if err != nil {
		return sample{}, err
	}
	err = r.with(ctx, false, func(a asker) error {
		if _, err := a.Ask(ctx, p.warm); err != nil {
			return err
		}
		return r.underLoad(ctx, a, p.load, &s)
	})
	return s, err
}

// with connects a load, passes it to do and disconnects it.
func (r *row) with(ctx context.Context, alone bool, do func(asker) error) error {
	a, err := r.dial(ctx, alone)
	if err != nil {
		return err
	}
	return errors.Join(do(a), a.Close())
}

var errNoAnswers = errors.New("there was no answer in all the time")

func (r *row) underLoad(ctx context.Context, a asker, duration time.Duration, s *sample) error {
	before, err := r.usage(ctx)
	if err != nil {
		return err
	}
	result, err := a.Ask(ctx, duration)
	if err != nil {
		return err
	}
	after, err := r.usage(ctx)
	if err != nil {
		return err
	}
	answers := float64(len(result.Latencies))
	if answers == 0 {
		return errNoAnswers
	}
	s.perSecond = result.PerSecond()
	s.p50, s.p99, s.p999 = micros(result.Quantile(0.5)), micros(result.Quantile(0.99)), micros(result.Quantile(0.999))
	s.cpu = micros(after.authorizer-before.authorizer) / answers
	s.envoyCPU = micros(after.envoy-before.envoy) / answers
	s.databaseCPU = micros(after.database-before.database) / answers
	s.clientCPU = micros(after.client-before.client) / answers
	s.mallocs = (after.mallocs - before.mallocs) / answers
	s.otherCPU = after.othersSince(before)
	return nil
}

// resources are what was used since the start of the programs.
type resources struct {
	authorizer, envoy, database, client time.Duration // CPU time

	busy     time.Duration // CPU time of the whole machine
	possible time.Duration // busy if the machine had never been idle
	mallocs  float64
}

// othersSince returns the share of the machine that other programs have used.
func (u resources) othersSince(before resources) float64 {
	ours := u.authorizer + u.envoy + u.database + u.client - before.authorizer - before.envoy - before.database - before.client
	return max(0, float64(u.busy-before.busy-ours)/float64(max(1, u.possible-before.possible)))
}

func (r *row) usage(ctx context.Context) (u resources, err error) {
	if r.authorizer != nil {
		if u.mallocs, err = r.authorizer.mallocs(ctx); err != nil {
			return resources{}, err
		}
		if u.authorizer, err = cpuTime(r.authorizer.pid); err != nil {
			return resources{}, err
		}
	}
	if r.envoy != nil {
		if u.envoy, err = cpuTime(r.envoy.pid); err != nil {
			return resources{}, err
		}
	}
	if r.database != nil {
		if u.database, err = familyTime(r.database.PID()); err != nil {
			return resources{}, err
		}
	}
	if u.client, err = cpuTime(os.Getpid()); err != nil {
		return resources{}, err
	}
	u.busy, u.possible, err = machineTime()
	return u, err
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// median returns the median of one figure over all rounds, and its spread.
func (r *row) median(figure func(sample) float64) (middle, spread float64) {
	var values []float64
	for _, s := range r.samples {
		values = append(values, figure(s))
	}
	return median(values)
}

// median returns the median and the spread: the distance of the most distant value, as a fraction
// of the median.
func median(values []float64) (middle, spread float64) {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	if n == 0 {
		return 0, 0
	}
	middle = (values[(n-1)/2] + values[n/2]) / 2
	if middle == 0 {
		return 0, 0
	}
	return middle, max(middle-values[0], values[n-1]-middle) / middle
}
