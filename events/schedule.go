package events

import (
	"math/rand/v2"
	"time"
)

const (
	firstWait   = 5 * time.Second
	longestWait = time.Hour
	// givenUpAfter is the time of attempts after which an event is put aside.
	givenUpAfter = 24 * time.Hour
)

// nextWait returns the wait before the next attempt after a number of failed ones: 5 s, 15 s, 45 s
// and so on, at most an hour, each up to a fifth shorter or longer. A receiver may ask for more, up
// to an hour.
func nextWait(failed int, asked time.Duration) time.Duration {
	wait := firstWait
	for range min(failed, 10) - 1 {
		wait *= 3
	}
	wait = min(wait, longestWait)
	wait += time.Duration((rand.Float64()*0.4 - 0.2) * float64(wait))
	return max(wait, min(asked, longestWait))
}
