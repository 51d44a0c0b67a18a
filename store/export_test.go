package store

import (
	"context"
	"database/sql"
	"net/netip"
)

// SQL returns the connections of operators, for a look at the tables.
func (db *DB) SQL() *sql.DB { return db.changes }

// Logged runs f in a transaction of the log of requests.
func (db *DB) Logged(ctx context.Context, f func(*sql.Tx) error) error { return db.logged(ctx, f) }

// ResolvedBy returns c with the names of hosts resolved by f.
func (c Config) ResolvedBy(f func(host string) ([]netip.Addr, error)) Config {
	c.resolve = func(_ context.Context, host string) ([]netip.Addr, error) { return f(host) }
	return c
}

// Hold takes all connections of operators that there may be, until the function is called that it returns.
func (db *DB) Hold(ctx context.Context) (release func(), err error) {
	var all []*sql.Conn
	release = func() {
		for _, conn := range all {
			conn.Close()
		}
	}
	for range SharesOf(DefaultConnections)[changeShare] {
		conn, err := db.changes.Conn(ctx)
		if err != nil {
			release()
			return nil, err
		}
		all = append(all, conn)
	}
	return release, nil
}
