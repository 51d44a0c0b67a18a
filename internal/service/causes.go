package service

import (
	"errors"

	"github.com/keyporter/keyporter/credits"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// causes are the names, in metrics and in the log, of the reasons why a Check could not be decided.
// The first match counts. docs/runbooks.md explains what to do about each.
var causes = []struct {
	name  string
	error error
}{
	{"no_lease", lease.ErrNotHeld},
	{"database", cache.ErrRead},
	{"busy", cache.ErrBusy},
	{"stale", cache.ErrStale},
	{"valkey", ratelimit.ErrDown},
	{"credits", credits.ErrUndecided},
}

func causeNames() (names []string) {
	for _, c := range causes {
		names = append(names, c.name)
	}
	return names
}

// causeOf returns the name of an error's cause, or "" if no cause matches.
func causeOf(err error) string {
	for _, c := range causes {
		if errors.Is(err, c.error) {
			return c.name
		}
	}
	return ""
}
