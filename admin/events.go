package admin

import (
	"context"

	"github.com/keyporter/keyporter/internal/operations"
)

type (
	eventsOf struct {
		paged
		Endpoint *string `query:"endpoint" form:"name" doc:"only events for this endpoint"`
		State    *string `query:"state" enum:"pending,delivered,aside" doc:"only events in this state"`
	}
	ofEvent struct {
		Event string `path:"event" form:"name" doc:"the id of the event, its webhook-id"`
		repeatable
	}
	ofEndpoint struct {
		Endpoint string `path:"endpoint" form:"name" doc:"the name of the endpoint"`
		repeatable
	}
)

func listEvents(ctx context.Context, c *call, in eventsOf) (operations.Page[operations.Event], error) {
	cursor, n := in.page()
	return c.by.Events().Page(ctx, operations.EventFilter{Endpoint: text(in.Endpoint), State: text(in.State)}, cursor, n)
}

func retryEvent(ctx context.Context, c *call, in ofEvent) (done operations.Committed[operations.Retried], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.by.Events().Retry(ctx, in.Event, once)
}

func listWebhooks(ctx context.Context, c *call, _ none) (operations.WebhookList, error) {
	return c.by.Events().Endpoints(ctx)
}

func retryWebhook(ctx context.Context, c *call, in ofEndpoint) (done operations.Committed[operations.Retried], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.by.Events().RetryEndpoint(ctx, in.Endpoint, once)
}
