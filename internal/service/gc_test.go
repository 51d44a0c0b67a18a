package service

import "testing"

// The collector leaves room for a fixed amount of garbage with a small heap, and for twice the heap
// with a larger one. It never runs more often than by default.
func TestGCPercent(t *testing.T) {
	for _, row := range []struct {
		live uint64
		want int
	}{{0, 2000}, {1 << 20, 2000}, {16 << 20, 400}, {32 << 20, 200}, {64 << 20, 200}, {1 << 30, 200}} {
		if got := gcPercent(row.live); got != row.want {
			t.Errorf("%d MiB in use: %d, want %d", row.live>>20, got, row.want)
		}
	}
}
