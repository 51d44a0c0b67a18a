package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// Bulk adds many rows to a table: on PostgreSQL with COPY, on SQLite with statements of many rows.
// It is not safe for concurrent use. While it is open, the transaction takes no other statement.
type Bulk struct {
	ctx     context.Context
	tx      *sql.Tx
	copying *sql.Stmt // on PostgreSQL
	insert  string    // on SQLite: a statement up to its values
	columns int
	values  []any // not yet written
}

// bulkRows is the number of rows in one statement of SQLite.
const bulkRows = 200

// NewBulk begins to add rows with these columns.
func (db *DB) NewBulk(ctx context.Context, tx *sql.Tx, table string, columns ...string) (*Bulk, error) {
	b := &Bulk{ctx: ctx, tx: tx, columns: len(columns)}
	if db.Dialect.name != "postgres" {
		b.insert = fmt.Sprintf(`INSERT INTO %s (%s) VALUES `, table, strings.Join(columns, ", "))
		return b, nil
	}
	var err error
	b.copying, err = tx.PrepareContext(ctx, fmt.Sprintf(`COPY %s (%s) FROM STDIN`, table, strings.Join(columns, ", ")))
	return b, err
}

// Add adds a row.
func (b *Bulk) Add(values ...any) error {
	if b.copying != nil {
		_, err := b.copying.ExecContext(b.ctx, values...)
		return err
	}
	b.values = append(b.values, values...)
	if len(b.values) < bulkRows*b.columns {
		return nil
	}
	return b.write()
}

func (b *Bulk) write() error {
	if len(b.values) == 0 {
		return nil
	}
	row := "(?" + strings.Repeat(", ?", b.columns-1) + ")"
	_, err := b.tx.ExecContext(b.ctx, b.insert+row+strings.Repeat(", "+row, len(b.values)/b.columns-1), b.values...)
	b.values = b.values[:0]
	return err
}

// Close writes the rest.
func (b *Bulk) Close() error {
	if b.copying == nil {
		return b.write()
	}
	_, err := b.copying.ExecContext(b.ctx)
	if closed := b.copying.Close(); err == nil {
		err = closed
	}
	return err
}
