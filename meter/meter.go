// Package meter counts what users use: requests in a rolling window, and credits of a month. A
// [Limiter] keeps the exact log of each user's last requests, in the memory of a single replica or in
// a Valkey that several share.
package meter

import (
	"context"
	"time"

	"github.com/keyporter/keyporter/authz"
)

// Attempt is a request that wants to be counted.
type Attempt struct {
	User   string
	ID     string        // what Envoy calls the request; empty: never taken for another one
	Limit  authz.Limit   // requests in any window
	Window time.Duration // longer than 0
	// Charge names what is charged for the request if it is admitted; it may be empty. It is remembered
	// with the ID, for as long as the Check may come again.
	Charge string
}

// Verdict is the answer to an [Attempt]. The zero Verdict refuses.
type Verdict struct {
	// Admitted says that the request fits, and is counted.
	Admitted bool
	// Duplicate says that it had been counted before: Envoy asks again where it got no answer in time.
	Duplicate bool
	// Charge is that of the first Check, for a duplicate.
	Charge    string
	Remaining int64         // how many more fit right now; 0 where there is no limit
	Reset     time.Duration // until room is made by the oldest request that counts; 0 if none counts
}

// A Limiter counts a request, unless as many as the limit were counted in the window before it. What is
// refused is not counted. It is called from many goroutines. An error means that it could not tell.
type Limiter interface {
	Admit(ctx context.Context, a Attempt) (Verdict, error)
	// Release takes back a request that was admitted and not answered, unless a second Check of it was
	// admitted as well. One without an ID cannot be taken back.
	Release(ctx context.Context, user, id string) error
}

// Config says what a [Meter] counts with. Limiter is required.
type Config struct {
	Limiter Limiter
}

// Meter implements [authz.Meter].
type Meter struct{ config Config }

// New returns a Meter.
func New(c Config) *Meter { return &Meter{config: c} }

// Take implements [authz.Meter].
func (m *Meter) Take(ctx context.Context, u authz.Use) (authz.Charge, authz.Reason, error) {
	p := u.Principal
	v, err := m.config.Limiter.Admit(ctx, Attempt{User: p.User, ID: u.Request, Limit: p.RateLimit, Window: p.RateWindow})
	if err != nil {
		return authz.Charge{}, authz.Undecided, err
	}
	charge := authz.Charge{Rate: authz.Rate{Limit: p.RateLimit, Window: p.RateWindow, Remaining: v.Remaining, Reset: v.Reset}}
	if !v.Admitted {
		return charge, authz.RateLimited, nil
	}
	if !v.Duplicate {
		charge.User, charge.Request = p.User, u.Request
	}
	return charge, authz.Allowed, nil
}

// Void implements [authz.Meter]. What a second Check of the same request has been told stands.
func (m *Meter) Void(c authz.Charge) {
	if c.User != "" {
		m.config.Limiter.Release(context.Background(), c.User, c.Request)
	}
}
