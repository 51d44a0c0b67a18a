package store

import (
	"context"
	"database/sql"
)

// SQL returns the connections of operators, for a look at the tables.
func (db *DB) SQL() *sql.DB { return db.changes }

// Logged runs f in a transaction of the log of requests.
func (db *DB) Logged(ctx context.Context, f func(*sql.Tx) error) error { return db.logged(ctx, f) }
