package service

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"

	"github.com/keyporter/keyporter/internal/config"
)

// Limits on the logged warnings and errors of one text: a burst first, then one a second. The log
// grows no faster, even if a caller or an unreachable database causes a line on every request.
const (
	linesAtOnce  = 20
	linesASecond = 1
	// Texts are constants of the program. Those beyond this many share one limit.
	maxTexts = 500
)

// calmHandler suppresses warnings and errors that repeat too often, and adds the number of
// suppressed lines to the next one that it logs.
type calmHandler struct {
	slog.Handler
	texts *logTexts // shared with the handlers derived from this one
}

// logTexts has a limit for each text that was logged recently.
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

// suppressedKey is the attribute with the number of suppressed lines.
const suppressedKey = "suppressed"

// limited reports whether the record comes from code that has its own limit, such as one for each
// cause, and counts its suppressed lines itself.
func limited(r *slog.Record) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == suppressedKey
		return !found
	})
	return found
}

// allow reports whether to log the record, and how many records of its text were suppressed since
// the last logged one.
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

// NewLogger returns the service's log in the configured format, from the configured level on. It
// limits what can come with every request.
func NewLogger(c config.Config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	var handler slog.Handler = slog.NewJSONHandler(w, options)
	if c.LogFormat == "text" {
		handler = slog.NewTextHandler(w, options)
	}
	return slog.New(newCalmHandler(handler))
}
