package usage

import "time"

// Day is a user's charges on one day, in UTC.
type Day struct {
	Date     time.Time
	Used     int64 // credits, including refunded ones
	Refunded int64
}

// DayOf returns a day in UTC as a number such as 20261124.
func DayOf(t time.Time) int64 {
	t = t.UTC()
	return int64(t.Year()*10000 + int(t.Month())*100 + t.Day())
}
