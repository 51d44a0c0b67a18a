package portal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// requestsOnPage is the number of requests per page.
const requestsOnPage = 20

// maxGathering limits the views of the page that are gathered at once, for all users together:
// they must not occupy the database connections that more important work needs.
const maxGathering = 4

// partsTimeout bounds the reading of the optional parts.
const partsTimeout = 3 * time.Second

// overview is the content of the page, for people and programs. Parts that could not be read are
// nil or zero.
type overview struct {
	principal     authz.Principal
	key           *Key
	keyUsage      *usage.KeyUsage // of the live key
	oldKeys       *usage.KeyUsage // usage of revoked keys, since the live key was made
	rate          usage.Rate
	credits       usage.Credits
	days          []usage.Day
	requests      []usage.Record
	next          string // the cursor of older requests
	requestsKnown bool   // they could be read
}

// gather reads the content of the page. The key is required; failing optional parts are left out.
func (p *page) gather(r *request) (*overview, error) {
	o := &overview{principal: r.login.Principal}
	key, found, err := p.config.Directory.LiveKey(r.Context(), o.principal.User)
	if err != nil {
		return nil, err
	}
	if found {
		o.key = &key
	}
	ctx, cancel := context.WithTimeout(r.Context(), partsTimeout)
	defer cancel()
	for _, slots := range []chan struct{}{r.quota.gathering, p.gathering} {
		if err := enter(ctx, slots); err != nil {
			return nil, err
		}
		defer func() { <-slots }()
	}
	err = p.readParts(ctx, r, o)
	o.clean()
	return o, err
}

// readParts reads all optional parts concurrently and leaves out those that fail. The error reports
// an unknown cursor in the request.
func (p *page) readParts(ctx context.Context, r *request, o *overview) (cursorErr error) {
	var wait sync.WaitGroup
	part := func(name string, read func() error) {
		wait.Go(func() {
			p.recovered(name, r, func() answer { // logs a panic and leaves the part out
				if err := read(); err != nil && r.Context().Err() == nil {
					p.log.Warn("a part of the page is left out", "part", name, "user", o.principal.User, "error", err)
				}
				return answer{}
			})
		})
	}
	if o.key != nil {
		part("key usage", func() error { return into(&o.keyUsage)(p.config.Meter.KeyUsage(ctx, o.principal.User, o.key.ID)) })
		part("ended keys", func() error {
			return into(&o.oldKeys)(p.config.Meter.EndedKeyUsage(ctx, o.principal.User, o.key.CreatedAt))
		})
	}
	part("meters", func() error {
		rate, credits, err := p.config.Meter.Usage(ctx, o.principal)
		if err == nil {
			o.rate, o.credits = rate, credits
		}
		return err
	})
	part("days", func() error {
		days, err := p.config.Meter.Days(ctx, o.principal.User)
		if err == nil {
			o.days = days
		}
		return err
	})
	part("requests", func() error {
		requests, next, err := p.config.Meter.Requests(ctx, o.principal.User, r.URL.Query().Get("before"), requestsOnPage)
		if o.requestsKnown = err == nil; o.requestsKnown {
			o.requests, o.next = requests, next
		}
		if errors.Is(err, ErrCursor) {
			cursorErr, err = err, nil
		}
		return err
	})
	wait.Wait()
	return cursorErr
}

// enter waits for a slot. The caller must free it.
func enter(ctx context.Context, slots chan<- struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for other views of the page: %w", ctx.Err())
	}
}

// clean makes values chosen by clients, or by a writer of the access log, safe to display.
func (o *overview) clean() {
	for _, u := range []*usage.KeyUsage{o.keyUsage, o.oldKeys} {
		if u != nil {
			cleanKeyUsage(u)
		}
	}
	for i := range o.requests {
		cleanRecord(&o.requests[i])
	}
}

// into returns a function that stores the value if there is no error.
func into[T any](to **T) func(T, error) error {
	return func(value T, err error) error {
		if err == nil {
			*to = &value
		}
		return err
	}
}

// canBeShown reports whether the key can be shown again.
func (p *page) canBeShown(k *Key) bool { return k != nil && k.Sealed != nil && p.config.Unseal != nil }

// resetsAt returns the first moment of the next month. It is midnight in UTC, despite small
// differences between clocks.
func resetsAt(c usage.Credits) time.Time {
	if c.Reset <= 0 {
		return usage.MonthOf(time.Now()).End()
	}
	return time.Now().UTC().Add(c.Reset).Round(24 * time.Hour)
}
