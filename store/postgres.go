package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

var postgresDialect = Dialect{
	name: "postgres", files: "postgres",
	unique: []string{"23505"}, foreign: []string{"23503", "23001"}, collision: []string{"40001", "40P01"},
	recorders: &postgresRecorders,
	Now:       "changes_now()",
	Recording: postgresRecorders.feed,
	Durable:   durable(true),
	Lock:      ` FOR NO KEY UPDATE`,
	Share:     ` FOR SHARE`,
	Live:      `live.acked >= 0 AND changes_now() - live.seen_at <= live.life`,
	Rows:      `json_array_elements(CAST($1 AS JSON)) AS e(value)`,
	Lazily:    ` RETURNING set_config('synchronous_commit', 'off', true)`,
	// A process that is stopped halfway loses its locks.
	durably: `SELECT ` + durable(true) + `, pg_catalog.set_config('idle_in_transaction_session_timeout', '2000', true),
		pg_catalog.set_config('keyporter.actor', $1, true)`,
	briefly: `SELECT pg_catalog.set_config('lock_timeout', '1000', true), pg_catalog.set_config('statement_timeout', '3000', true),
		pg_catalog.set_config('idle_in_transaction_session_timeout', '2000', true)`,
}

func connectPostgres(c Config) (*DB, error) {
	shown := MaskURL(c.URL)
	dsn, err := postgresDSN(c.URL)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDatabase, shown, err)
	}
	server, err := newTarget(dsn)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDatabase, shown, err)
	}
	if c.resolve != nil {
		server.resolve = c.resolve
	}
	if err := server.checkFiles(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDatabase, shown, err)
	}
	all := newConnections(c.Connections)
	db := &DB{Dialect: &postgresDialect, shown: shown, server: server, connections: all, lookedUp: &lookedUp{}}
	db.Changes = all.pool(server, forChanges, changeSilence)
	db.lists = db.Changes
	db.Reports = all.pool(server, forReports, lookupTimeout)
	db.lookups = all.pool(server, forLookups, lookupTimeout)
	return db, nil
}

// durable returns two columns of a SELECT. They make commits durable if the server's default may
// lose them (`off`, or `local`, which does not wait for the standby), and make the server report
// when it stops waiting. The settings hold for the session or, if a pooler owns that, until the
// transaction ends.
func durable(transaction bool) string {
	return fmt.Sprintf(`pg_catalog.set_config('synchronous_commit', CASE WHEN pg_catalog.current_setting('synchronous_commit')
		IN ('off', 'local') THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, %[1]t),
		pg_catalog.set_config('client_min_messages', 'warning', %[1]t)`, transaction)
}

// inRecovery asks whether the server is a standby, and makes commits durable.
func inRecovery(ctx context.Context, conn driver.Conn) (bool, error) {
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx,
		`SELECT pg_catalog.pg_is_in_recovery(), `+durable(false), nil)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	row := make([]driver.Value, 3)
	if err := rows.Next(row); err != nil {
		return false, err
	}
	recovering, ok := row[0].(bool)
	if !ok {
		return false, errors.New("the server does not say whether it is a primary")
	}
	return recovering, nil
}
