package credits

import (
	"sync"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// shards is the number of locks of [Allocator].
const shards = 256

// shard is a part of the wallets, with a lock of its own, which guards all fields and the wallets.
type shard struct {
	mu      sync.Mutex
	wallets map[owner]*wallet // of this month
	spare   []wallet          // not used yet
	dirty   []*wallet         // to be reported
	urgent  []*wallet         // likewise, and requests wait for these
}

// wallet returns the wallet of an owner in a month, and makes it if there is none.
func (s *shard) wallet(o owner, month usage.Month) *wallet {
	w := s.wallets[o]
	if w != nil && w.pool.Month != month {
		s.retire(o, w)
		w = nil
	}
	if w == nil {
		w = s.newWallet(ledger.Pool{Month: month, Kind: o.kind, Name: o.name})
		s.wallets[o] = w
	}
	return w
}

// chunk is the number of wallets in one object of 8 KiB. The garbage collector visits each object
// separately, and finds neighbors much faster. All wallets live for the same month.
const chunk = 28

// newWallet returns a wallet of a pool with no use yet.
func (s *shard) newWallet(pool ledger.Pool) *wallet {
	if len(s.spare) == 0 {
		s.spare = make([]wallet, chunk)
	}
	w := &s.spare[0]
	s.spare = s.spare[1:]
	w.pool, w.payers = pool, w.first[:0]
	return w
}

// retire makes a wallet of another month give back its remaining credits.
func (s *shard) retire(o owner, w *wallet) {
	w.next.giveBack = true
	s.mark(w)
	delete(s.wallets, o)
}

// mark adds a wallet to the next report.
func (s *shard) mark(w *wallet) {
	if !w.lists.dirty {
		w.lists.dirty = true
		s.dirty = append(s.dirty, w)
	}
}

// wait adds the cost of a request to the wallet's need, and returns the round that reports it.
func (s *shard) wait(w *wallet, cost int64) *round {
	w.reserve.short = w.reserve.short || cost > 0
	if w.next.need += cost; w.next.round == nil {
		w.next.round = &round{done: make(chan struct{})}
		s.urgent = append(s.urgent, w)
	}
	return w.next.round
}

// leave subtracts the cost from the need again.
func (s *shard) leave(w *wallet, cost int64) {
	s.mu.Lock()
	w.next.need -= cost
	s.mu.Unlock()
}
