// Package meter counts usage: requests in a sliding window, and the credits of a month. A [Limiter]
// keeps the exact sliding log of each user, in the memory of a single replica or in a Valkey that
// several replicas share.
package meter

import (
	"context"
	"crypto/rand"
	"hash/maphash"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// Attempt is a request to be counted.
type Attempt struct {
	User   string
	ID     string        // Envoy's id of the request; empty: never taken for another one
	Limit  usage.Limit   // requests in any window
	Window time.Duration // greater than 0
	// Charge is the request's charge if it is admitted. It is remembered with the ID, for as long
	// as the Check may be repeated.
	Charge Charged

	asked bool // a shared server was asked, and may have admitted a repeated Check of it
}

// Charged is a charge as a [Limiter] remembers it: by its name if the log is shared, by its number,
// which needs less memory, within this process. The zero Charged means that there is no charge, or
// that it is no longer known.
type Charged struct {
	Name   string // for the upstream, as signed
	Number uint64 // in this process
	Month  usage.Month
	// Terms is a hash of everything else that the name says. A repeated Check usually has the terms
	// of the first one, so they need not be remembered. If they differ, for example because the
	// user has moved to another account, the charge is no longer known, and stands.
	Terms uint32
}

// Verdict is the answer to an [Attempt]. The zero Verdict refuses.
type Verdict struct {
	// Admitted says that the request fits, and is counted.
	Admitted bool
	// Duplicate says that the request was counted before: Envoy repeats a Check that got no answer
	// in time.
	Duplicate bool
	// Charge is the charge of the first Check, by Name or by Number. It is set for a duplicate.
	Charge    Charged
	Remaining int64         // how many more requests fit now; 0 if there is no limit
	Used      int64         // how many requests count now; set by [Limiter.Look]
	Reset     time.Duration // until the oldest request makes room; 0 if none counts
}

// Limiter counts a request, unless the limit was reached in the window before it. A refused request
// is not counted. Its methods are safe for concurrent use. An error means that it could not decide.
type Limiter interface {
	// Named reports whether the Limiter remembers charges by name. If so, each Attempt needs the
	// name of its charge.
	Named() bool
	Admit(ctx context.Context, a Attempt) (Verdict, error)
	// Look returns what Admit would, without counting anything.
	Look(ctx context.Context, a Attempt) (Verdict, error)
	// Release takes back a request that was admitted and not answered, and reports whether it has.
	// It does not if a repeated Check of the request was admitted as well, or if the request has no
	// ID.
	Release(ctx context.Context, user, id string) (bool, error)
}

// Config configures a [Meter]. Limiter is required.
type Config struct {
	Limiter Limiter
	Credits *Credits // nil: credits are not counted
	Signer  *Signer  // of the names of charges; nil: they have none, and no credit comes back
}

// Meter implements [authz.Meter].
type Meter struct {
	config  Config
	process string        // unique to this process
	unnamed atomic.Uint64 // number of names made by newName
	seed    maphash.Seed
}

// New returns a Meter.
func New(c Config) *Meter {
	return &Meter{config: c, process: "\x00" + rand.Text(), seed: maphash.MakeSeed()}
}

// Take implements [authz.Meter]. It first reserves the credits in memory, then counts the request,
// and returns the credits unless the request is admitted. So nothing that other replicas can see
// has to be undone.
func (m *Meter) Take(ctx context.Context, u authz.Use) (authz.Charge, authz.Reason, error) {
	if u.Request == "" {
		u.Request = m.newName() // can be released, and is never taken for another request
	}
	var charge authz.Charge
	switch reason := m.reserve(&u, &charge); {
	case reason == authz.Allowed:
		reason, err := m.count(ctx, &u, &charge)
		return charge, reason, err
	case reason == authz.CreditsExhausted && !m.config.Limiter.Named():
		return m.refuse(ctx, &u, charge.Credits)
	}
	return m.ask(ctx, &u)
}

// refuse answers a request that certainly has no credits, if the limiter answers from memory: the
// rate limit takes precedence. It is a shortcut for ask.
func (m *Meter) refuse(ctx context.Context, u *authz.Use, credits usage.Credits) (authz.Charge, authz.Reason, error) {
	v, err := m.config.Limiter.Look(ctx, attempt(u, Charged{}))
	switch {
	case err != nil:
		return authz.Charge{}, authz.Undecided, err
	case !v.Admitted:
		return authz.Charge{Rate: rateOf(u, v)}, authz.RateLimited, nil
	}
	return authz.Charge{Rate: rateOf(u, v), Credits: credits}, authz.CreditsExhausted, nil
}

// newName returns a name that no other request has.
func (m *Meter) newName() string { return m.process + strconv.FormatUint(m.unnamed.Add(1), 36) }

// attempt returns u as an Attempt.
func attempt(u *authz.Use, charge Charged) Attempt {
	return Attempt{User: u.Principal.User, ID: u.Request, Limit: u.Principal.RateLimit, Window: u.Principal.RateWindow, Charge: charge}
}

// count counts a request that is paid for, and undoes the payment unless the request is admitted
// for the first time. It signs the charge as late as possible, because most refusals come from
// users that are refused often.
func (m *Meter) count(ctx context.Context, u *authz.Use, charge *authz.Charge) (authz.Reason, error) {
	named := m.config.Limiter.Named()
	if named {
		m.sign(u, charge)
	}
	v, err := m.config.Limiter.Admit(ctx, attempt(u, Charged{Name: charge.ID, Number: charge.Number, Month: charge.Month, Terms: m.terms(u)}))
	if err != nil || !v.Admitted || v.Duplicate {
		m.unpay(*charge)
		*charge = authz.Charge{Credits: charge.Credits}
	}
	if err != nil {
		*charge = authz.Charge{}
		return authz.Undecided, err
	}
	charge.Rate = rateOf(u, v)
	switch {
	case !v.Admitted:
		return authz.RateLimited, nil
	case v.Duplicate:
		m.name(u, charge, v.Charge)
	default:
		if !named {
			m.sign(u, charge)
		}
		charge.User, charge.Request = u.Principal.User, u.Request
	}
	return authz.Allowed, nil
}

// terms returns the hash of everything in the name of a charge beside its number and month.
func (m *Meter) terms(u *authz.Use) uint32 {
	hash := maphash.String(m.seed, u.Principal.Account)
	// The factor is an odd number without a pattern.
	mix := func(n uint64) { hash = (hash ^ hash>>32 ^ n) * 0x9e3779b97f4a7c15 }
	mix(uint64(u.Cost))
	if u.Refund.Never {
		mix(1)
	}
	for _, code := range u.Refund.Codes {
		mix(uint64(code))
	}
	return uint32(hash >> 32)
}

// rateOf returns the state of a user's rate limit after a verdict.
func rateOf(u *authz.Use, v Verdict) usage.Rate {
	return usage.Rate{Limit: u.Principal.RateLimit, Window: u.Principal.RateWindow, Remaining: v.Remaining, Used: v.Used, Reset: v.Reset}
}

// ask waits for the ledger, because this process does not hold the credits. Requests over the rate
// limit are rejected first, so they cost no database work: the request is counted under a temporary
// name while it waits, and under its own name once it is paid for. A repeated Check that arrives in
// between finds no entry to mistake for a charge.
func (m *Meter) ask(ctx context.Context, u *authz.Use) (authz.Charge, authz.Reason, error) {
	waiting := *u
	waiting.Request = m.newName()
	v, err := m.config.Limiter.Admit(ctx, attempt(&waiting, Charged{}))
	if err != nil {
		return authz.Charge{}, authz.Undecided, err
	}
	if !v.Admitted {
		return authz.Charge{Rate: rateOf(u, v)}, authz.RateLimited, nil
	}
	charge, reason, err := m.config.Credits.Take(ctx, &u.Principal, u.Cost)
	// If this fails, the request counts twice for one window.
	_, _ = m.config.Limiter.Release(context.WithoutCancel(ctx), u.Principal.User, waiting.Request)
	if err != nil || reason != authz.Allowed {
		charge = authz.Charge{Rate: rateOf(u, v), Credits: charge.Credits}
		charge.Rate.Remaining++ // it is not counted any more
		return charge, reason, err
	}
	reason, err = m.count(ctx, u, &charge)
	return charge, reason, err
}

// reserve spends the credits if this process holds them. The reason is [authz.Undecided] if only
// the ledger knows.
func (m *Meter) reserve(u *authz.Use, charge *authz.Charge) (reason authz.Reason) {
	if m.config.Credits == nil {
		return authz.Allowed
	}
	*charge, reason = m.config.Credits.Reserve(&u.Principal, u.Cost)
	return reason
}

// sign names a charge of this process.
func (m *Meter) sign(u *authz.Use, charge *authz.Charge) {
	if m.config.Signer == nil || m.config.Credits == nil {
		return
	}
	holder, _ := m.config.Credits.holder(charge.Number)
	charge.ID, charge.Receipt = m.config.Signer.Sign(Receipt{
		Holder: holder, Number: charge.Number, Month: charge.Month, Cost: u.Cost,
		User: u.Principal.User, Account: u.Principal.Account, Refund: u.Refund,
	})
}

// name names a charge as the first Check of the same request did, perhaps on another replica.
func (m *Meter) name(u *authz.Use, charge *authz.Charge, first Charged) {
	switch {
	case m.config.Signer == nil:
	case first.Name != "":
		if receipt, err := m.config.Signer.ParseID(first.Name); err == nil {
			charge.ID, charge.Receipt = m.config.Signer.Sign(receipt)
		}
	case first.Number != 0:
		named := authz.Charge{Number: first.Number, Month: first.Month}
		m.sign(u, &named)
		charge.ID, charge.Receipt = named.ID, named.Receipt
	}
}

// unpay returns the reserved credits.
func (m *Meter) unpay(c authz.Charge) {
	if m.config.Credits != nil {
		m.config.Credits.Void(c)
	}
}

// causeListed is the cause of a refund for an answer that is no failure, but has a status in the
// route's refund rule.
const causeListed = "listed_status"

// End records the outcome of a request, and refunds its credits if the route's rule says so. It
// returns the charged credits, and whether they come back. It ignores a receipt that was not signed
// for the access log, or was signed for a user other than the entry's.
func (m *Meter) End(e usage.Completion) (credits int64, refunded bool) {
	if e.Receipt == "" || m.config.Signer == nil || m.config.Credits == nil {
		return 0, false
	}
	receipt, err := m.config.Signer.ParseReceipt(e.Receipt)
	if err != nil || e.Record.User != "" && e.Record.User != receipt.User {
		m.config.Credits.metrics.forged.Inc()
		return 0, false
	}
	cause := ""
	if refunded = Due(receipt, e); refunded {
		cause = e.Failure.String()
		if e.Failure == usage.NoFailure {
			cause = causeListed
		}
	}
	m.config.Credits.note(receipt.outcome(cause))
	return receipt.Cost, refunded
}

// Stand returns the user's rate limit and credits, in the numbers that decide, without counting
// anything. The credits are unknown (Counted is false) if they are not counted here, or if the
// month is about to end: then only the ledger knows. An error means that it could not decide.
func (m *Meter) Stand(ctx context.Context, p *authz.Principal) (rate usage.Rate, credits usage.Credits, err error) {
	u := authz.Use{Principal: *p}
	v, err := m.config.Limiter.Look(ctx, attempt(&u, Charged{}))
	if err == nil && m.config.Credits != nil {
		credits, err = m.config.Credits.look(ctx, p)
	}
	if err != nil {
		return usage.Rate{}, usage.Credits{}, err
	}
	return rateOf(&u, v), credits, nil
}

// Void implements [authz.Meter]. If a repeated Check of the same request was admitted, the request
// and its charge stand.
func (m *Meter) Void(c authz.Charge) {
	if c.User == "" {
		return
	}
	// If it is unknown whether there was a repeated Check, the charge stands: a request that passes
	// is never free.
	if released, err := m.config.Limiter.Release(context.Background(), c.User, c.Request); released && err == nil {
		m.unpay(c)
	}
}
