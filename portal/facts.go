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

// mostGathering limits the views of the page that are gathered at once, for all users together:
// they must not occupy the database connections that more important work needs.
const mostGathering = 4

// factsTimeout bounds the reading of the optional parts.
const factsTimeout = 3 * time.Second

// facts is the content of the page, for people and programs. Parts that could not be read are nil.
type facts struct {
	who      authz.Principal
	key      *Key
	usage    *Usage // of the live key
	tries    *Usage // of revoked keys, since the live key was made
	meters   *Meters
	days     []Day
	requests []Request
	next     string // the cursor of older requests
	known    bool   // the requests could be read
}

// gather reads the content of the page. The key is required; failing optional parts are left out.
func (p *page) gather(v *visit) (*facts, error) {
	who := v.login.Principal
	f := &facts{who: who}
	key, found, err := p.config.LiveKey(v.request.Context(), who.User)
	if err != nil {
		return nil, err
	}
	if found {
		f.key = &key
	}
	ctx, cancel := context.WithTimeout(v.request.Context(), factsTimeout)
	defer cancel()
	for _, slots := range []chan struct{}{v.share.gathering, p.gathering} {
		if err := enter(ctx, slots); err != nil {
			return nil, err
		}
		defer func() { <-slots }()
	}
	wrong := p.readParts(ctx, v, f)
	f.clean()
	return f, wrong
}

// readParts reads all optional parts concurrently and leaves out those that fail. The error reports
// a bad parameter of the request.
func (p *page) readParts(ctx context.Context, v *visit, f *facts) (wrong error) {
	var wait sync.WaitGroup
	part := func(name string, read func() error) {
		wait.Go(func() {
			p.recovered(name, v, func() answer { // logs a panic and leaves the part out
				if err := read(); err != nil && v.request.Context().Err() == nil {
					p.log.Warn("a part of the page is left out", "part", name, "user", f.who.User, "error", err)
				}
				return answer{}
			})
		})
	}
	if f.key != nil {
		part("key usage", func() error { return into(&f.usage)(p.config.KeyUsage(ctx, f.who.User, f.key.ID)) })
		part("ended keys", func() error { return into(&f.tries)(p.config.DeadKeys(ctx, f.who.User, f.key.CreatedAt)) })
	}
	part("meters", func() error { return into(&f.meters)(p.config.Meters(ctx, f.who)) })
	part("days", func() error {
		days, err := p.config.Days(ctx, f.who.User)
		if err == nil {
			f.days = days
		}
		return err
	})
	part("requests", func() error {
		requests, next, err := p.config.Requests(ctx, f.who.User, v.request.URL.Query().Get("before"), requestsOnPage)
		if f.known = err == nil; f.known {
			f.requests, f.next = requests, next
		}
		if errors.Is(err, ErrCursor) {
			wrong, err = err, nil
		}
		return err
	})
	wait.Wait()
	return wrong
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
func (f *facts) clean() {
	for _, u := range []*Usage{f.usage, f.tries} {
		if u != nil {
			u.clean()
		}
	}
	for i := range f.requests {
		f.requests[i].clean()
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

// overviewJSON is the page for programs. Parts that could not be read are null.
type overviewJSON struct {
	Success   bool          `json:"success"`
	User      string        `json:"user"`
	Account   string        `json:"account"`
	Plan      string        `json:"plan"`
	Pool      string        `json:"pool"` // the kind of pool: user or account
	APIAccess bool          `json:"api_access"`
	Key       *keyJSON      `json:"key"`
	OldKeys   *triesJSON    `json:"old_keys"` // revoked keys that are still being sent
	Credits   *creditsJSON  `json:"credits"`
	RateLimit *rateJSON     `json:"rate_limit"`
	Days      []dayJSON     `json:"days"`
	Requests  []requestJSON `json:"requests"`
	Next      string        `json:"next,omitempty"` // the ?before= of older requests
}

type keyJSON struct {
	ID         string     `json:"id"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	CanBeShown bool       `json:"can_be_shown"`
	LastHour   *int64     `json:"requests_last_hour"`
	LastDay    *int64     `json:"requests_last_day"`
}

type triesJSON struct {
	Count   int64      `json:"count"`
	LastAt  *time.Time `json:"last_at"`
	Address string     `json:"address"`
	Agent   string     `json:"user_agent"`
}

type creditsJSON struct {
	Used      int64       `json:"used"`
	Limit     usage.Limit `json:"limit"`
	Remaining usage.Limit `json:"remaining"`
	ResetsAt  time.Time   `json:"resets_at"`
}

type rateJSON struct {
	Limit     usage.Limit `json:"limit"`
	Window    int64       `json:"window_seconds"`
	Used      int64       `json:"used"`
	Remaining *int64      `json:"remaining"` // null if there is no limit
	Reset     int64       `json:"reset_seconds"`
}

type dayJSON struct {
	Date     string `json:"date"`
	Used     int64  `json:"used"`
	Refunded int64  `json:"refunded"`
}

type requestJSON struct {
	At       time.Time `json:"at"`
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Status   int       `json:"status"`
	Credits  int64     `json:"credits"`
	Refunded bool      `json:"refunded"`
}

func (p *page) overviewJSON(f *facts) overviewJSON {
	o := overviewJSON{
		Success: true, User: f.who.User, Account: f.who.Account, Plan: f.who.Plan, Pool: f.who.Pool.String(),
		APIAccess: f.who.APIAccess && f.who.AccountActive, Next: f.next,
	}
	if f.key != nil {
		o.Key = &keyJSON{ID: f.key.ID, CreatedAt: f.key.CreatedAt, CanBeShown: p.canBeShown(f.key)}
		if f.usage != nil {
			o.Key.LastUsedAt, o.Key.LastHour, o.Key.LastDay = moment(f.usage.Last), &f.usage.LastHour, &f.usage.LastDay
		}
	}
	if f.tries != nil {
		o.OldKeys = &triesJSON{Count: f.tries.All, LastAt: moment(f.tries.Last), Address: f.tries.Address, Agent: f.tries.Agent}
	}
	if f.meters != nil {
		o.meters(f.meters)
	}
	if f.days != nil {
		o.Days = []dayJSON{}
	}
	for _, d := range f.days {
		o.Days = append(o.Days, dayJSON{d.Date.Format(time.DateOnly), d.Used, d.Refunded})
	}
	if f.known {
		o.Requests = []requestJSON{}
	}
	for _, r := range f.requests {
		o.Requests = append(o.Requests, requestJSON(r))
	}
	return o
}

func (o *overviewJSON) meters(m *Meters) {
	if c := m.Credits; c.Counted {
		o.Credits = &creditsJSON{c.Used, c.Limit, usage.Unlimited, resetsAt(c)}
		if c.Limited() {
			o.Credits.Remaining = usage.Limit(c.Remaining())
		}
	}
	if r := m.Rate; r.Window > 0 {
		o.RateLimit = &rateJSON{Limit: r.Limit, Window: int64(r.Window / time.Second), Reset: int64((r.Reset + time.Second - 1) / time.Second)}
		if r.Limited() {
			o.RateLimit.Remaining, o.RateLimit.Used = &r.Remaining, r.Used
		}
	}
}

// resetsAt returns the first moment of the next month. It is midnight in UTC, despite small
// differences between clocks.
func resetsAt(c usage.Credits) time.Time {
	if c.Reset <= 0 {
		return usage.MonthOf(time.Now()).End()
	}
	return time.Now().UTC().Add(c.Reset).Round(24 * time.Hour)
}

// moment returns t in UTC, or nil for the zero time.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
