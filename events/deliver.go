// Package events delivers the events of the outbox to webhooks, as Standard Webhooks describes it.
// Of all replicas one delivers at a time, under a lease. Each endpoint has a worker of its own, so
// that a slow one delays no other. It makes no events: triggers in the database do.
package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/store/outbox"
)

// Endpoint is a webhook.
type Endpoint struct {
	Name    string
	URL     string // may itself be a secret, and is never logged or stored
	Types   []string
	Secrets []Secret // one, or two while they are rotated; each signs
}

// Outbox holds the events and the lease of delivery. Calls may be concurrent. An outcome is recorded
// only under the current fence; else the error is [outbox.ErrFenced].
type Outbox interface {
	Acquire(ctx context.Context, holder string, life time.Duration) (fence int64, held bool, err error)
	Release(ctx context.Context, fence int64) error
	SetEndpoints(ctx context.Context, fence int64, endpoints []outbox.Endpoint) error
	Ready(ctx context.Context, endpoint string, n int) ([]outbox.Event, error)
	Record(ctx context.Context, fence int64, outcomes []outbox.Outcome) error
	Status(ctx context.Context) ([]outbox.Status, error)
	AddRevokedUses(ctx context.Context, fence int64) error
}

const (
	// life is how long the lease of delivery holds without a renewal.
	life = 30 * time.Second
	// lifeMargin is how much earlier the replica itself stops.
	lifeMargin = 3 * time.Second
	renewEvery = 5 * time.Second
	// pollEvery is how often an idle worker looks for events.
	pollEvery = time.Second
	// statusEvery is how often the figures of metrics are read.
	statusEvery = 15 * time.Second
	// firstLook is when the deliverer first looks for uses of revoked keys.
	firstLook = time.Minute
	// width is the number of events of one endpoint that are sent at once.
	width = 16
	// recordTime bounds recording outcomes, also while the replica stops.
	recordTime = 10 * time.Second
)

// Deliverer delivers events. It is safe for concurrent use.
type Deliverer struct {
	outbox   Outbox
	holder   string
	client   *http.Client
	log      *slog.Logger
	metrics  *metrics
	patience time.Duration // attemptTime; shorter in tests

	changed chan struct{} // holds a token after a change of the endpoints
	mu      sync.Mutex
	wanted  []Endpoint // guarded by mu
}

// Config is what a Deliverer needs.
type Config struct {
	Outbox Outbox
	Holder string         // the name of this process, unique among all
	Allow  []netip.Prefix // addresses that may be dialled although they are private
	Log    *slog.Logger
	// Metrics registers keyporter_events_*. None if nil.
	Metrics Registerer
}

// New returns a Deliverer without endpoints.
func New(c Config) (*Deliverer, error) {
	d := &Deliverer{outbox: c.Outbox, holder: c.Holder, client: newClient(c.Allow), log: c.Log, patience: attemptTime, changed: make(chan struct{}, 1)}
	var err error
	d.metrics, err = newMetrics(c.Metrics)
	return d, err
}

// Set replaces the endpoints. Attempts under way end first.
func (d *Deliverer) Set(endpoints []Endpoint) {
	for _, e := range endpoints {
		d.metrics.expect(e.Name)
	}
	d.mu.Lock()
	d.wanted = endpoints
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

func (d *Deliverer) endpoints() []Endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wanted
}

// Run delivers until ctx ends. Without endpoints it only waits for some.
func (d *Deliverer) Run(ctx context.Context) {
	defer d.client.CloseIdleConnections()
	var calm calm
	for held := false; ctx.Err() == nil; {
		if len(d.endpoints()) == 0 && !held { // a replica that had some unsubscribes them first
			d.rest(ctx, -1)
			continue
		}
		began := time.Now()
		fence, got, err := d.outbox.Acquire(ctx, d.holder, life)
		if calm.note(err == nil) && ctx.Err() == nil {
			d.log.Warn("events cannot be delivered until the database answers", "error", err)
		}
		if held = got && err == nil; held {
			held = d.term(ctx, newTenure(fence, began.Add(life-lifeMargin)))
			continue
		}
		d.rest(ctx, renewEvery)
	}
}

// rest waits for a change of the endpoints, or for a pause, unless that is negative.
func (d *Deliverer) rest(ctx context.Context, pause time.Duration) {
	var over <-chan time.Time
	if pause >= 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
	case <-d.changed:
	case <-ctx.Done():
	}
}

// tenure is the time in which this replica delivers.
type tenure struct {
	fence int64
	ends  atomic.Pointer[time.Time] // by the clock of this process
}

func newTenure(fence int64, ends time.Time) *tenure {
	t := &tenure{fence: fence}
	t.ends.Store(&ends)
	return t
}

func (t *tenure) left() time.Duration { return time.Until(*t.ends.Load()) }

// term delivers with the current endpoints until they change, the lease is lost or ctx ends. It
// reports whether the endpoints changed and the lease is still held.
func (d *Deliverer) term(ctx context.Context, t *tenure) (held bool) {
	select { // those that it begins with are no change
	case <-d.changed:
	default:
	}
	endpoints := d.endpoints()
	if err := d.outbox.SetEndpoints(ctx, t.fence, described(endpoints)); err != nil {
		if ctx.Err() == nil && !errors.Is(err, outbox.ErrFenced) {
			d.log.Warn("events cannot be delivered until the database answers", "error", err)
		}
		d.rest(ctx, renewEvery)
		return false
	}
	// The end of working lets attempts under way finish; that of sending ends them.
	sending, cut := context.WithCancel(ctx)
	working, stop := context.WithCancel(sending)
	var workers sync.WaitGroup
	for _, e := range endpoints {
		workers.Go(func() { d.work(working, sending, t, e) })
	}
	workers.Go(func() { d.watch(working) })
	workers.Go(func() { d.look(working, t) })
	held = len(endpoints) > 0 && d.keep(ctx, t, cut)
	stop()
	workers.Wait()
	cut()
	d.metrics.forget()
	if !held {
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
		defer cancel()
		_ = d.outbox.Release(release, t.fence) // else it expires
	}
	return held
}

// described returns the endpoints as the outbox knows them: without URL and secrets.
func described(endpoints []Endpoint) []outbox.Endpoint {
	all := make([]outbox.Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		sum := sha256.Sum256([]byte(e.URL))
		all = append(all, outbox.Endpoint{Name: e.Name, Target: hex.EncodeToString(sum[:8]), Types: e.Types})
	}
	return all
}

// keep renews the lease until the endpoints change. If it is lost, attempts under way are cut.
func (d *Deliverer) keep(ctx context.Context, t *tenure, cut func()) (held bool) {
	for {
		again := time.NewTimer(renewEvery)
		select {
		case <-ctx.Done():
			again.Stop()
			return false
		case <-d.changed:
			again.Stop()
			return true
		case <-again.C:
		}
		began := time.Now()
		limited, cancel := context.WithTimeout(ctx, max(t.left(), 0))
		fence, got, err := d.outbox.Acquire(limited, d.holder, life)
		cancel()
		switch {
		case err == nil && got && fence == t.fence:
			ends := began.Add(life - lifeMargin)
			t.ends.Store(&ends)
		case err == nil || t.left() <= 0:
			d.log.Warn("another replica delivers events, or may: this one stops", "error", err)
			cut()
			return false
		}
	}
}

// work delivers the events of one endpoint.
func (d *Deliverer) work(working, sending context.Context, t *tenure, e Endpoint) {
	var calm, database calm
	for working.Err() == nil {
		events, err := d.outbox.Ready(working, e.Name, width)
		if database.note(err == nil) && working.Err() == nil {
			d.log.Warn("events cannot be delivered until the database answers", "error", err)
		}
		if err != nil || len(events) == 0 {
			pause(working, pollEvery)
			continue
		}
		outcomes := d.sendAll(sending, t, e, events)
		if len(outcomes) == 0 {
			pause(working, pollEvery) // the lease is about to end
			continue
		}
		d.tell(e, outcomes, &calm)
		recording, cancel := context.WithTimeout(context.WithoutCancel(sending), recordTime)
		err = d.outbox.Record(recording, t.fence, outcomes)
		cancel()
		if err != nil {
			d.log.Warn("what became of events could not be recorded: they are delivered again, with the same webhook-id", "endpoint", e.Name, "count", len(outcomes), "error", err)
			pause(working, pollEvery)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// sendAll sends events at once. It leaves out those that ended with the lease or the process, since
// that is no fault of the receiver.
func (d *Deliverer) sendAll(ctx context.Context, t *tenure, e Endpoint, events []outbox.Event) []outbox.Outcome {
	patience := min(d.patience, t.left())
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	outcomes := make([]outbox.Outcome, len(events))
	var all sync.WaitGroup
	for i, event := range events {
		all.Go(func() { outcomes[i] = attempt(limited, d.client, e, event) })
	}
	all.Wait()
	kept := outcomes[:0]
	for _, out := range outcomes {
		if out.State == outbox.Delivered || ctx.Err() == nil && patience == d.patience {
			kept = append(kept, out)
		}
	}
	return kept
}

// tell counts outcomes, and logs what an operator has to know.
func (d *Deliverer) tell(e Endpoint, outcomes []outbox.Outcome, calm *calm) {
	var delivered bool
	var problem, gone string
	for _, out := range outcomes {
		d.metrics.count(e.Name, out)
		delivered = delivered || out.State == outbox.Delivered
		if out.Problem != "" {
			problem = out.Problem
		}
		if out.Gone {
			gone = out.Event.ID
		}
		if out.State == outbox.Aside {
			d.log.Error("an event was put aside after a day of attempts", "endpoint", e.Name, "event", out.Event.ID, "type", out.Event.Type, "problem", out.Problem)
		}
	}
	if gone != "" {
		d.log.Error("an endpoint of webhooks answered 410 Gone and is disabled: its events wait", "endpoint", e.Name, "event", gone)
	}
	if was := calm.failing; calm.note(delivered) {
		d.log.Warn("an endpoint of webhooks does not take events: they are sent again", "endpoint", e.Name, "problem", problem)
	} else if was && delivered {
		d.log.Info("an endpoint of webhooks takes events again", "endpoint", e.Name)
	}
}

// watch reads the figures of metrics.
func (d *Deliverer) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if all, err := d.outbox.Status(ctx); err == nil {
			d.metrics.set(all)
		}
		pause(ctx, statusEvery)
	}
}

// look adds the events that no trigger can make. It begins late, so that replicas that follow one
// another quickly do not look each time.
func (d *Deliverer) look(ctx context.Context, t *tenure) {
	for pause(ctx, firstLook); ctx.Err() == nil; pause(ctx, outbox.RevokedUsesEvery) {
		if err := d.outbox.AddRevokedUses(ctx, t.fence); err != nil && ctx.Err() == nil {
			d.log.Warn("uses of revoked keys could not be looked for: it is tried again in an hour", "error", err)
		}
	}
}

// calm reports the first of several failures in a row.
type calm struct{ failing bool }

func (c *calm) note(ok bool) (first bool) {
	first = !ok && !c.failing
	c.failing = !ok
	return first
}
