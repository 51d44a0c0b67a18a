package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"testing/fstest"
	"time"
)

// ServiceRights returns the grants for the role of a service, such as "SELECT, INSERT ON keys".
func ServiceRights() (grants []string) {
	for _, t := range serviceRights {
		var rights []string
		for _, right := range rightNames {
			if strings.Contains(t.rights, right[:1]) {
				rights = append(rights, right)
			}
		}
		grants = append(grants, strings.Join(rights, ", ")+" ON "+t.table)
	}
	return grants
}

// Triggers returns the checked triggers, and on SQLite the statement that creates each.
func (db *DB) Triggers() (names map[string]bool, texts map[string]string) {
	names = map[string]bool{}
	for _, name := range db.Dialect.recorders.names {
		names[name] = true
	}
	return names, db.Dialect.recorders.texts
}

// ResolvedBy returns c with host names resolved by f.
func (c Config) ResolvedBy(f func(host string) ([]netip.Addr, error)) Config {
	c.resolve = func(_ context.Context, host string) ([]netip.Addr, error) { return f(host) }
	return c
}

// MigrationTexts returns the migrations of a database in their order.
func MigrationTexts(folder fs.FS, database string) (texts []string, err error) {
	all, err := migrationsOf(folder, database)
	for _, m := range all {
		texts = append(texts, m.texts...)
	}
	return texts, err
}

// Later returns c for a later build, with one more migration.
func (c Config) Later(version int, text string) Config {
	all := fstest.MapFS{fmt.Sprintf("migrations/%05d_later.sql", version): {Data: []byte(text)}}
	err := fs.WalkDir(migrationFiles, ".", func(path string, file fs.DirEntry, err error) error {
		if err == nil && !file.IsDir() {
			text, failed := fs.ReadFile(migrationFiles, path)
			all[path], err = &fstest.MapFile{Data: text}, failed
		}
		return err
	})
	if err != nil {
		panic(err) // they are part of the program
	}
	c.schema = all
	return c
}

// Hold occupies all connections of operators until the returned function is called.
func (db *DB) Hold(ctx context.Context) (release func(), err error) {
	var all []*sql.Conn
	release = func() {
		for _, conn := range all {
			conn.Close()
		}
	}
	for range DivideConnections(DefaultConnections)[forChanges] {
		conn, err := db.Changes.Conn(ctx)
		if err != nil {
			release()
			return nil, err
		}
		all = append(all, conn)
	}
	return release, nil
}

// idle is a connection without requests.
type idle struct{ session }

func (idle) Close() error  { return nil }
func (idle) IsValid() bool { return true }

// PoolOf returns a pool with connections made by open: a function that takes a connection, and one
// that closes the pool.
func PoolOf(open func(context.Context) error) (connect func(context.Context) error, end func()) {
	p := &connPool{all: newConnections(0), purpose: forChanges, opening: map[*attempt]struct{}{}, open: func(ctx context.Context) (*link, error) {
		return &link{session: idle{}, ends: time.Now().Add(time.Hour)}, open(ctx)
	}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.all.pools = []*connPool{p}
	return func(ctx context.Context) error { _, err := p.Connect(ctx); return err }, func() { p.Close() }
}

// EndDuring dials an address, ends the context of the attempt, and reports whether the connection
// still counts as open.
func EndDuring(address string) (open bool, err error) {
	ctx, end := context.WithCancel(context.Background())
	defer end()
	d := &dialer{ctx: ctx}
	if _, err := d.Dial("tcp", address); err != nil {
		return false, err
	}
	end()
	_, open = d.established()
	return open, nil
}
