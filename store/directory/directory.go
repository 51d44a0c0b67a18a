// Package directory keeps plans, accounts, users, their keys, sessions and login links, and the
// audit of changes to them. It stores digests of keys, never keys. [Directory] serves operators and
// the user's page, [Lookups] the decisions. A method that changes what a decision depends on
// returns only once no replica decides by the old state.
package directory

import (
	"context"
	"database/sql"
	"time"

	"github.com/keyporter/keyporter/store"
)

// Directory is the directory in a database. It is safe for concurrent use.
type Directory struct{ db *store.DB }

// New returns the directory in a database. The actor of the database is the author of changes, for
// the audit.
func New(db *store.DB) *Directory { return &Directory{db} }

// Tidy deletes login links that expired a day ago.
func (d *Directory) Tidy(ctx context.Context) error {
	db := d.db.Calling(store.ForHousekeeping)
	_, err := db.Write(ctx, db.Changes, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM login_links WHERE expires_at < $1`, store.NowMillis()-(24*time.Hour).Milliseconds())
		return err
	})
	return err
}
