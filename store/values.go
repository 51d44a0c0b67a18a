package store

import (
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/keyporter/keyporter/usage"
)

// namePattern keeps names safe in a header, a label and a path.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$`)

// keyShape matches a key with any prefix, and a session. A key entered as a name by mistake would
// be stored and shown in the clear. A key whose prefix does not end in '_' or '-' is not
// recognised.
var keyShape = regexp.MustCompile(`^[A-Za-z0-9_-]{0,15}[_-][0-9a-f]{48}$`)

// CheckName rejects the name of a plan, account or user that is not safe in a header, a label and a
// path.
func CheckName(kind, name string) error {
	if keyShape.MatchString(name) {
		return LooksLikeKey(kind)
	}
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%s name %q is %w: 1 to 128 letters, digits and . _ @ + -, the first a letter or digit", kind, name, ErrInvalid)
	}
	return nil
}

// LooksLikeKey is the [ErrInvalid] of a name that may be a key. It does not quote it.
func LooksLikeKey(kind string) error {
	return fmt.Errorf("the %s name is %w: it looks like a key", kind, ErrInvalid)
}

// NewID returns an id with 64 random bits, which may be shown and logged.
func NewID(prefix string) string {
	var b [8]byte
	rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}

// NowMillis returns the time as it is stored, in Unix milliseconds.
func NowMillis() int64 { return time.Now().UnixMilli() }

// FromMillis reads a stored time. Plain SQL or a made-up access log may have written one that no
// text can hold; it becomes the nearest possible time, so that it does not break the list it is in.
func FromMillis(ms int64) time.Time {
	return time.UnixMilli(min(max(ms, firstMillis), lastMillis)).UTC()
}

// The bounds of times in RFC 3339, and so in JSON: the years 0 to 9999.
var (
	firstMillis = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	lastMillis  = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() - 1
)

// LimitOf reads a limit of requests or credits: NULL is [usage.Unlimited].
func LimitOf(n sql.NullInt64) usage.Limit {
	if !n.Valid {
		return usage.Unlimited
	}
	return usage.Limit(n.Int64)
}

// Rows encodes rows for a statement that reads them with [Dialect.Rows].
func Rows[T any](all []T) string {
	text, err := json.Marshal(all)
	if err != nil {
		panic(err) // impossible: plain fields
	}
	return string(text)
}

// Column is a field of a row of JSON, as SQL.
func Column(name string) string { return `(e.value ->> '` + name + `')` }

// Number is [Column] as a number.
func Number(name string) string { return `CAST(` + Column(name) + ` AS BIGINT)` }
