package portal

import (
	"strings"
	"time"
	"unicode"

	"github.com/keyporter/keyporter/usage"
)

// clean removes invisible characters from a text chosen by a client, because they can change how
// other text is displayed: controls, including those for the direction of text, and line breaks.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// JSON can represent times in this range only.
var (
	minTime = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	maxTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// clampTime returns at, clamped to the range that JSON can represent.
func clampTime(at time.Time) time.Time {
	switch at = at.UTC(); {
	case at.Before(minTime):
		return minTime
	case at.After(maxTime):
		return maxTime
	}
	return at
}

// moment returns t in UTC, or nil for the zero time.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// cleanKeyUsage makes a usage safe to display.
func cleanKeyUsage(u *usage.KeyUsage) {
	u.Address, u.Agent = clean(u.Address), clean(u.Agent)
	if !u.Last.IsZero() {
		u.Last = clampTime(u.Last)
	}
}

// cleanRecord makes a request safe to display.
func cleanRecord(r *usage.Record) {
	r.At, r.Method, r.Path = clampTime(r.At), clean(r.Method), clean(r.Path)
}
