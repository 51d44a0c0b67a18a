package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// FindKey resolves the digest of a key in one statement. A key that was never made is
// [authz.ErrUnknown], one that has ended [authz.ErrRevoked].
func (db *DB) FindKey(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
	var p authz.Principal
	var userStatus, accountStatus string
	var ended bool
	err := db.lookup(ctx, d, `SELECT k.id, u.name, a.name, p.name, u.status, a.status, p.api_access, k.revoked_at IS NOT NULL
		FROM keys k JOIN users u ON u.name = k.user_name JOIN accounts a ON a.name = u.account JOIN plans p ON p.name = a.plan
		WHERE k.digest = $1`,
		&p.KeyID, &p.User, &p.Account, &p.Plan, &userStatus, &accountStatus, &p.APIAccess, &ended)
	if err != nil {
		return authz.Principal{}, fmt.Errorf("finding a key: %w", err)
	}
	if ended {
		return authz.Principal{}, fmt.Errorf("key %s: %w", p.KeyID, authz.ErrRevoked)
	}
	p.UserActive, p.AccountActive = userStatus == "active", accountStatus == "active"
	return p, nil
}

// FindSession resolves the digest of a session in one statement. A session that has expired by this
// machine's clock is [authz.ErrUnknown], a revoked one [authz.ErrRevoked].
func (db *DB) FindSession(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
	var p authz.Principal
	var userStatus, accountStatus string
	var expires int64
	var ended bool
	err := db.lookup(ctx, d, `SELECT u.name, a.name, p.name, u.status, a.status, p.api_access, s.expires_at, s.revoked_at IS NOT NULL
		FROM sessions s JOIN users u ON u.name = s.user_name JOIN accounts a ON a.name = u.account JOIN plans p ON p.name = a.plan
		WHERE s.digest = $1`,
		&p.User, &p.Account, &p.Plan, &userStatus, &accountStatus, &p.APIAccess, &expires, &ended)
	switch {
	case err != nil:
		return authz.Principal{}, fmt.Errorf("finding a session: %w", err)
	case ended:
		return authz.Principal{}, fmt.Errorf("a session: %w", authz.ErrRevoked)
	case expires <= now():
		return authz.Principal{}, fmt.Errorf("an expired session: %w", authz.ErrUnknown)
	}
	p.UserActive, p.AccountActive = userStatus == "active", accountStatus == "active"
	return p, nil
}

func (db *DB) lookup(caller context.Context, d apikey.Digest, query string, into ...any) error {
	ctx, cancel := context.WithTimeout(caller, lookupTimeout)
	defer cancel()
	err := db.lookups.QueryRowContext(ctx, query, d[:]).Scan(into...)
	if errors.Is(err, sql.ErrNoRows) {
		return authz.ErrUnknown
	}
	db.count(caller, "lookup", err)
	return err
}
