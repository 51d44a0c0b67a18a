package portal

import (
	"strings"
	"time"
	"unicode"
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
	firstTime = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// written returns at, clamped to the range that JSON can represent.
func written(at time.Time) time.Time {
	switch at = at.UTC(); {
	case at.Before(firstTime):
		return firstTime
	case at.After(lastTime):
		return lastTime
	}
	return at
}

// clean makes a usage safe to display.
func (u *Usage) clean() {
	u.Address, u.Agent = clean(u.Address), clean(u.Agent)
	if !u.Last.IsZero() {
		u.Last = written(u.Last)
	}
}

// clean makes a request safe to display.
func (r *Request) clean() {
	r.At, r.Method, r.Path = written(r.At), clean(r.Method), clean(r.Path)
}
