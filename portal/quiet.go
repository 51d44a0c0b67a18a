package portal

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// How many lines of one message are logged in a time. Users cause most of them, and none of them may fill the
// operator's disk; what they change is in the audit, line by line.
const (
	linesPerTime = 10
	lineTime     = time.Minute
)

// quiet is a [slog.Handler] that leaves out lines of a message that comes very often, and says how many. The
// messages are constants.
type quiet struct {
	slog.Handler
	lines *lines
}

type lines struct {
	mu       sync.Mutex
	messages map[string]*burst // text → how often it came; guarded by mu
}

type burst struct {
	since           time.Time
	logged, leftOut int
}

func newQuiet(h slog.Handler) quiet { return quiet{h, &lines{messages: map[string]*burst{}}} }

// Handle implements [slog.Handler].
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	leftOut, ok := q.lines.take(r.Message, time.Now())
	if !ok {
		return nil
	}
	if leftOut > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("lines_left_out", leftOut))
	}
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{q.Handler.WithAttrs(attrs), q.lines}
}

// WithGroup implements [slog.Handler].
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name), q.lines} }

// take reports whether a line may be logged, and how many were left out before it.
func (l *lines) take(text string, now time.Time) (leftOut int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.messages[text]
	if m == nil {
		m = &burst{}
		l.messages[text] = m
	}
	if now.Sub(m.since) >= lineTime {
		leftOut = m.leftOut
		*m = burst{since: now}
	}
	if m.logged >= linesPerTime {
		m.leftOut++
		return 0, false
	}
	m.logged++
	return leftOut, true
}
