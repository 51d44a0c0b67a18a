package operations

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/outbox"
)

// Events are the events that webhooks are told of.
type Events struct{ in *outbox.Outbox }

// Events returns the operations on events.
func (o Operator) Events() Events { return Events{outbox.New(o.db)} }

// EventFilter selects events. The zero EventFilter selects all.
type EventFilter struct {
	Endpoint string
	State    string // pending, delivered or aside
}

// EventStates returns the states of events.
func EventStates() []string {
	return []string{string(outbox.Pending), string(outbox.Delivered), string(outbox.Aside)}
}

// Check returns a [FieldError] if the filter is invalid.
func (f EventFilter) Check() error {
	if f.State != "" && !slices.Contains(EventStates(), f.State) {
		return FieldError{"state", fmt.Sprintf("want one of %v", EventStates())}
	}
	return nil
}

// Event is an event for one endpoint.
type Event struct {
	ID         string          `json:"id"` // the webhook-id
	Endpoint   string          `json:"endpoint"`
	Type       string          `json:"type"`
	At         time.Time       `json:"at"` // the change
	State      string          `json:"state"`
	Attempts   int64           `json:"attempts"`
	Problem    string          `json:"problem"` // of the last attempt; "" if there was none
	OutOfOrder bool            `json:"out_of_order"`
	Data       json.RawMessage `json:"data"`
}

func newEvent(e outbox.Event) Event {
	return Event{e.ID, e.Endpoint, e.Type, e.At, string(e.State), int64(e.Attempts), e.Problem, e.OutOfOrder, json.RawMessage(e.Data)}
}

// Each lists the selected events, oldest first. A filter that is invalid is the first error.
func (e Events) Each(ctx context.Context, f EventFilter) iter.Seq2[Event, error] {
	if err := f.Check(); err != nil {
		return func(yield func(Event, error) bool) { yield(Event{}, err) }
	}
	return store.Convert(e.in.EachEvent(ctx, f.Endpoint, outbox.State(f.State)), newEvent)
}

// Page lists at most n selected events, oldest first after a cursor.
func (e Events) Page(ctx context.Context, f EventFilter, cursor string, n int) (Page[Event], error) {
	if err := checkPage(n); err != nil {
		return Page[Event]{}, err
	}
	if err := f.Check(); err != nil {
		return Page[Event]{}, err
	}
	rows, next, err := e.in.PageOfEvents(ctx, f.Endpoint, outbox.State(f.State), cursor, n)
	return newPage(store.ConvertPage(rows, next, err, newEvent))
}

// Retried is how many events are sent again.
type Retried struct {
	Events int64 `json:"retried"`
}

// Retry sends an event again, also a delivered one, with the same id.
func (e Events) Retry(ctx context.Context, id string, once feed.IdempotencyKey) (Committed[Retried], error) {
	n, done, err := e.in.RetryEvent(ctx, id, once)
	return committed(Retried{n}, done, err)
}

// RetryEndpoint enables an endpoint, and sends its events again that were put aside or wait after a
// failure.
func (e Events) RetryEndpoint(ctx context.Context, endpoint string, once feed.IdempotencyKey) (Committed[Retried], error) {
	n, done, err := e.in.RetryEndpoint(ctx, endpoint, once)
	return committed(Retried{n}, done, err)
}

// WebhookList is the list of endpoints.
type WebhookList struct {
	Webhooks []Webhook `json:"webhooks"`
}

// Webhook is an endpoint and its state.
type Webhook struct {
	Name       string  `json:"name"`
	State      string  `json:"state"` // enabled; disabled, by 410 Gone; removed from the configuration
	Pending    int64   `json:"pending"`
	Aside      int64   `json:"aside"`
	LagSeconds float64 `json:"lag_seconds"` // age of the oldest pending event
}

// Endpoints lists the endpoints, by name.
func (e Events) Endpoints(ctx context.Context) (WebhookList, error) {
	all, err := e.in.Status(ctx)
	list := WebhookList{Webhooks: make([]Webhook, len(all))}
	for i, s := range all {
		w := Webhook{s.Name, "enabled", s.Pending, s.Aside, s.Lag.Seconds()}
		switch {
		case !s.Known:
			w.State = "removed"
		case s.Disabled:
			w.State = "disabled"
		}
		list.Webhooks[i] = w
	}
	return list, err
}
