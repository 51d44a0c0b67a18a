package meter

import (
	"fmt"
	"testing"
	"time"
)

// A second Check is told the charge of its own first one, and of no other, however many there are, while older
// ones are forgotten.
func TestMarksAreFoundWhileOthersAreForgotten(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 100 * time.Millisecond, 10 * time.Millisecond} { // 5, 50, 500 at a time
		var m marks
		for i := range 2000 {
			now := time.Duration(i) * every
			m.expire(now)
			m.add(mark{id: uint64(i + 1), at: now, charge: fmt.Sprint(i)})
			for back := range 600 {
				first, old := m.find(uint64(i+1-back)), time.Duration(back)*every >= rememberFor
				if known := first != nil; known == (old || back > i) || known && first.charge != fmt.Sprint(i-back) {
					t.Fatalf("one every %v, after %d the one %d before: %+v", every, i, back, first)
				}
			}
		}
	}
}
