package directory

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/keyporter/keyporter/store"
)

// Audit is the record of all changes to the directory, which is only added to. It is safe for
// concurrent use.
type Audit struct{ db *store.DB }

// NewAudit returns the audit in a database.
func NewAudit(db *store.DB) *Audit { return &Audit{db} }

// AuditEntry is one recorded action.
type AuditEntry struct {
	ID     int64     `json:"id"`
	At     time.Time `json:"at"`
	Actor  string    `json:"actor"`  // page:ada, command:root, service, or sql and the user of the database
	Action string    `json:"action"` // created, changed, deleted, revealed
	Kind   string    `json:"kind"`   // plan, account, user, key, session, login link, grant, seal key
	// Name is the name of the plan or account, or of the user that the row belongs to; "*" if a
	// statement touched many.
	Name string `json:"name"`
	// Detail is the row, or the old and new values of a change. It holds no secret.
	Detail json.RawMessage `json:"detail"`
}

// AuditFilter selects entries of the audit. The zero AuditFilter selects the last 100 entries.
type AuditFilter struct {
	Name  string    // of a plan, account or user; "": all
	Since time.Time // zero: from the beginning
	Limit int       // the maximum number of entries, the newest; 0: 100
}

// List lists the selected entries, newest first.
func (a *Audit) List(ctx context.Context, f AuditFilter) ([]AuditEntry, error) {
	return store.Collect(a.Each(ctx, f))
}

// Each lists the selected entries, newest first.
func (a *Audit) Each(ctx context.Context, f AuditFilter) iter.Seq2[AuditEntry, error] {
	if f.Limit == 0 {
		f.Limit = 100
	}
	listing := f.listing()
	listing.Size = f.Limit
	entries := listing.Each(ctx, a.db)
	return func(yield func(AuditEntry, error) bool) {
		n := 0
		for entry, err := range entries {
			if n++; !yield(entry, err) || n == f.Limit {
				return
			}
		}
	}
}

// Page is a part of the selected entries, as [store.Listing.Page] returns it. It ignores the limit
// of the filter.
func (a *Audit) Page(ctx context.Context, f AuditFilter, cursor string, n int) ([]AuditEntry, string, error) {
	return f.listing().Page(ctx, a.db, cursor, n)
}

func (f AuditFilter) listing() store.Listing[AuditEntry] {
	since := int64(math.MinInt64)
	if !f.Since.IsZero() {
		since = f.Since.UnixMilli()
	}
	return store.Listing[AuditEntry]{
		What: "the audit", Scan: scanAudit,
		Query: `SELECT id, at, actor, action, kind, name, detail FROM audit
			WHERE ($1 = '' OR name = $1) AND at >= $2 AND id < $3 ORDER BY id DESC LIMIT $4`,
		Of: []any{f.Name, since}, Start: []any{int64(math.MaxInt64)}, Place: func(e AuditEntry) []any { return []any{e.ID} },
	}
}

func scanAudit(row store.Scanner) (e AuditEntry, err error) {
	var at int64
	var detail string
	err = row.Scan(&e.ID, &at, &e.Actor, &e.Action, &e.Kind, &e.Name, &detail)
	e.At, e.Detail = store.FromMillis(at), json.RawMessage(detail)
	return e, err
}

// RecordReveal records in the audit that a key is about to be shown to its user. The error is a
// [TooOftenError] if that happened more often than the rate allows. So users cannot fill the audit,
// which is never deleted from, by viewing their keys.
func (a *Audit) RecordReveal(ctx context.Context, user, keyID string, rate Rate) error {
	detail, err := json.Marshal(map[string]string{"id": keyID})
	if err != nil {
		return err
	}
	_, err = a.db.Change(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := mustLockUser(ctx, a.db, tx, user); err != nil {
			return err
		}
		if err := rate.check(ctx, tx, `SELECT at FROM audit WHERE name = $1 AND kind = 'key' AND action = 'revealed' AND at > $2 ORDER BY id DESC LIMIT $3`, user); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO audit (actor, action, kind, name, detail) VALUES ($1, 'revealed', 'key', $2, $3)`,
			a.db.Actor(), user, string(detail))
		return err
	})
	if err != nil {
		return fmt.Errorf("noting in the audit that a key is shown: %w", err)
	}
	return nil
}
