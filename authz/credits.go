package authz

import (
	"fmt"
	"strconv"
	"time"
)

// Pool says whose the credits of a plan are.
type Pool uint8

// The pools.
const (
	PoolUser    Pool = iota // each user has the plan's credits
	PoolAccount             // all users of the account share them
)

// String returns the name of p in the database and in commands.
func (p Pool) String() string {
	if p == PoolAccount {
		return "account"
	}
	return "user"
}

// ParsePool reads the name of a pool.
func ParsePool(s string) (Pool, error) {
	for _, p := range []Pool{PoolUser, PoolAccount} {
		if s == p.String() {
			return p, nil
		}
	}
	return PoolUser, fmt.Errorf("pool %q: want user or account", s)
}

// Month is a calendar month in UTC, such as 202611. Credits are given for one. The zero Month is none.
type Month int32

// MonthOf returns the month of a moment.
func MonthOf(t time.Time) Month {
	t = t.UTC()
	return Month(t.Year()*100 + int(t.Month()))
}

// ParseMonth reads a month such as 2026-11.
func ParseMonth(s string) (Month, error) {
	t, err := time.Parse("2006-01", s)
	if err != nil {
		return 0, fmt.Errorf("month %q: want a year and a month such as 2026-11", s)
	}
	return MonthOf(t), nil
}

// String returns the month in the form 2026-11.
func (m Month) String() string { return fmt.Sprintf("%04d-%02d", m/100, m%100) }

// Start returns the first moment of the month.
func (m Month) Start() time.Time {
	return time.Date(int(m/100), time.Month(m%100), 1, 0, 0, 0, 0, time.UTC)
}

// End returns the first moment after the month.
func (m Month) End() time.Time { return m.Start().AddDate(0, 1, 0) }

// Previous returns the month before m.
func (m Month) Previous() Month { return MonthOf(m.Start().AddDate(0, 0, -1)) }

// Credits is where a user stands with this month's credits. The zero Credits says nothing.
type Credits struct {
	Counted bool  // the rest is known
	Used    int64 // by everybody who shares them
	Limit   Limit // of the month, with what was granted beside the plan
	// Reset is how long it takes until the month is over.
	Reset time.Duration
}

// Limited reports whether there is a limit.
func (c Credits) Limited() bool { return c.Counted && c.Limit != Unlimited }

// Remaining returns how many credits are left; 0 where there is no limit.
func (c Credits) Remaining() int64 {
	if c.Limit == Unlimited {
		return 0
	}
	return max(0, int64(c.Limit)-c.Used)
}

// MarshalJSON returns the figures as clients see them: remaining is "unlimited" where limit is.
func (c Credits) MarshalJSON() ([]byte, error) {
	return c.appendJSON(nil), nil
}

func (c Credits) appendJSON(b []byte) []byte {
	remaining := Unlimited
	if c.Limit != Unlimited {
		remaining = Limit(c.Remaining())
	}
	b = strconv.AppendInt(append(b, `{"used":`...), c.Used, 10)
	b = c.Limit.appendJSON(append(b, `,"limit":`...))
	b = remaining.appendJSON(append(b, `,"remaining":`...))
	return append(b, '}')
}

// text is what a client is told who has used up the credits.
func (c Credits) text() string {
	return "Monthly credit limit reached (" + c.Limit.String() + "). Resets next month."
}
