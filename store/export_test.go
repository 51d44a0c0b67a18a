package store

import "database/sql"

// SQL returns the connections of operators, for a look at the tables.
func (db *DB) SQL() *sql.DB { return db.changes }
