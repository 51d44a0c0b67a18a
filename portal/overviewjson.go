package portal

import (
	"time"

	"github.com/keyporter/keyporter/usage"
)

// overviewJSON is the page for programs. Parts that could not be read are null.
type overviewJSON struct {
	Success   bool          `json:"success"`
	User      string        `json:"user"`
	Account   string        `json:"account"`
	Plan      string        `json:"plan"`
	Pool      string        `json:"pool"` // the kind of pool: user or account
	APIAccess bool          `json:"api_access"`
	Key       *keyJSON      `json:"key"`
	OldKeys   *oldKeysJSON  `json:"old_keys"` // revoked keys that are still being sent
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

type oldKeysJSON struct {
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

func (p *page) overviewJSON(o *overview) overviewJSON {
	body := overviewJSON{
		Success: true, User: o.principal.User, Account: o.principal.Account, Plan: o.principal.Plan, Pool: o.principal.Pool.String(),
		APIAccess: o.principal.APIAccess && o.principal.AccountActive, Next: o.next,
	}
	if o.key != nil {
		body.Key = &keyJSON{ID: o.key.ID, CreatedAt: o.key.CreatedAt, CanBeShown: p.canBeShown(o.key)}
		if o.keyUsage != nil {
			body.Key.LastUsedAt, body.Key.LastHour, body.Key.LastDay = moment(o.keyUsage.Last), &o.keyUsage.LastHour, &o.keyUsage.LastDay
		}
	}
	if o.oldKeys != nil {
		body.OldKeys = &oldKeysJSON{Count: o.oldKeys.All, LastAt: moment(o.oldKeys.Last), Address: o.oldKeys.Address, Agent: o.oldKeys.Agent}
	}
	body.setLimits(o.rate, o.credits)
	if o.days != nil {
		body.Days = []dayJSON{}
	}
	for _, d := range o.days {
		body.Days = append(body.Days, dayJSON{d.Date.Format(time.DateOnly), d.Used, d.Refunded})
	}
	if o.requestsKnown {
		body.Requests = []requestJSON{}
	}
	for _, r := range o.requests {
		body.Requests = append(body.Requests, requestJSON{r.At, r.Method, r.Path, r.Status, r.Credits, r.Refunded})
	}
	return body
}

// setLimits sets the figures of credits and rate limit, if they are known.
func (body *overviewJSON) setLimits(r usage.Rate, c usage.Credits) {
	if c.Counted {
		body.Credits = &creditsJSON{c.Used, c.Limit, usage.Unlimited, resetsAt(c)}
		if c.Limited() {
			body.Credits.Remaining = usage.Limit(c.Remaining())
		}
	}
	if r.Window > 0 {
		body.RateLimit = &rateJSON{Limit: r.Limit, Window: int64(r.Window / time.Second), Reset: int64((r.Reset + time.Second - 1) / time.Second)}
		if r.Limited() {
			body.RateLimit.Remaining, body.RateLimit.Used = &r.Remaining, r.Used
		}
	}
}
