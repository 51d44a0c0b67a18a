package operations

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/keyporter/keyporter/store/directory"
)

// Audit is the record of changes.
type Audit struct{ in *directory.Audit }

// Audit returns the operations on the audit.
func (o Operator) Audit() Audit { return Audit{directory.NewAudit(o.db)} }

// AuditFilter selects entries of the audit.
type AuditFilter struct {
	Name  string        // of a plan, account or user; "": all
	Since time.Duration // only the last time; 0: from the beginning
	Limit int           // the maximum number of entries, the newest: 1 to 100,000
}

// maxAuditLimit bounds the rows that one call reads.
const maxAuditLimit = 100_000

// Check returns a [FieldError] if the filter is invalid.
func (f AuditFilter) Check() error {
	switch {
	case f.Limit < 1 || f.Limit > maxAuditLimit:
		return FieldError{"limit", fmt.Sprintf("want 1 to %d", maxAuditLimit)}
	case f.Since < 0:
		return FieldError{"since", fmt.Sprintf("%v is in the future", f.Since)}
	}
	return nil
}

// Each lists the selected entries, newest first. A filter that is invalid is the first error.
func (a Audit) Each(ctx context.Context, f AuditFilter) iter.Seq2[directory.AuditEntry, error] {
	if err := f.Check(); err != nil {
		return func(yield func(directory.AuditEntry, error) bool) { yield(directory.AuditEntry{}, err) }
	}
	filter := directory.AuditFilter{Name: f.Name, Limit: f.Limit}
	if f.Since > 0 {
		filter.Since = time.Now().Add(-f.Since)
	}
	return a.in.Each(ctx, filter)
}

// Page lists at most n entries about a name, or all if it is "", since a time, newest first after a
// cursor.
func (a Audit) Page(ctx context.Context, name string, since time.Time, cursor string, n int) (Page[directory.AuditEntry], error) {
	if err := checkPage(n); err != nil {
		return Page[directory.AuditEntry]{}, err
	}
	return newPage(a.in.Page(ctx, directory.AuditFilter{Name: name, Since: since}, cursor, n))
}
