//go:build !race

package credits

import (
	"testing"
	"unsafe"

	"github.com/keyporter/keyporter/credits/ledger"
)

// Wallets share objects, because the garbage collector visits each.
func TestAWalletIsAPartOfAnObject(t *testing.T) {
	var s shard
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
