// Package meter counts what users use: requests in a rolling window, and credits of a month. A
// [Limiter] keeps the exact log of each user's last requests, in the memory of a single replica or in
// a Valkey that several share.
package meter

import (
	"context"
	"crypto/rand"
	"hash/maphash"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/authz"
)

// Attempt is a request that wants to be counted.
type Attempt struct {
	User   string
	ID     string        // what Envoy calls the request; empty: never taken for another one
	Limit  authz.Limit   // requests in any window
	Window time.Duration // longer than 0
	// Charge is what is charged for the request if it is admitted. It is remembered with the ID, for as long
	// as the Check may come again.
	Charge Charged

	asked bool // a server that others share was asked, and may have told a second Check of it
}

// Charged is a charge as a [Limiter] remembers it: one that is shared by its name, one of this process by its
// number, for which it needs less memory. The zero Charged is none, or one that is not known any more.
type Charged struct {
	Name   string // for the upstream, as signed
	Number uint64 // in this process
	Month  authz.Month
	// Terms is a hash of all else that the name says. A Check that is repeated has those of the first one, so
	// that they need not be remembered. If it has not, be it that the user has moved to another account, the charge is
	// not known any more, and stands.
	Terms uint32
}

// Verdict is the answer to an [Attempt]. The zero Verdict refuses.
type Verdict struct {
	// Admitted says that the request fits, and is counted.
	Admitted bool
	// Duplicate says that it had been counted before: Envoy asks again where it got no answer in time.
	Duplicate bool
	// Charge is that of the first Check, for a duplicate: its Name, or its Number.
	Charge    Charged
	Remaining int64         // how many more fit right now; 0 where there is no limit
	Used      int64         // how many count right now, where [Limiter.Look] tells
	Reset     time.Duration // until room is made by the oldest request that counts; 0 if none counts
}

// A Limiter counts a request, unless as many as the limit were counted in the window before it. What is
// refused is not counted. It is called from many goroutines. An error means that it could not tell.
type Limiter interface {
	// Named reports whether it remembers charges by their names, which it has to be given then.
	Named() bool
	Admit(ctx context.Context, a Attempt) (Verdict, error)
	// Look tells what Admit would, without counting anything.
	Look(ctx context.Context, a Attempt) (Verdict, error)
	// Release takes back a request that was admitted and not answered, and reports whether it has: not
	// where a second Check of it was admitted as well. One without an ID cannot be taken back.
	Release(ctx context.Context, user, id string) (bool, error)
}

// Config says what a [Meter] counts with. Limiter is required.
type Config struct {
	Limiter Limiter
	Credits *Credits // nil: credits are not counted
	Signer  *Signer  // of the names of charges; nil: they have none, and no credit comes back
}

// Meter implements [authz.Meter].
type Meter struct {
	config  Config
	process string        // no other one has this name
	unnamed atomic.Uint64 // how many requests had no name
	seed    maphash.Seed
}

// New returns a Meter.
func New(c Config) *Meter {
	return &Meter{config: c, process: "\x00" + rand.Text(), seed: maphash.MakeSeed()}
}

// Take implements [authz.Meter]. A credit is reserved first, in memory, then the request is counted, and
// the credit goes back unless it is admitted: so nothing has to be undone where others can see it.
func (m *Meter) Take(ctx context.Context, u authz.Use) (authz.Charge, authz.Reason, error) {
	if u.Request == "" {
		u.Request = m.newName() // can be taken back, and is never taken for another one
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

// refuse answers a request for which there are certainly no credits, where the limiter answers out of memory: the rate
// limit comes before them. It does in a few steps what ask does in many.
func (m *Meter) refuse(ctx context.Context, u *authz.Use, credits authz.Credits) (authz.Charge, authz.Reason, error) {
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

// attempt is u as the limiter knows it.
func attempt(u *authz.Use, charge Charged) Attempt {
	return Attempt{User: u.Principal.User, ID: u.Request, Limit: u.Principal.RateLimit, Window: u.Principal.RateWindow, Charge: charge}
}

// count counts a request that is paid for, and unpays it unless it is admitted for the first time. The charge is
// named as late as possible: most of those who are refused are refused often.
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

// terms returns the hash of what the name of a charge says, beside its number and month.
func (m *Meter) terms(u *authz.Use) uint32 {
	hash := maphash.String(m.seed, u.Principal.Account)
	mix := func(n uint64) { hash = (hash ^ hash>>32 ^ n) * 0x9e3779b97f4a7c15 } // an odd number without a pattern
	mix(uint64(u.Cost))
	if u.Refund.Never {
		mix(1)
	}
	for _, code := range u.Refund.Codes {
		mix(uint64(code))
	}
	return uint32(hash >> 32)
}

// rateOf returns where a user stands with the rate limit, by a verdict.
func rateOf(u *authz.Use, v Verdict) authz.Rate {
	return authz.Rate{Limit: u.Principal.RateLimit, Window: u.Principal.RateWindow, Remaining: v.Remaining, Used: v.Used, Reset: v.Reset}
}

// ask waits for the ledger, where this process does not hold the credits. Who is refused by the rate limit
// is refused before that, and causes no work for the database: so the request is counted under a name of its
// own while it waits, and under its own name when it is paid for. A second Check of it that comes in between
// finds nothing that it could take for a charge.
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
	// Where that fails, the request counts twice for one window.
	_, _ = m.config.Limiter.Release(context.WithoutCancel(ctx), u.Principal.User, waiting.Request)
	if err != nil || reason != authz.Allowed {
		charge = authz.Charge{Rate: rateOf(u, v), Credits: charge.Credits}
		charge.Rate.Remaining++ // it is not counted any more
		return charge, reason, err
	}
	reason, err = m.count(ctx, u, &charge)
	return charge, reason, err
}

// reserve takes the credits where this process holds them. The reason is [authz.Undecided] where only the ledger knows.
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

// unpay gives back what was reserved.
func (m *Meter) unpay(c authz.Charge) {
	if m.config.Credits != nil {
		m.config.Credits.Void(c)
	}
}

// causeListed is why credits come back where the upstream answered as it should, but with a status that the
// route's rule names.
const causeListed = "listed_status"

// End takes note of how a request came to its end, and gives its credits back where the route's rule says
// so. It returns what was charged and whether that comes back. What was not signed for the access log is
// ignored, and what was signed for another user than the one of whom it is told.
func (m *Meter) End(e authz.Ending) (credits int64, refunded bool) {
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
		if e.Failure == authz.NoFailure {
			cause = causeListed
		}
	}
	m.config.Credits.note(receipt.outcome(cause))
	return receipt.Cost, refunded
}

// Stand returns where a user stands, in the numbers that decide, without counting anything. The credits are
// not known (Counted is false) where they are not counted here, or the month is about to end: then the ledger
// knows. An error means that it could not tell.
func (m *Meter) Stand(ctx context.Context, p *authz.Principal) (rate authz.Rate, credits authz.Credits, err error) {
	u := authz.Use{Principal: *p}
	v, err := m.config.Limiter.Look(ctx, attempt(&u, Charged{}))
	if err == nil && m.config.Credits != nil {
		credits, err = m.config.Credits.look(ctx, p)
	}
	if err != nil {
		return authz.Rate{}, authz.Credits{}, err
	}
	return rateOf(&u, v), credits, nil
}

// Void implements [authz.Meter]. What a second Check of the same request has been told stands, and so
// does its charge.
func (m *Meter) Void(c authz.Charge) {
	if c.User == "" {
		return
	}
	// Where it cannot be told whether there was a second one, the charge stands: a request that passes is
	// never free.
	if released, err := m.config.Limiter.Release(context.Background(), c.User, c.Request); released && err == nil {
		m.unpay(c)
	}
}
