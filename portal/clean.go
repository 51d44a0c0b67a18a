package portal

import (
	"strings"
	"time"
	"unicode"
)

// clean returns a text that a client has chosen without what shows nothing itself and may change
// how others show: controls, those that turn the direction of text among them, and the ends of
// lines.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// The first and the last moment that can be written in JSON.
var (
	firstTime = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// written returns the moment nearest to at that can be written.
func written(at time.Time) time.Time {
	switch at = at.UTC(); {
	case at.Before(firstTime):
		return firstTime
	case at.After(lastTime):
		return lastTime
	}
	return at
}

// clean makes what was told of a use fit to be shown.
func (u *Usage) clean() {
	u.Address, u.Agent = clean(u.Address), clean(u.Agent)
	if !u.Last.IsZero() {
		u.Last = written(u.Last)
	}
}

// clean makes a request fit to be shown.
func (r *Request) clean() {
	r.At, r.Method, r.Path = written(r.At), clean(r.Method), clean(r.Path)
}
