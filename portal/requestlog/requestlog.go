// Package requestlog collects data about requests for the users' page: the recent requests, and how
// often each key was used from each source. It reads Envoy's access log and saves batches once a
// second. Adding never waits: records that exceed the memory bounds, or cannot be saved in time,
// are dropped and counted.
package requestlog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// The defaults of a [Config].
const (
	DefaultInterval  = time.Second
	DefaultTimeout   = 5 * time.Second
	DefaultRetention = 24 * time.Hour
)

// These bounds limit the unsaved batch. Charged and uncharged requests each have their own: only
// charged requests are known to be genuine, because their receipts are signed, and forged ones take
// no room from them. Records are dropped first, because a count stands for many. Then requests
// count without their source, and at last not at all. Each user has a quota of both bounds, so that
// a flood by one user leaves room for others: a client with a revoked key can send any agent at no
// cost.
const (
	maxRecords     = 1000
	maxUserRecords = 50
	maxSources     = 2500
	maxUserSources = 100
	maxCounts      = 2 * maxSources // including those without a source
	maxUserCounts  = 2 * maxUserSources
)

// Callers choose the time of a request.
const (
	// maxAhead is how far Envoy's clock may be ahead of ours.
	maxAhead = 5 * time.Minute
	// maxLate limits the age at which a request counts in its own slot. Older ones, such as those
	// with a long answer, count as if they were this old, so that nobody can fill all slots of the
	// retention.
	maxLate = time.Hour
)

// Source is the key of a count: its requests are counted together.
type Source struct {
	User, KeyID    string
	Ended          bool   // the key was revoked, so the request was rejected
	Slot           int64  // see slotLength
	Address, Agent string // both empty: all other sources
}

// slotLength is the duration of the slots in which requests are counted together.
const slotLength = 10 * time.Minute

// Count is a number of requests and the time of the last one.
type Count struct {
	Requests int64
	Last     time.Time
}

// Batch is the data of one Save. Records may be missing for some of the counted requests.
type Batch struct {
	Records []usage.Record
	Counts  map[Source]Count
}

// Config configures a [Log]. Only Save is required.
type Config struct {
	// Save stores a batch and must respect its context. Calls do not overlap.
	Save func(context.Context, Batch) error
	// SaveOutcomes adds to the counts by outcome, under the same rules: once a minute those of the
	// minute, in slices, and at the end the rest; nil: they are not counted.
	SaveOutcomes func(context.Context, map[Outcome]int64) error

	Interval  time.Duration // between two calls; 0: DefaultInterval
	Timeout   time.Duration // of a call; 0: DefaultTimeout
	Retention time.Duration // older requests are rejected; 0: DefaultRetention
	Log       *slog.Logger  // nil: slog.Default()
	Metrics   prometheus.Registerer
}

// Log collects requests. It is safe for concurrent use.
type Log struct {
	config                                   Config
	saved, counted, dropped, refused, failed prometheus.Counter

	mu    sync.Mutex
	batch Batch              // guarded by mu
	parts map[owner]quotaUse // owner → used part of the quota; guarded by mu
	ends  outcomes           // guarded by mu
}

// owner is the owner of a quota: a user, or all of them if user is empty. Charged requests have a
// quota of their own.
type owner struct {
	user    string
	charged bool
}

// quotaUse is the part of an owner's quota that a batch has used.
type quotaUse struct{ records, counts int }

// The results of a record, in metrics.
const (
	resultSaved   = "saved"
	resultCounted = "counted" // saved as a count only
	resultDropped = "dropped" // neither listed nor counted
	resultRefused = "refused" // has an impossible time
	resultFailed  = "failed"  // its batch could not be saved
)

// New returns a Log. The caller must start [Log.Run].
func New(c Config) *Log {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Retention == 0 {
		c.Retention = DefaultRetention
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	results := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_requestlog_records_total",
		Help: "Requests that Envoy's access log reported for the users' page, by result.",
	}, []string{"result"})
	if c.Metrics != nil {
		c.Metrics.MustRegister(results)
	}
	l := &Log{
		config: c, saved: results.WithLabelValues(resultSaved), counted: results.WithLabelValues(resultCounted),
		dropped: results.WithLabelValues(resultDropped), refused: results.WithLabelValues(resultRefused), failed: results.WithLabelValues(resultFailed),
	}
	l.take(false)
	return l
}

// Add adds a request. It never waits for a Save.
func (l *Log) Add(r usage.Record) {
	now := time.Now()
	if r.At.After(now.Add(maxAhead)) || r.At.Before(now.Add(-l.config.Retention)) {
		l.refused.Inc()
		return
	}
	if r.At.After(now) {
		r.At = now
	}
	at := r.At // the time of its slot
	if late := now.Add(-maxLate); at.Before(late) {
		at = late
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.config.SaveOutcomes != nil {
		l.ends.add(r, at)
	}
	everybody, user := owner{"", r.Credits > 0}, owner{r.User, r.Credits > 0}
	all, mine := l.parts[everybody], l.parts[user]
	source := Source{r.User, r.KeyID, r.Reason == authz.RevokedKey.String(), at.UnixMilli() / slotLength.Milliseconds(), r.Address, r.Agent}
	count, known := l.batch.Counts[source]
	if !known && (mine.counts >= maxUserSources || all.counts >= maxSources) {
		source.Address, source.Agent = "", ""
		count, known = l.batch.Counts[source]
	}
	if !known && (mine.counts >= maxUserCounts || all.counts >= maxCounts) {
		l.dropped.Inc()
		return
	}
	if !known {
		all.counts++
		mine.counts++
	}
	count.Requests++
	if at.After(count.Last) {
		count.Last = at
	}
	l.batch.Counts[source] = count
	if all.records < maxRecords && mine.records < maxUserRecords {
		all.records++
		mine.records++
		l.batch.Records = append(l.batch.Records, r)
	}
	l.parts[everybody], l.parts[user] = all, mine
}

// take returns the unsaved batch and starts a new one. It returns the outcomes if they are due.
func (l *Log) take(over bool) (Batch, map[Outcome]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.batch
	l.batch, l.parts = Batch{Counts: map[Source]Count{}}, map[owner]quotaUse{}
	return batch, l.ends.take(time.Now(), over)
}

// Run saves batches until ctx ends, and then the rest.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(l.config.Interval)
	defer tick.Stop()
	records := saving{log: l.config.Log, fails: "the requests for the users' page cannot be saved, and are dropped", works: "the requests for the users' page are saved again"}
	counts := saving{log: l.config.Log, fails: "the counts of requests by outcome cannot be saved, and are dropped", works: "the counts of requests by outcome are saved again"}
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			over = true
		}
		batch, ends := l.take(over)
		saving := context.WithoutCancel(ctx) // a save that has begun runs to its end
		if len(batch.Counts) > 0 {
			records.note(l.saveBatch(saving, batch))
		}
		if len(ends) > 0 {
			counts.note(l.saveOutcomes(saving, ends))
		}
	}
}

// saving logs that saving starts to fail, or works again.
type saving struct {
	log          *slog.Logger
	fails, works string
	failing      bool
}

func (s *saving) note(err error) {
	if s.failing == (err != nil) {
		return
	}
	if s.failing = err != nil; s.failing {
		s.log.Warn(s.fails, "error", err)
		return
	}
	s.log.Info(s.works)
}

func (l *Log) saveOutcomes(ctx context.Context, ends map[Outcome]int64) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.Timeout)
	defer cancel()
	return l.config.SaveOutcomes(ctx, ends)
}

func (l *Log) saveBatch(ctx context.Context, batch Batch) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.Timeout)
	defer cancel()
	err := l.config.Save(ctx, batch)
	all := int64(0)
	for _, count := range batch.Counts {
		all += count.Requests
	}
	if err != nil {
		l.failed.Add(float64(all))
		return err
	}
	l.saved.Add(float64(len(batch.Records)))
	l.counted.Add(float64(all - int64(len(batch.Records))))
	return nil
}
