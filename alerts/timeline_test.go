package alerts_test

import (
	"bufio"
	"context"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// timeline is the state of a Prometheus after its scrapes: the samples of each series, oldest
// first.
type timeline struct {
	parser parser.Parser
	series map[string]*series // text of the labels → series
	last   int64              // time of the last scrape, in ms
	since  int64              // start of the steady state, in ms; 0: not yet reached
}

type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

func newTimeline() *timeline {
	return &timeline{parser: parser.NewParser(parser.Options{}), series: map[string]*series{}}
}

// sample implements [chunks.Sample] for a number.
type sample struct {
	at    int64
	value float64
}

func (s sample) T() int64                      { return s.at }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

var stale = math.Float64frombits(value.StaleNaN)

// scrape reads the metrics of replicas at a moment. The series of an unreachable replica end, as in
// Prometheus.
func (l *timeline) scrape(t *testing.T, at time.Time, instances ...string) {
	t.Helper()
	l.last = at.UnixMilli()
	for _, instance := range instances {
		found := l.read(t, instance)
		up := 1.0
		if found == nil {
			up = 0
		}
		l.add(labels.FromStrings("__name__", "up", "job", "keyporter", "instance", instance), up)
		for text, s := range l.series {
			if _, there := found[text]; !there && s.labels.Get("instance") == instance && s.labels.Get("__name__") != "up" && s.alive() {
				s.samples = append(s.samples, sample{l.last, stale})
			}
		}
	}
}

func (l *timeline) read(t *testing.T, instance string) map[string]bool {
	t.Helper()
	response, err := http.Get("http://" + instance + "/metrics")
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	found := map[string]bool{}
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		name, number, ok := cutLast(lines.Text())
		if !ok || !strings.HasPrefix(name, "keyporter_") {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil {
			t.Fatal(err)
		}
		with := l.labels(t, name, instance)
		l.add(with, n)
		found[with.String()] = true
	}
	return found
}

// labels returns the labels that Prometheus gives a series of a replica.
func (l *timeline) labels(t *testing.T, series, instance string) labels.Labels {
	t.Helper()
	parsed, err := l.parser.ParseMetric(series)
	if err != nil {
		t.Fatal(err)
	}
	return labels.NewBuilder(parsed).Set("job", "keyporter").Set("instance", instance).Labels()
}

// cutLast cuts a line at its last space.
func cutLast(line string) (before, after string, ok bool) {
	if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
		return line[:i], line[i+1:], true
	}
	return "", "", false
}

func (l *timeline) add(with labels.Labels, n float64) {
	s := l.series[with.String()]
	if s == nil {
		s = &series{labels: with}
		l.series[with.String()] = s
	}
	s.samples = append(s.samples, sample{l.last, n})
}

// alive reports whether the last scrape contained the series.
func (s *series) alive() bool { return !value.IsStaleNaN(s.samples[len(s.samples)-1].F()) }

// steady marks the last scrape as the start of the steady state.
func (l *timeline) steady() {
	if l.since == 0 {
		l.since = l.last
	}
}

// watched reports whether the steady state was observed for long enough: for at least a second, in
// which each of these counters of a replica has risen.
func (l *timeline) watched(t *testing.T, instance string, rising []string) bool {
	t.Helper()
	return l.since > 0 && l.last >= l.since+1000 && !slices.ContainsFunc(rising, func(counter string) bool {
		s := l.series[l.labels(t, counter, instance).String()]
		return s == nil || s.slope(l.since) == 0
	})
}

// goesOn continues all series in their steady state: counters keep rising at the same rate.
func (l *timeline) goesOn(d time.Duration) { l.extend(d, true) }

// copy returns an independent copy.
func (l *timeline) copy() *timeline {
	other := newTimeline()
	other.last, other.since = l.last, l.since
	for text, s := range l.series {
		other.series[text] = &series{s.labels, slices.Clone(s.samples)}
	}
	return other
}

// set changes the last sample of every series of a metric.
func (l *timeline) set(t *testing.T, name string, to float64) {
	t.Helper()
	known := false
	for _, s := range l.series {
		if s.labels.Get("__name__") == name {
			s.samples[len(s.samples)-1], known = sample{l.last, to}, true
		}
	}
	if !known {
		t.Fatalf("no replica has %s", name)
	}
}

// rests continues all series without any change.
func (l *timeline) rests(d time.Duration) { l.extend(d, false) }

const leaseLeft = "keyporter_lease_left_seconds"

// step is the time between two computed scrapes, and between two evaluations.
const step = 5 * time.Second

func (l *timeline) extend(d time.Duration, moving bool) {
	from, end := l.last, l.last+d.Milliseconds()
	for _, s := range l.series {
		last := s.samples[len(s.samples)-1]
		slope := 0.0 // per ms
		if name := s.labels.Get("__name__"); moving && (strings.HasSuffix(name, "_total") || name == leaseLeft && !s.positive(l.since)) {
			slope = s.slope(l.since) // the replica keeps renewing a valid lease
		}
		for at := from + step.Milliseconds(); s.alive() && at <= end; at += step.Milliseconds() {
			s.samples = append(s.samples, sample{at, last.F() + slope*float64(at-from)})
		}
	}
	l.last = end
}

// slope returns the mean rise of a series since a moment.
func (s *series) slope(since int64) float64 {
	last := s.samples[len(s.samples)-1]
	i := slices.IndexFunc(s.samples, func(x chunks.Sample) bool { return x.T() >= since && !value.IsStaleNaN(x.F()) })
	if i < 0 || s.samples[i].T() == last.T() {
		return 0
	}
	return (last.F() - s.samples[i].F()) / float64(last.T()-s.samples[i].T())
}

// positive reports whether a series was positive at any time since a moment.
func (s *series) positive(since int64) bool {
	return slices.ContainsFunc(s.samples, func(x chunks.Sample) bool { return x.T() >= since && x.F() > 0 })
}

// fired evaluates an expression every few seconds, and reports whether it was true for one series
// during the given time without a break.
func (l *timeline) fired(t *testing.T, engine *promql.Engine, expr string, during time.Duration) bool {
	t.Helper()
	first := l.last
	for _, s := range l.series {
		first = min(first, s.samples[0].T())
	}
	query, err := engine.NewRangeQuery(t.Context(), l, nil, expr, time.UnixMilli(first), time.UnixMilli(l.last), step)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer query.Close()
	result := query.Exec(t.Context())
	matrix, err := result.Matrix()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	for _, one := range matrix {
		began, before := int64(0), int64(-1)
		for _, p := range one.Floats {
			if p.T != before+step.Milliseconds() {
				began = p.T
			}
			if before = p.T; p.T-began >= during.Milliseconds() {
				return true
			}
		}
	}
	return false
}

// Querier implements [storage.Queryable].
func (l *timeline) Querier(_, _ int64) (storage.Querier, error) { return l, nil }

// Select implements [storage.Querier].
func (l *timeline) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	found := &found{}
	for _, s := range l.series {
		matches := !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) })
		if matches {
			found.series = append(found.series, storage.NewListSeries(s.labels, s.samples))
		}
	}
	slices.SortFunc(found.series, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return found
}

// LabelValues implements [storage.LabelQuerier]. The tests use neither this nor the methods below.
func (l *timeline) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (l *timeline) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (l *timeline) Close() error { return nil }

// found implements [storage.SeriesSet].
type found struct {
	series []storage.Series
	next   int
}

func (f *found) Next() bool                        { f.next++; return f.next <= len(f.series) }
func (f *found) At() storage.Series                { return f.series[f.next-1] }
func (f *found) Err() error                        { return nil }
func (f *found) Warnings() annotations.Annotations { return nil }
