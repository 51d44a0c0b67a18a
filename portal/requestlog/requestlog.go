// Package requestlog collects what the users' page shows of requests: the recent ones, and how often each
// key was used from where. It takes them from Envoy's access log and saves them once a second. Whoever adds
// never waits: what does not fit into its memory, and what cannot be saved in time, is dropped and counted.
package requestlog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
)

// What a [Config] that leaves them out gets.
const (
	DefaultInterval  = time.Second
	DefaultTimeout   = 5 * time.Second
	DefaultRetention = 24 * time.Hour
)

// The bounds of what waits to be saved, half of it for requests that were charged: only these are
// known to be ours, as their receipts were signed, and nobody who makes up others takes their room.
// Records are the first to be dropped: a count stands for many. Then a request counts without its
// source, and at last not at all. A user has a share of each half, so that one user's flood leaves
// room for others: whoever has an ended key can send any agent, and costs nobody a credit.
const (
	maxRecords     = 1000
	maxUserRecords = 50
	maxSources     = 2500
	maxUserSources = 100
	maxCounts      = 2 * maxSources // those without a source included
	maxUserCounts  = 2 * maxUserSources
)

// What is told of a request's time is a caller's word.
const (
	// maxAhead is how far Envoy's clock may be before ours.
	maxAhead = 5 * time.Minute
	// maxLate is how long before now a request counts as of its own time. One that has begun
	// earlier, such as a long answer, counts as of then, so that nobody fills all slots of the
	// retention.
	maxLate = time.Hour
)

// Source says what is counted together.
type Source struct {
	User, KeyID    string
	Ended          bool   // the key had ended, and was refused
	Slot           int64  // of time, see slotLength
	Address, Agent string // both empty: others
}

// slotLength is the time of which requests are counted together.
const slotLength = 10 * time.Minute

// Count is how often, and when last.
type Count struct {
	Requests int64
	Last     time.Time
}

// Batch is what is saved at once. The records may be only some of what is counted.
type Batch struct {
	Records []authz.Record
	Counts  map[Source]Count
}

// Config says where requests are saved. Only Save is required.
type Config struct {
	// Save keeps a batch, and must respect its context. One call is made at a time.
	Save      func(context.Context, Batch) error
	Interval  time.Duration // between two calls; 0: DefaultInterval
	Timeout   time.Duration // of a call; 0: DefaultTimeout
	Retention time.Duration // a request that is older is refused; 0: DefaultRetention
	Log       *slog.Logger  // nil: slog.Default()
	Metrics   prometheus.Registerer
}

// Log collects requests. It is safe for concurrent use.
type Log struct {
	config                                   Config
	saved, counted, dropped, refused, failed prometheus.Counter

	mu    sync.Mutex
	batch Batch           // guarded by mu
	parts map[owner]share // whose → their part of the batch; guarded by mu
}

// owner is whose a share is: a user's, or everybody's, where there is none. What was charged has
// its own.
type owner struct {
	user    string
	charged bool
}

// share is how much of a batch is somebody's.
type share struct{ records, counts int }

// The results of a record, in metrics.
const (
	resultSaved   = "saved"
	resultCounted = "counted" // it is saved as one that counts, and not listed
	resultDropped = "dropped" // it does not even count
	resultRefused = "refused" // it names a time that it cannot have
	resultFailed  = "failed"  // the batch that it was in could not be saved
)

// New returns a Log that has yet to [Log.Run].
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
		Help: "Requests that Envoy's access log told for the users' page, by what became of them.",
	}, []string{"result"})
	if c.Metrics != nil {
		c.Metrics.MustRegister(results)
	}
	l := &Log{
		config: c, saved: results.WithLabelValues(resultSaved), counted: results.WithLabelValues(resultCounted),
		dropped: results.WithLabelValues(resultDropped), refused: results.WithLabelValues(resultRefused), failed: results.WithLabelValues(resultFailed),
	}
	l.take()
	return l
}

// Add notes a request. It never waits for what is saved.
func (l *Log) Add(r authz.Record) {
	now := time.Now()
	if r.At.After(now.Add(maxAhead)) || r.At.Before(now.Add(-l.config.Retention)) {
		l.refused.Inc()
		return
	}
	if r.At.After(now) {
		r.At = now
	}
	at := r.At // as of which it counts
	if late := now.Add(-maxLate); at.Before(late) {
		at = late
	}
	l.mu.Lock()
	defer l.mu.Unlock()
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

// take returns what waits, and begins anew.
func (l *Log) take() Batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.batch
	l.batch, l.parts = Batch{Counts: map[Source]Count{}}, map[owner]share{}
	return batch
}

// Run saves what was added until ctx ends, and then what is left.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(l.config.Interval)
	defer tick.Stop()
	failing := false
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			over = true
		}
		batch := l.take()
		if len(batch.Counts) == 0 {
			continue
		}
		err := l.save(context.WithoutCancel(ctx), batch) // what is begun is finished
		if failing != (err != nil) {
			failing = err != nil
			l.changed(err)
		}
	}
}

// changed tells that saving begins to fail, or works again.
func (l *Log) changed(err error) {
	if err != nil {
		l.config.Log.Warn("the requests for the users' page cannot be saved, and are dropped", "error", err)
		return
	}
	l.config.Log.Info("the requests for the users' page are saved again")
}

func (l *Log) save(ctx context.Context, batch Batch) error {
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
