package usage

import (
	"fmt"
	"strconv"
	"time"
)

// PoolKind is the kind of a plan's credit pools: one per user or one per account.
type PoolKind uint8

// The kinds of pools.
const (
	PoolUser    PoolKind = iota // each user has the plan's credits
	PoolAccount                 // all users of the account share the plan's credits
)

// String returns the name of p in the database and in commands.
func (p PoolKind) String() string {
	if p == PoolAccount {
		return "account"
	}
	return "user"
}

// ParsePoolKind parses the name of a kind of pool.
func ParsePoolKind(s string) (PoolKind, error) {
	for _, p := range []PoolKind{PoolUser, PoolAccount} {
		if s == p.String() {
			return p, nil
		}
	}
	return PoolUser, fmt.Errorf("pool %q: want user or account", s)
}

// Month is a calendar month in UTC, such as 202611. Credits are granted per month. The zero Month
// means none.
type Month int32

// MonthOf returns the month of t in UTC.
func MonthOf(t time.Time) Month {
	t = t.UTC()
	return Month(t.Year()*100 + int(t.Month()))
}

// ParseMonth parses a month such as 2026-11.
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

// Credits is the usage of this month's credits. The zero Credits means that it is unknown.
type Credits struct {
	Counted bool  // the other fields are known
	Used    int64 // by all users of the pool
	Limit   Limit // for the month, including extra grants
	// Reset is the time left until the end of the month.
	Reset time.Duration
}

// Limited reports whether there is a limit.
func (c Credits) Limited() bool { return c.Counted && c.Limit != Unlimited }

// Remaining returns the credits left; 0 if there is no limit.
func (c Credits) Remaining() int64 {
	if c.Limit == Unlimited {
		return 0
	}
	return max(0, int64(c.Limit)-c.Used)
}

// MarshalJSON returns the public form of the figures: remaining is "unlimited" if limit is.
func (c Credits) MarshalJSON() ([]byte, error) {
	return c.AppendJSON(nil), nil
}

// AppendJSON appends the result of [Credits.MarshalJSON] to b.
func (c Credits) AppendJSON(b []byte) []byte {
	remaining := Unlimited
	if c.Limit != Unlimited {
		remaining = Limit(c.Remaining())
	}
	b = strconv.AppendInt(append(b, `{"used":`...), c.Used, 10)
	b = c.Limit.appendJSON(append(b, `,"limit":`...))
	b = remaining.appendJSON(append(b, `,"remaining":`...))
	return append(b, '}')
}
