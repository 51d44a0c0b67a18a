package e2e_test

import (
	"fmt"
	"sync"
	"testing"
)

// A Check makes few objects in the whole process, from socket to socket: key, credits, rate limit,
// receipt, and everything that runs beside them. It makes 4 to 6 if the machine has nothing else to
// do, and more if Checks have to wait; with grpc-go nearly 60.
func TestACheckMakesFewObjects(t *testing.T) {
	const checks, callers, most = 8000, 8, 20
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	key := s.user("ada", "pro", "--rate-limit", "10000", "--rate-window", "1s", "--credits", "1000000")
	check := newChecker(t, s.replicas[0])
	ask := func(n int) {
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for range n / callers {
					if status, err := check.key(key); status != 200 {
						t.Error(status, err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	objects := func() float64 { return s.replicas[0].number(t, "go_memstats_mallocs_total") }
	ask(checks / 10)
	objects() // the metrics are read once before, so that this costs the same each time
	before := objects()
	idle := objects() - before
	before = objects()
	ask(checks)
	each := (objects() - before - idle) / checks
	if text := fmt.Sprintf("%.1f objects for each Check, %.0f for reading the metrics", each, idle); each > most {
		t.Error(text)
	} else {
		t.Log(text)
	}
}
