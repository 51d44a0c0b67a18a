package service_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/service"
	"github.com/keyporter/keyporter/jwt"
	"github.com/keyporter/keyporter/nowait"
)

// A refused token is counted once, although its request is first tried without waiting.
func TestARefusedTokenIsCountedOnce(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	c := config.Config{JWT: jwt.Config{Keys: path, Issuer: "https://login.example.com/", Audience: "api"}}
	tokens, err := service.NewTokens(c, slog.New(slog.DiscardHandler), registry)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	var sessions authz.Sessions
	tokens.Accept(&sessions, func(context.Context, string) (authz.Principal, error) { return authz.Principal{}, authz.ErrUnknown })
	identify := func(ctx context.Context) (authz.Reason, error) {
		_, reason, err := sessions.Identify(ctx, nil, []string{"Bearer a.b.c"})
		return reason, err
	}
	count := func() (n float64) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
		return n
	}
	if reason, err := identify(nowait.Context(t.Context())); reason != authz.Undecided || !errors.Is(err, nowait.ErrWouldWait) || count() != 0 {
		t.Errorf("tried: %v, %v, and %v are counted", reason, err, count())
	}
	if reason, err := identify(nowait.Repetition(t.Context())); reason != authz.BadSession || err != nil || count() != 1 {
		t.Errorf("repeated: %v, %v, and %v are counted", reason, err, count())
	}
}
