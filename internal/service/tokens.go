package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/jwt"
)

// Tokens verifies the tokens of the provider's web app. Decisions and the page share one, so that
// both use the same keys. It counts rejected tokens.
type Tokens struct {
	verifier *jwt.Verifier
	cookie   string
	refused  *prometheus.CounterVec
	log      *slog.Logger
	logs     map[jwt.Cause]*rate.Sometimes // limits the log per cause
}

// unknownSubject is the cause for a valid token with an unknown subject.
const unknownSubject jwt.Cause = "unknown_subject"

// refusalInterval is the minimum time between two log lines about rejected tokens of one cause:
// anybody can send such tokens.
const refusalInterval = 10 * time.Second

// NewTokens returns nil if tokens are not accepted.
func NewTokens(c config.Config, log *slog.Logger, metrics prometheus.Registerer) (*Tokens, error) {
	if c.JWT.Keys == "" {
		return nil, nil
	}
	c.JWT.Log = log
	verifier, err := jwt.New(c.JWT)
	if err != nil {
		return nil, fmt.Errorf("--jwt-keys: %w", err)
	}
	t := &Tokens{verifier: verifier, cookie: c.JWTCookie, log: log, logs: map[jwt.Cause]*rate.Sometimes{}}
	t.refused = promauto.With(metrics).NewCounterVec(prometheus.CounterOpts{
		Name: "keyporter_tokens_refused_total",
		Help: "Tokens of the web app that were refused, by what is wrong with them.",
	}, []string{"cause"})
	promauto.With(metrics).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyporter_token_keys_age_seconds",
		Help: "How long ago the keys of the web app's tokens were read; since the start if they never were.",
	}, func() float64 { return verifier.KeysAge().Seconds() })
	for _, cause := range append(jwt.Causes(), unknownSubject) {
		t.refused.WithLabelValues(string(cause))
		t.logs[cause] = &rate.Sometimes{First: 1, Interval: refusalInterval}
	}
	return t, nil
}

// run refreshes the keys until ctx ends.
func (t *Tokens) run(ctx context.Context) {
	if t != nil {
		t.verifier.Run(ctx)
	}
}

// Close stops reading keys.
func (t *Tokens) Close() {
	if t != nil {
		t.verifier.Close()
	}
}

// Accept makes sessions accept the tokens; find returns the user of a subject.
func (t *Tokens) Accept(s *authz.Sessions, find func(context.Context, string) (authz.Principal, error)) {
	if t == nil {
		return
	}
	s.TokenCookie, s.Verify = t.cookie, t.verify
	s.FindSubject = func(ctx context.Context, subject string) (authz.Principal, error) {
		p, err := find(ctx, subject)
		if errors.Is(err, authz.ErrUnknown) {
			t.count(unknownSubject, "no user has the subject that it names")
		}
		return p, err
	}
}

func (t *Tokens) verify(ctx context.Context, token string) (authz.WebToken, error) {
	claims, err := t.verifier.Verify(ctx, token)
	if refused := (jwt.RefusedError{}); errors.As(err, &refused) {
		t.count(refused.Cause, refused.Error())
		return authz.WebToken{}, fmt.Errorf("%w: %w", authz.ErrUnknown, err)
	}
	return authz.WebToken{Subject: claims.Subject, IssuedAt: claims.IssuedAt.Add(-jwt.Leeway)}, err
}

func (t *Tokens) count(cause jwt.Cause, why string) {
	t.refused.WithLabelValues(string(cause)).Inc()
	if t.log.Enabled(context.Background(), slog.LevelDebug) {
		t.logs[cause].Do(func() { t.log.Debug("a token of the web app is refused", "cause", cause, "why", why) })
	}
}
