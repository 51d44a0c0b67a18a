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
	DefaultInterval = time.Second
	DefaultTimeout  = 5 * time.Second
)

// The bounds of what waits to be saved. Records are the first to be dropped: a count stands for many. Then a
// request counts without its source, and at last not at all. A user has a share, so that one user's flood
// leaves room for others: whoever has an ended key can send any agent, and costs nobody a credit.
const (
	maxRecords     = 2000
	maxUserRecords = 50
	maxSources     = 5000
	maxUserSources = 100
	maxCounts      = 2 * maxSources // those without a source included
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
	Save     func(context.Context, Batch) error
	Interval time.Duration // between two calls; 0: DefaultInterval
	Timeout  time.Duration // of a call; 0: DefaultTimeout
	Log      *slog.Logger  // nil: slog.Default()
	Metrics  prometheus.Registerer
}

// Log collects requests. It is safe for concurrent use.
type Log struct {
	config                          Config
	saved, counted, dropped, failed prometheus.Counter

	mu    sync.Mutex
	batch Batch            // guarded by mu
	users map[string]share // user → their part of the batch; guarded by mu
}

// share is how much of a batch is a user's.
type share struct{ records, sources int }

// The results of a record, in metrics.
const (
	resultSaved   = "saved"
	resultCounted = "counted" // it is saved as one that counts, and not listed
	resultDropped = "dropped" // it does not even count
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
		dropped: results.WithLabelValues(resultDropped), failed: results.WithLabelValues(resultFailed),
	}
	l.take()
	return l
}

// Add notes a request. It never waits for what is saved.
func (l *Log) Add(r authz.Record) {
	source := Source{r.User, r.KeyID, r.Reason == authz.RevokedKey.String(), r.At.UnixMilli() / slotLength.Milliseconds(), r.Address, r.Agent}
	l.mu.Lock()
	defer l.mu.Unlock()
	mine := l.users[r.User]
	count, known := l.batch.Counts[source]
	if !known && (mine.sources >= maxUserSources || len(l.batch.Counts) >= maxSources) {
		source.Address, source.Agent = "", ""
		count, known = l.batch.Counts[source]
	}
	if !known && len(l.batch.Counts) >= maxCounts {
		l.dropped.Inc()
		return
	}
	if !known {
		mine.sources++
	}
	count.Requests++
	if r.At.After(count.Last) {
		count.Last = r.At
	}
	l.batch.Counts[source] = count
	if len(l.batch.Records) < maxRecords && mine.records < maxUserRecords {
		mine.records++
		l.batch.Records = append(l.batch.Records, r)
	}
	l.users[r.User] = mine
}

// take returns what waits, and begins anew.
func (l *Log) take() Batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.batch
	l.batch, l.users = Batch{Counts: map[Source]Count{}}, map[string]share{}
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
