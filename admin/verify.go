package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/usage"
)

// keyVerify asks what a key is.
type keyVerify struct {
	Key    string  `json:"key" form:"any" doc:"the key, as the client sent it"`
	Rule   *string `json:"rule" length:"128" doc:"the name of a rule of kind api_key, for its cost; without it a request costs 1 credit"`
	Charge *bool   `json:"charge" doc:"count this like a request; needs the scope charge"`
	// Request is no Idempotency-Key, since it is remembered for moments only.
	Request *string `json:"request" length:"128" doc:"names the client's request: while a repeated Check would be charged once, so is a repeated call with the same request, key and rule"`
}

// Verified is the answer to a client with the key.
type Verified struct {
	Valid   bool       `json:"valid"`
	Status  int        `json:"status"`
	Code    string     `json:"code"`    // of the answer; "ok" if valid
	Reason  *string    `json:"reason"`  // only with the scope read
	KeyID   *string    `json:"key_id"`  // null unless the key is live, or with the scope read
	User    *string    `json:"user"`    // likewise
	Account *string    `json:"account"` // likewise
	Plan    *string    `json:"plan"`    // likewise
	Rate    *rateState `json:"rate_limit"`
	Credits *credits   `json:"credits"` // null if unknown
	Charge  *charged   `json:"charge"`  // null if nothing was charged
}

type rateState struct {
	Limit     usage.Limit `json:"limit"`
	Remaining usage.Limit `json:"remaining"`
	ResetMS   int64       `json:"reset_ms"` // until the oldest request makes room
}

type credits struct {
	Used      int64       `json:"used"`
	Limit     usage.Limit `json:"limit"`
	Remaining usage.Limit `json:"remaining"`
}

type charged struct {
	ID      string `json:"id"` // for the settle port
	Credits int64  `json:"credits"`
}

// verifyTime bounds a verification. It is longer than a Check may take, since no Envoy waits for
// it.
const verifyTime = 2 * time.Second

// verifyKey answers from the memory of this replica, under its lease, as a Check does.
func verifyKey(ctx context.Context, c *call, in keyVerify) (v Verified, err error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	q := authz.KeyQuestion{Key: in.Key, Rule: text(in.Rule), Charge: in.Charge != nil && *in.Charge, CallerTimeout: callTime}
	if q.Charge && !c.caller.May(bearer.Charge) {
		return v, lacks(bearer.Charge)
	}
	if in.Request != nil {
		parts := fmt.Sprintf("%q %q %q %q", c.actor(), q.Key, q.Rule, *in.Request)
		sum := sha256.Sum256([]byte(parts))
		q.Request = hex.EncodeToString(sum[:16])
	}
	d, err := c.config.Authorize(ctx, q)
	if err != nil {
		return v, problem{code: unavailable, retry: time.Second, cause: err, detail: "This replica cannot decide now: ask again."}
	}
	if d.Reason == authz.UnknownRule {
		return v, problem{code: invalidField, field: "rule", detail: "rule: there is no rule of kind api_key with this name."}
	}
	rate, counted := d.Charge.Rate, d.Charge.Credits
	if d.Allowed() && !q.Charge {
		if rate, counted, err = c.config.Usage(ctx, &d.Principal); err != nil {
			return v, problem{code: unavailable, retry: time.Second, cause: err, detail: "This replica cannot decide now: ask again."}
		}
		d.Reason = wouldBe(rate, counted, max(1, d.Rule.Cost))
	}
	v = newVerified(&d, c.caller.May(bearer.Read))
	v.Rate, v.Credits = rateOf(rate), creditsOf(counted)
	if q.Charge && d.Allowed() {
		v.Charge = &charged{d.Charge.ID, max(1, d.Rule.Cost)}
	}
	return v, nil
}

// wouldBe returns the reason of a request that was made now.
func wouldBe(rate usage.Rate, credits usage.Credits, cost int64) authz.Reason {
	switch {
	case rate.Limited() && rate.Remaining < 1:
		return authz.RateLimited
	case credits.Limited() && credits.Remaining() < cost:
		return authz.CreditsExhausted
	}
	return authz.Allowed
}

// newVerified returns the answer without the figures. It tells an unknown, a revoked and a
// malformed key apart only if all may be seen.
func newVerified(d *authz.Decision, all bool) Verified {
	outcome := d.Outcome()
	v := Verified{Valid: d.Allowed(), Status: outcome.Status, Code: outcome.Code}
	if v.Valid {
		v.Code = "ok"
	}
	if all {
		v.Reason = new(d.Reason.String())
	}
	if all || outcome.Status != http.StatusUnauthorized {
		p := d.Principal
		v.KeyID, v.User, v.Account, v.Plan = orNull(p.KeyID), orNull(p.User), orNull(p.Account), orNull(p.Plan)
	}
	return v
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func rateOf(r usage.Rate) *rateState {
	switch {
	case r.Window == 0:
		return nil
	case r.Limit == usage.Unlimited:
		return &rateState{Limit: usage.Unlimited, Remaining: usage.Unlimited}
	}
	return &rateState{r.Limit, usage.Limit(r.Remaining), r.Reset.Milliseconds()}
}

func creditsOf(c usage.Credits) *credits {
	switch {
	case !c.Counted:
		return nil
	case c.Limit == usage.Unlimited:
		return &credits{c.Used, usage.Unlimited, usage.Unlimited}
	}
	return &credits{c.Used, c.Limit, usage.Limit(c.Remaining())}
}
