package usage

import (
	"fmt"
	"strconv"
	"strings"
)

// Limit is a number of requests or credits, or [Unlimited]. The zero Limit admits none.
type Limit int64

// Unlimited is the [Limit] that never refuses.
const Unlimited Limit = -1

// String returns the number, or "unlimited".
func (l Limit) String() string {
	if l == Unlimited {
		return "unlimited"
	}
	return strconv.FormatInt(int64(l), 10)
}

// MarshalText implements [encoding.TextMarshaler].
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// MarshalJSON returns the number, or "unlimited" in quotes.
func (l Limit) MarshalJSON() ([]byte, error) {
	return l.appendJSON(nil), nil
}

func (l Limit) appendJSON(b []byte) []byte {
	if l == Unlimited {
		return append(b, `"unlimited"`...)
	}
	return strconv.AppendInt(b, int64(l), 10)
}

// UnmarshalJSON parses the output of [Limit.MarshalJSON].
func (l *Limit) UnmarshalJSON(b []byte) (err error) {
	*l, err = ParseLimit(strings.Trim(string(b), `"`))
	return err
}

// ParseLimit parses a number from 0 on, or "unlimited".
func ParseLimit(s string) (Limit, error) {
	if s == Unlimited.String() {
		return Unlimited, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("limit %q: want a number from 0 on, or unlimited", s)
	}
	return Limit(n), nil
}
