// Package meter charges for requests: it joins the rate limit, the credits and the receipts of
// charges, so that one request is counted in all of them or in none.
package meter

import (
	"context"
	"crypto/rand"
	"hash/maphash"
	"strconv"
	"sync/atomic"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/receipt"
	"github.com/keyporter/keyporter/usage"
)

// Limiter counts a request, unless the limit was reached in the window before it. A refused request
// is not counted. Its methods are safe for concurrent use. An error means that it could not decide.
type Limiter interface {
	// Named reports whether the Limiter remembers charges by name. If so, each Attempt needs the
	// name of its charge.
	Named() bool
	Admit(ctx context.Context, a ratelimit.Attempt) (ratelimit.Verdict, error)
	// Peek returns what Admit would, without counting anything.
	Peek(ctx context.Context, a ratelimit.Attempt) (ratelimit.Verdict, error)
	// Release takes back a request that was admitted and not answered, and reports whether it has.
	// It does not if a repeated Check of the request was admitted as well, or if the request has no
	// ID.
	Release(ctx context.Context, user, id string) (bool, error)
}

// Config configures a [Meter]. Limiter is required.
type Config struct {
	Limiter Limiter
	Credits *credits.Allocator // nil: credits are not counted
	Signer  *receipt.Signer    // of the names of charges; nil: they have none, and no credit comes back
}

// The names of processes fit into receipts: a charge with a longer one could not be named, and
// would stand whatever happens. Otherwise this does not compile.
const _ = uint(receipt.MaxHolder - credits.HolderLength)

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
func (m *Meter) Take(ctx context.Context, u authz.Use) (usage.Charge, authz.Reason, error) {
	if u.Request == "" {
		u.Request = m.newName() // can be released, and is never taken for another request
	}
	if m.config.Limiter.Named() { // it asks Valkey, so nothing is reserved before that
		if err := nowait.Err(ctx); err != nil {
			return usage.Charge{}, authz.Undecided, err
		}
	}
	var charge usage.Charge
	reason := m.trySpend(&u, &charge)
	if reason == authz.Allowed {
		reason, err := m.count(ctx, &u, &charge)
		return charge, reason, err
	}
	if !m.config.Limiter.Named() {
		if charge, reason, err := m.refuse(ctx, &u, reason, charge.Credits); reason != authz.Undecided || err != nil {
			return charge, reason, err
		}
	}
	if err := nowait.Err(ctx); err != nil {
		return usage.Charge{}, authz.Undecided, err
	}
	return m.askLedger(ctx, &u)
}

// refuse answers a request over the rate limit, or one that certainly has no credits, by a limiter
// that answers from memory: the rate limit takes precedence. It is a shortcut for askLedger, so that
// no flood of refusals has to wait. The reason is that of the credits alone, and [authz.Undecided]
// is returned if the request need not be refused.
func (m *Meter) refuse(ctx context.Context, u *authz.Use, reason authz.Reason, credits usage.Credits) (usage.Charge, authz.Reason, error) {
	v, err := m.config.Limiter.Peek(ctx, attempt(u, ratelimit.ChargeRef{}))
	switch {
	case err != nil:
		return usage.Charge{}, authz.Undecided, err
	case !v.Admitted:
		return m.refused(ctx, u, usage.Charge{Rate: rateOf(u, v)}, authz.RateLimited)
	case reason == authz.CreditsExhausted:
		return m.refused(ctx, u, usage.Charge{Rate: rateOf(u, v), Credits: credits}, reason)
	}
	return usage.Charge{}, authz.Undecided, nil
}

// refused answers a request that is refused for a reason, unless this is a repeated Check: the
// first one may have taken the last credit, and its charge stands. A limit of 0 admits no other
// request.
func (m *Meter) refused(ctx context.Context, u *authz.Use, charge usage.Charge, reason authz.Reason) (usage.Charge, authz.Reason, error) {
	a := attempt(u, ratelimit.ChargeRef{Fingerprint: m.fingerprint(u)})
	a.Limit = 0
	v, err := m.config.Limiter.Admit(ctx, a)
	if err != nil || !v.Duplicate {
		return charge, reason, nil
	}
	m.name(u, &charge, v.Charge)
	return charge, authz.Allowed, nil
}

// newName returns a name that no other request has.
func (m *Meter) newName() string { return m.process + strconv.FormatUint(m.unnamed.Add(1), 36) }

// attempt returns u as an Attempt.
func attempt(u *authz.Use, charge ratelimit.ChargeRef) ratelimit.Attempt {
	return ratelimit.Attempt{
		User: u.Principal.User, ID: u.Request, Limit: u.Principal.RateLimit, Window: u.Principal.RateWindow,
		Charge: charge, CallerTimeout: u.CallerTimeout,
	}
}

// count counts a request that is paid for, and undoes the payment unless the request is admitted
// for the first time. It signs the charge as late as possible, because most refusals come from
// users that are refused often.
func (m *Meter) count(ctx context.Context, u *authz.Use, charge *usage.Charge) (authz.Reason, error) {
	named := m.config.Limiter.Named()
	if named {
		m.sign(u, charge)
	}
	v, err := m.config.Limiter.Admit(ctx, attempt(u, ratelimit.ChargeRef{Name: charge.ID, Number: charge.Number, Month: charge.Month, Fingerprint: m.fingerprint(u)}))
	if err != nil || !v.Admitted || v.Duplicate {
		m.unspend(*charge)
		*charge = usage.Charge{Credits: charge.Credits}
	}
	if err != nil {
		*charge = usage.Charge{}
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

// fingerprint returns the hash of everything in the name of a charge beside its number and month.
func (m *Meter) fingerprint(u *authz.Use) uint32 {
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
func rateOf(u *authz.Use, v ratelimit.Verdict) usage.Rate {
	return usage.Rate{Limit: u.Principal.RateLimit, Window: u.Principal.RateWindow, Remaining: v.Remaining, Used: v.Used, Reset: v.Reset}
}

// askLedger waits for the ledger, because this process does not hold the credits. Requests over the
// rate limit are rejected first, so they cost no database work: the request is counted under a
// temporary name while it waits, and under its own name once it is paid for. A repeated Check that
// arrives in between finds no entry to mistake for a charge.
func (m *Meter) askLedger(ctx context.Context, u *authz.Use) (usage.Charge, authz.Reason, error) {
	waiting := *u
	waiting.Request = m.newName()
	v, err := m.config.Limiter.Admit(ctx, attempt(&waiting, ratelimit.ChargeRef{}))
	if err != nil {
		return usage.Charge{}, authz.Undecided, err
	}
	if !v.Admitted {
		return m.refused(ctx, u, usage.Charge{Rate: rateOf(u, v)}, authz.RateLimited)
	}
	s := spender(&u.Principal)
	charge, result, err := m.config.Credits.Spend(ctx, &s, u.Cost)
	reason := reasonOf(result)
	// If this fails, the request counts twice for one window.
	_, _ = m.config.Limiter.Release(context.WithoutCancel(ctx), u.Principal.User, waiting.Request)
	if err != nil || reason != authz.Allowed {
		charge = usage.Charge{Rate: rateOf(u, v), Credits: charge.Credits}
		charge.Rate.Remaining++ // it is not counted any more
		if err != nil {
			return charge, reason, err
		}
		return m.refused(ctx, u, charge, reason)
	}
	reason, err = m.count(ctx, u, &charge)
	return charge, reason, err
}

// trySpend spends the credits if this process holds them. The reason is [authz.Undecided] if only
// the ledger knows.
func (m *Meter) trySpend(u *authz.Use, charge *usage.Charge) authz.Reason {
	if m.config.Credits == nil {
		return authz.Allowed
	}
	s := spender(&u.Principal)
	var result credits.Result
	*charge, result = m.config.Credits.TrySpend(&s, u.Cost)
	return reasonOf(result)
}

// spender returns what the credits need to know of a principal.
func spender(p *authz.Principal) credits.Spender {
	return credits.Spender{User: p.User, Account: p.Account, Pool: p.Pool, Limit: p.Credits, Epoch: p.Epoch}
}

// reasonOf returns the reason of a decision that depends on credits alone.
func reasonOf(r credits.Result) authz.Reason {
	switch r {
	case credits.Spent:
		return authz.Allowed
	case credits.Exhausted:
		return authz.CreditsExhausted
	}
	return authz.Undecided
}

// sign names a charge of this process.
func (m *Meter) sign(u *authz.Use, charge *usage.Charge) {
	if m.config.Signer == nil || m.config.Credits == nil {
		return
	}
	holder, _ := m.config.Credits.Holder(charge.Number)
	charge.ID, charge.Receipt = m.config.Signer.Sign(receipt.Receipt{
		Holder: holder, Number: charge.Number, Month: charge.Month, Cost: u.Cost,
		User: u.Principal.User, Account: u.Principal.Account, Refund: u.Refund,
	})
}

// name names a charge as the first Check of the same request did, perhaps on another replica.
func (m *Meter) name(u *authz.Use, charge *usage.Charge, first ratelimit.ChargeRef) {
	switch {
	case m.config.Signer == nil:
	case first.Name != "":
		if receipt, err := m.config.Signer.ParseID(first.Name); err == nil {
			charge.ID, charge.Receipt = m.config.Signer.Sign(receipt)
		}
	case first.Number != 0:
		named := usage.Charge{Number: first.Number, Month: first.Month}
		m.sign(u, &named)
		charge.ID, charge.Receipt = named.ID, named.Receipt
	}
}

// unspend returns the reserved credits.
func (m *Meter) unspend(c usage.Charge) {
	if m.config.Credits != nil {
		m.config.Credits.Void(c)
	}
}

// Complete records the outcome of a request, and refunds its credits if the route's rule says so.
// It returns the charged credits, and whether they come back. It ignores a receipt that was not
// signed for the access log, or was signed for a user other than the entry's.
func (m *Meter) Complete(c usage.Completion) (credits int64, refunded bool) {
	if c.Receipt == "" || m.config.Signer == nil || m.config.Credits == nil {
		return 0, false
	}
	receipt, err := m.config.Signer.ParseReceipt(c.Receipt)
	if err != nil || c.Record.User != "" && c.Record.User != receipt.User {
		m.config.Credits.CountForged()
		return 0, false
	}
	outcome := outcomeOf(&receipt)
	if refunded = receipt.ShouldRefund(c); refunded {
		outcome.Refund, outcome.Cause = receipt.Cost, c.Failure.String()
		if c.Failure == usage.NoFailure {
			outcome.Cause = ledger.CauseListed
		}
	}
	m.config.Credits.Record(outcome)
	return receipt.Cost, refunded
}

// Settle closes a charge at once, on behalf of its upstream. Refund is the number of its credits
// that come back in total, 0 to r.Cost. Settle returns those that came back by this call. Once it
// returns without an error, the outcome is durable. After an error the outcome may still be posted
// a moment later.
func (m *Meter) Settle(ctx context.Context, r receipt.Receipt, refund int64) (refunded int64, err error) {
	outcome := outcomeOf(&r)
	if refund > 0 {
		outcome.Refund, outcome.Cause = refund, ledger.CauseSettled
	}
	return m.config.Credits.Settle(ctx, outcome)
}

// outcomeOf returns the outcome of a charge that stands, for the ledger.
func outcomeOf(r *receipt.Receipt) ledger.Outcome {
	return ledger.Outcome{
		ChargeID: ledger.ChargeID{Holder: r.Holder, Number: r.Number},
		Month:    r.Month, User: r.User, Account: r.Account, Credits: r.Cost,
	}
}

// Usage returns the user's rate limit and credits, in the numbers that decide, without counting
// anything. The credits are unknown (Counted is false) if they are not counted here, or if the
// month is about to end: then only the ledger knows. An error means that it could not decide.
func (m *Meter) Usage(ctx context.Context, p *authz.Principal) (usage.Rate, usage.Credits, error) {
	return m.usage(ctx, p, func(s *credits.Spender) (usage.Credits, error) { return m.config.Credits.Peek(ctx, s) })
}

// Glance is [Meter.Usage] without the ledger: the credits are those of the last answer in memory,
// or unknown.
func (m *Meter) Glance(ctx context.Context, p *authz.Principal) (usage.Rate, usage.Credits, error) {
	return m.usage(ctx, p, func(s *credits.Spender) (usage.Credits, error) { return m.config.Credits.Glance(s), nil })
}

func (m *Meter) usage(ctx context.Context, p *authz.Principal, balance func(*credits.Spender) (usage.Credits, error)) (rate usage.Rate, left usage.Credits, err error) {
	u := authz.Use{Principal: *p}
	v, err := m.config.Limiter.Peek(ctx, attempt(&u, ratelimit.ChargeRef{}))
	if err == nil && m.config.Credits != nil {
		s := spender(p)
		left, err = balance(&s)
	}
	if err != nil {
		return usage.Rate{}, usage.Credits{}, err
	}
	return rateOf(&u, v), left, nil
}

// Void implements [authz.Meter]. If a repeated Check of the same request was admitted, the request
// and its charge stand.
func (m *Meter) Void(c usage.Charge) {
	if c.User == "" {
		return
	}
	// If it is unknown whether there was a repeated Check, the charge stands: a request that passes
	// is never free.
	if released, err := m.config.Limiter.Release(context.Background(), c.User, c.Request); released && err == nil {
		m.unspend(c)
	}
}
