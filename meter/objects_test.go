//go:build !race

package meter

import (
	"testing"
	"time"
	"unsafe"

	"github.com/keyporter/keyporter/meter/ledger"
)

// An active user needs few objects, because the garbage collector visits each: one for the rate
// log, and a part of one for the credits.
func TestAUserIsFewObjects(t *testing.T) {
	var log rolling
	if n := testing.AllocsPerRun(100, func() { log = rolling(nil).add(0, time.Minute, 60) }); n != 1 {
		t.Errorf("a new log: %v objects, want 1", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		for log = nil; log.n() < 60; {
			log = log.add(0, time.Minute, 60)
		}
	}); n != 5 { // for 4, 8, 16, 32 and 60 requests
		t.Errorf("a log that grows to 60 requests: %v objects, want 5", n)
	}
	var s walletShard
	if n := testing.AllocsPerRun(10, func() {
		for range chunk {
			w := s.newWallet(ledger.Pool{Name: "ada"})
			w.payerOf(user{"ada", "acme"}).used++
		}
	}); n != 1 {
		t.Errorf("%d wallets with a payer each: %v objects, want 1", chunk, n)
	}
	const header = 8 // the runtime's own, of an object of this size with pointers
	if size := chunk*unsafe.Sizeof(wallet{}) + header; size > 8<<10 || size+unsafe.Sizeof(wallet{}) <= 8<<10 {
		t.Errorf("a chunk takes %d bytes: choose another number of wallets, so that it fits into 8 KiB", size)
	}
}
