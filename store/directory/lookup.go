package directory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/usage"
)

// Lookups resolves keys, sessions and subjects to their users, for decisions. It is safe for
// concurrent use.
type Lookups struct{ db *store.DB }

// NewLookups returns the look-ups in a database.
func NewLookups(db *store.DB) *Lookups { return &Lookups{db} }

// FindKey is [Lookups.ResolveKey] for callers without a cache.
func (l *Lookups) FindKey(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
	p, _, err := l.ResolveKey(ctx, d)
	return p, err
}

// FindImported is [Lookups.ResolveImported] for callers without a cache.
func (l *Lookups) FindImported(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
	p, _, err := l.ResolveImported(ctx, d)
	return p, err
}

// FindSession is [Lookups.ResolveSession] for callers without a cache.
func (l *Lookups) FindSession(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
	p, _, _, err := l.ResolveSession(ctx, d)
	return p, err
}

// FindSubject is [Lookups.ResolveSubject] for callers without a cache.
func (l *Lookups) FindSubject(ctx context.Context, subject string) (authz.Principal, error) {
	p, _, err := l.ResolveSubject(ctx, subject)
	return p, err
}

// ResolveKey resolves the digest of a key in one statement, and so in one snapshot with its epoch.
// An unknown key is [authz.ErrUnknown], a revoked one [authz.ErrRevoked]; the origin holds the
// epoch in both cases.
func (l *Lookups) ResolveKey(ctx context.Context, d apikey.Digest) (authz.Principal, lease.Origin, error) {
	return l.resolveKey(ctx, d, byDigest)
}

// ResolveImported is ResolveKey for the keys of other systems.
func (l *Lookups) ResolveImported(ctx context.Context, d apikey.Digest) (authz.Principal, lease.Origin, error) {
	return l.resolveKey(ctx, d, byDigest+` AND k.imported IS NOT NULL`)
}

const byDigest = `k.digest = $1`

func (l *Lookups) resolveKey(ctx context.Context, d apikey.Digest, which string) (authz.Principal, lease.Origin, error) {
	var r resolved
	p, origin, err := r.find(ctx, l.db, d[:], `SELECT c.epoch, coalesce(k.id, ''), k.revoked_at IS NOT NULL, 0, `+whose+`
		FROM `+newest+` LEFT JOIN keys k ON `+which+` LEFT JOIN users u ON u.name = k.user_name
		LEFT JOIN accounts a ON a.name = u.account LEFT JOIN plans p ON p.name = a.plan`)
	if err != nil {
		return authz.Principal{}, origin, fmt.Errorf("finding a key: %w", err)
	}
	return p, origin, nil
}

// ResolveSession resolves the digest of a session as [Lookups.ResolveKey] does that of a key, and
// returns when the session expires by this machine's clock. An expired one is [authz.ErrUnknown].
func (l *Lookups) ResolveSession(ctx context.Context, d apikey.Digest) (authz.Principal, lease.Origin, time.Time, error) {
	var r resolved
	p, origin, err := r.find(ctx, l.db, d[:], `SELECT c.epoch, '', s.revoked_at IS NOT NULL, coalesce(s.expires_at, 0), `+whose+`
		FROM `+newest+` LEFT JOIN sessions s ON s.digest = $1 LEFT JOIN users u ON u.name = s.user_name
		LEFT JOIN accounts a ON a.name = u.account LEFT JOIN plans p ON p.name = a.plan`)
	if err == nil && r.expires <= store.NowMillis() {
		err = authz.ErrUnknown
	}
	if err != nil {
		return authz.Principal{}, origin, time.Time{}, fmt.Errorf("finding a session: %w", err)
	}
	return p, origin, store.FromMillis(r.expires), nil
}

// ResolveSubject resolves the subject of a user in tokens of the provider's web app, as
// [Lookups.ResolveKey] does the digest of a key.
func (l *Lookups) ResolveSubject(ctx context.Context, subject string) (authz.Principal, lease.Origin, error) {
	// PostgreSQL rejects such text
	if !utf8.ValidString(subject) || strings.ContainsRune(subject, 0) {
		subject = ""
	}
	var r resolved
	p, origin, err := r.find(ctx, l.db, subject, `SELECT c.epoch, '', FALSE, 0, `+whose+`
		FROM `+newest+` LEFT JOIN users u ON u.subject = $1
		LEFT JOIN accounts a ON a.name = u.account LEFT JOIN plans p ON p.name = a.plan`)
	if err != nil {
		return authz.Principal{}, origin, fmt.Errorf("finding a user by subject: %w", err)
	}
	return p, origin, nil
}

// Try looks up a key that does not exist.
func (l *Lookups) Try(ctx context.Context) error {
	_, _, err := l.ResolveKey(ctx, apikey.Digest{})
	if errors.Is(err, authz.ErrUnknown) || errors.Is(err, authz.ErrRevoked) {
		return nil
	}
	return err
}

const (
	whose = `coalesce(u.name, ''), coalesce(a.name, ''), coalesce(p.name, ''), u.status, a.status, coalesce(p.api_access, FALSE),
		CASE WHEN p.name IS NULL THEN 0 ELSE coalesce(p.rate_limit, -1) END, coalesce(p.rate_window, 1000),
		CASE WHEN p.name IS NULL THEN 0 ELSE coalesce(p.credits, -1) END, coalesce(p.pool = 'account', FALSE), coalesce(u.not_before, 0)`
	newest = `(SELECT max(epoch) AS epoch FROM changes) c`
)

// resolved is the row of a look-up. There is always exactly one.
type resolved struct {
	epoch                     lease.Epoch
	principal                 authz.Principal
	userStatus, accountStatus sql.NullString
	ended                     bool
	expires                   int64
}

func (r *resolved) find(caller context.Context, db *store.DB, id any, query string) (authz.Principal, lease.Origin, error) {
	p, window, shared, notBefore := &r.principal, int64(0), false, int64(0)
	err := db.LookUp(caller, query, id, &r.epoch, &p.KeyID, &r.ended, &r.expires,
		&p.User, &p.Account, &p.Plan, &r.userStatus, &r.accountStatus, &p.APIAccess, &p.RateLimit, &window,
		&p.Credits, &shared, &notBefore)
	switch {
	case err != nil:
		return authz.Principal{}, lease.Origin{}, err
	case p.User == "":
		return authz.Principal{}, lease.Origin{Epoch: r.epoch}, authz.ErrUnknown
	case r.ended:
		return authz.Principal{}, lease.Origin{Epoch: r.epoch}, authz.RevokedError{User: p.User, KeyID: p.KeyID}
	}
	join(&p.KeyID, &p.User, &p.Account, &p.Plan)
	p.RateWindow = time.Duration(window) * time.Millisecond
	if notBefore != 0 {
		p.NotBefore = store.FromMillis(notBefore)
	}
	if p.Epoch = int64(r.epoch); shared {
		p.Pool = usage.PoolAccount
	}
	p.UserActive, p.AccountActive = r.userStatus.String == "active", r.accountStatus.String == "active"
	if p.Account == "" || p.Plan == "" { // only where foreign keys were off
		return *p, lease.Origin{Epoch: r.epoch}, nil
	}
	return *p, lease.Origin{Epoch: r.epoch, User: p.User, Account: p.Account, Plan: p.Plan}, nil
}

// join moves texts into one object. There are as many of them as keys in memory, and the garbage
// collector visits each object.
func join(texts ...*string) {
	size := 0
	for _, text := range texts {
		size += len(*text)
	}
	var all strings.Builder
	all.Grow(size)
	for _, text := range texts {
		all.WriteString(*text)
	}
	rest := all.String()
	for _, text := range texts {
		*text, rest = rest[:len(*text)], rest[len(*text):]
	}
}
