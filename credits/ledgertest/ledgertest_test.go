package ledgertest_test

import (
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits/ledgertest"
	"github.com/keyporter/keyporter/usage"
)

// subject is the ledger in memory, as the suite uses it.
type subject struct {
	*ledgertest.Ledger
	t *testing.T
}

func (s subject) SetPlan(pool usage.PoolKind, credits usage.Limit) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Kind, s.Plan, s.Epoch = pool, credits, s.Epoch+1
}

func (s subject) Advance(d time.Duration) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Jumped += d
}

func (s subject) Audit() {
	s.t.Helper()
	s.Mu.Lock()
	s.Refused = nil // as the suite intends
	s.Mu.Unlock()
	s.MustBalance(s.t)
}

// The ledger in memory keeps the promises of the one in a database, so a test on it is worth as
// much.
func TestConformance(t *testing.T) {
	ledgertest.Conformance(t, func(t *testing.T) ledgertest.Subject { return subject{ledgertest.New(100), t} })
}
