package directory

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
)

// Mark is the part of a digest that a list in memory keeps.
func Mark(d apikey.Digest) uint64 { return binary.BigEndian.Uint64(d[:8]) }

// EachImported calls each for the mark of every key of other systems that an import has brought, by
// the number of the import, or of all imports if that is "". Revoked keys are among them.
func (l *Lookups) EachImported(ctx context.Context, number string, each func(mark uint64) error) error {
	first, last := int64(-1<<63), int64(1<<63-1)
	if number != "" {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil // no import has this number
		}
		first, last = n, n
	}
	type row struct {
		number int64
		digest []byte
	}
	// No digest is empty, so that the place before an import is one with an empty digest.
	rows := store.Pages(ctx, l.db, "imported keys", func(s store.Scanner) (r row, err error) { return r, s.Scan(&r.number, &r.digest) },
		`SELECT imported, digest FROM keys WHERE imported IS NOT NULL AND imported <= $1 AND (imported, digest) > ($2, $3)
			ORDER BY imported, digest LIMIT $4`,
		[]any{last, first, []byte{}}, func(r row) []any { return []any{last, r.number, r.digest} })
	for r, err := range rows {
		if err != nil {
			return err
		}
		var d apikey.Digest
		if copy(d[:], r.digest) != len(d) {
			return fmt.Errorf("an imported key has a digest of %d bytes", len(r.digest))
		}
		if err := each(Mark(d)); err != nil {
			return err
		}
	}
	return nil
}
