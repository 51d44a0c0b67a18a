package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"time"
)

// Event is an event for one endpoint.
type Event struct {
	ID         string          `json:"id"` // the webhook-id
	Endpoint   string          `json:"endpoint"`
	Type       string          `json:"type"`
	At         time.Time       `json:"at"`       // the change
	State      string          `json:"state"`    // pending, delivered or aside
	Attempts   int64           `json:"attempts"` // so far
	Problem    string          `json:"problem"`  // of the last attempt; "" if there was none
	OutOfOrder bool            `json:"out_of_order"`
	Data       json.RawMessage `json:"data"` // an object, without secrets
}

// EventFilter selects events. The zero EventFilter selects all.
type EventFilter struct{ Endpoint, State string }

// Events lists events, oldest first.
func (c *Client) Events(ctx context.Context, f EventFilter) iter.Seq2[Event, error] {
	return pages[Event](ctx, c, "/v1/events", filter("endpoint", f.Endpoint, "state", f.State))
}

// Retried is how many events are sent again.
type Retried struct {
	Events int64 `json:"retried"`
}

// RetryEvent sends an event again, also a delivered one, with the same id.
func (c *Client) RetryEvent(ctx context.Context, id string) (Changed[Retried], error) {
	return change[Retried](ctx, c, http.MethodPost, path("/v1/events/", id, "/delivery:retry"), nil)
}

// WebhookList is the list of endpoints.
type WebhookList struct {
	Webhooks []Webhook `json:"webhooks"`
}

// Webhook is an endpoint of events and its state.
type Webhook struct {
	Name       string  `json:"name"`
	State      string  `json:"state"` // enabled; disabled, by 410 Gone; removed from the configuration
	Pending    int64   `json:"pending"`
	Aside      int64   `json:"aside"`
	LagSeconds float64 `json:"lag_seconds"` // age of the oldest pending event
}

// Webhooks lists the endpoints of events, by name.
func (c *Client) Webhooks(ctx context.Context) (WebhookList, error) {
	return read[WebhookList](ctx, c, "/v1/webhooks", nil)
}

// RetryWebhook enables an endpoint, and sends its events again that were put aside or wait after a
// failure.
func (c *Client) RetryWebhook(ctx context.Context, endpoint string) (Changed[Retried], error) {
	return change[Retried](ctx, c, http.MethodPost, path("/v1/webhooks/", endpoint, "/delivery:retry"), nil)
}
