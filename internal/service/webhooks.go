package service

import (
	"context"
	"log/slog"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/events"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/outbox"
)

// webhooks delivers events, and reads the endpoints and their secrets again when the files change.
type webhooks struct {
	deliverer *events.Deliverer
	read      func() ([]events.Endpoint, error)
	current   []events.Endpoint
	log       *slog.Logger
}

// webhooksInterval is how often the files of webhooks are read. A change is applied once two reads
// in a row agree, so that no half-written file is applied.
const webhooksInterval = 2 * time.Second

// newWebhooks returns nil if there is no file of webhooks.
func newWebhooks(ctx context.Context, c config.Config, db *store.DB, log *slog.Logger, metrics prometheus.Registerer) (*webhooks, error) {
	if c.WebhooksFile == "" {
		return nil, nil
	}
	all, err := config.UnlessEnded(ctx, c.Webhooks)
	if err != nil {
		return nil, err
	}
	deliverer, err := events.New(events.Config{Outbox: outbox.New(db), Holder: store.NewID("deliverer_"), Allow: c.WebhookAllow, Log: log, Metrics: metrics})
	if err != nil {
		return nil, err
	}
	deliverer.Set(all)
	return &webhooks{deliverer: deliverer, read: c.Webhooks, current: all, log: log}, nil
}

// run delivers until ctx ends.
func (w *webhooks) run(ctx context.Context) {
	if w != nil {
		w.deliverer.Run(ctx)
	}
}

// follow reads the files again until ctx ends.
func (w *webhooks) follow(ctx context.Context) {
	if w == nil {
		return
	}
	ticker := time.NewTicker(webhooksInterval)
	defer ticker.Stop()
	last, refused := w.current, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		fresh, err := config.UnlessEnded(ctx, w.read)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != refused:
			refused = err.Error()
			w.log.Error("the webhooks were read again and refused: the previous ones stay", "error", err)
		case err == nil && reflect.DeepEqual(fresh, last) && !reflect.DeepEqual(fresh, w.current):
			w.current, refused = fresh, ""
			w.deliverer.Set(fresh)
			w.log.Info("the webhooks were read again", "endpoints", len(fresh))
		}
		if err == nil {
			last = fresh
		}
	}
}
