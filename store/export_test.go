package store

import "database/sql"

// Wait is the wait that follows a change.
var Wait = wait

// SQL returns the connections of operators, for a look at the tables.
func (db *DB) SQL() *sql.DB { return db.changes }
