package ratelimit

import (
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/usage"
)

// An attempt that may not wait does not ask Valkey, and nothing is counted, there or here. While
// Valkey is down, memory decides at once.
func TestAnAttemptThatMayNotWait(t *testing.T) {
	server := partstest.Valkey(t)
	d := partstest.StartProxy(t, partstest.ProxyConfig{To: server.Addr()})
	s := share(t, d.Addr(), SharedConfig{Timeout: 10 * time.Second})
	partstest.Eventually(t, "Valkey is known", func() bool { return !s.down.Load() })
	ctx := nowait.Context(t.Context())
	one := Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Hour}
	if v, err := s.Admit(ctx, one); err != nowait.ErrWouldWait || v != (Verdict{}) {
		t.Errorf("while Valkey answers: %+v, %v", v, err)
	}
	paid := Attempt{User: "ann", ID: "2", Limit: usage.Unlimited, Window: time.Hour, Charge: ChargeRef{Name: "charge"}}
	if v, err := s.Admit(ctx, paid); err != nowait.ErrWouldWait || v != (Verdict{}) {
		t.Errorf("a charge without a limit: %+v, %v", v, err)
	}
	if n, here := counted(t, server, "ann"), s.Local().Users(); n != 0 || here != 0 {
		t.Errorf("Valkey counts %d requests, and memory has %d users", n, here)
	}
	if v, err := s.Admit(t.Context(), one); err != nil || !v.Admitted || v.Duplicate || v.Remaining != 59 {
		t.Errorf("repeated: %+v, %v", v, err)
	}
	d.Move("")
	partstest.Eventually(t, "Valkey is down", func() bool { return s.down.Load() })
	if v, err := s.Admit(ctx, Attempt{User: "bob", ID: "1", Limit: 60, Window: time.Hour}); err != nil || !v.Admitted || v.Remaining != 59 {
		t.Errorf("while Valkey is down: %+v, %v", v, err)
	}
}
