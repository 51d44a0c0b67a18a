package usage

import "time"

// KeyUsage sums up the requests with one key, or with several. The figures of the last hour and day
// are accurate to ten minutes.
type KeyUsage struct {
	LastHour, LastDay int64     // requests
	Addresses, Agents int64     // distinct ones in the last day
	All               int64     // requests within the retention
	Last              time.Time // zero: never
	Address, Agent    string    // of the last request with a known source
}
