package main

import (
	"context"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"
)

// The warnings and errors of one text that are logged: some at once, and then one a second.
// Whatever a caller, or a database that is away, makes happen on every request, the log grows by no
// more.
const (
	linesAtOnce  = 20
	linesASecond = 1
	// Texts are constants of ours. Those beyond this many share one limit.
	maxTexts = 500
)

// calmHandler leaves out warnings and errors that are repeated too often, and says with the next
// one how many.
type calmHandler struct {
	slog.Handler
	texts *logTexts // shared with the handlers made of this one
}

// logTexts knows how often each text was logged of late.
type logTexts struct {
	mu     sync.Mutex
	limits map[string]*logLimit // text → its limit; guarded by mu
}

type logLimit struct {
	limiter    *rate.Limiter
	suppressed int
}

func newCalmHandler(h slog.Handler) slog.Handler {
	return &calmHandler{h, &logTexts{limits: map[string]*logLimit{}}}
}

// Handle implements [slog.Handler].
func (h *calmHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn || limited(&r) {
		return h.Handler.Handle(ctx, r)
	}
	suppressed, ok := h.texts.allow(&r)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int(suppressedKey, suppressed))
	}
	return h.Handler.Handle(ctx, r)
}

// suppressedKey is under what a line says how many others were left out.
const suppressedKey = "suppressed"

// limited reports whether whoever logs a record has a limit of its own, such as one for each cause
// of a text, and says itself what it has left out.
func limited(r *slog.Record) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == suppressedKey
		return !found
	})
	return found
}

// allow reports whether to log a record, and how many of its text were not since the last that was.
func (t *logTexts) allow(r *slog.Record) (suppressed int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := r.Message
	limit := t.limits[text]
	if limit == nil && len(t.limits) >= maxTexts {
		text = ""
		limit = t.limits[text]
	}
	if limit == nil {
		limit = &logLimit{limiter: rate.NewLimiter(linesASecond, linesAtOnce)}
		t.limits[text] = limit
	}
	if !limit.limiter.AllowN(r.Time, 1) {
		limit.suppressed++
		return 0, false
	}
	suppressed, limit.suppressed = limit.suppressed, 0
	return suppressed, true
}

// WithAttrs implements [slog.Handler].
func (h *calmHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &calmHandler{h.Handler.WithAttrs(attrs), h.texts}
}

// WithGroup implements [slog.Handler].
func (h *calmHandler) WithGroup(name string) slog.Handler {
	return &calmHandler{h.Handler.WithGroup(name), h.texts}
}
