package ratelimit

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A repeated Check gets the charge of its own first Check, and of no other, however many requests
// there are, while older ones are forgotten.
func TestRecentRequestsAreFoundWhileOthersAreForgotten(t *testing.T) {
	// 5, 50, 500 at a time.
	for _, every := range []time.Duration{time.Second, 100 * time.Millisecond, 10 * time.Millisecond} {
		var m recentSet
		lives := []time.Duration{5 * time.Second, 7 * time.Second, 5500 * time.Millisecond}
		for i := range 2000 {
			now := time.Duration(i) * every
			m.expire(now)
			m.add(admitted{id: spread(i + 1), at: now, number: uint64(i), life: uint32(lives[i%3].Milliseconds())})
			for back := range min(i+1, 800) {
				first, old := m.findRecent(spread(i+1-back), now), time.Duration(back)*every >= lives[(i-back)%3]
				if known := first != nil; known == old || known && first.number != uint64(i-back) {
					t.Fatalf("one every %v, after %d the one %d before: %+v", every, i, back, first)
				}
			}
			m.shrink()
		}
		if m.expire(time.Hour); m.first != m.next || slices.ContainsFunc(m.index, func(entry uint64) bool { return entry != 0 }) {
			t.Errorf("after an hour there are %d requests, and an index of %x", m.next-m.first, m.index)
		}
		if m.shrink(); m.ring != nil || m.index != nil {
			t.Errorf("no request takes the memory of %d", len(m.ring))
		}
	}
}

// spread is a random id for a number.
func spread(i int) uint64 { return valid(rand.New(rand.NewPCG(1, uint64(i))).Uint64()) }

// Marks agree with a list, in whatever order they are added, removed and forgotten, also if ids
// crowd in one place of the index, if their upper halves are equal, and if the numbers of requests
// wrap around.
func TestRecentRequestsAgreeWithAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := recentSet{}
		m.first = rapid.SampledFrom([]uint32{0, 1<<32 - 5}).Draw(t, "first number")
		m.next = m.first
		var list []admitted
		var now time.Duration
		numbers := uint64(0)
		id := rapid.Custom(func(t *rapid.T) uint64 {
			return valid(rapid.Uint64Range(0, 40).Draw(t, "upper")<<34 | rapid.Uint64Range(0, 2).Draw(t, "lower"))
		})
		t.Repeat(map[string]func(*rapid.T){
			"time passes": func(t *rapid.T) {
				now += rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 10 * time.Second, 2 * maxRemembered}).Draw(t, "by")
				m.expire(now)
				list = slices.DeleteFunc(list, func(one admitted) bool { return now.Milliseconds() >= one.at.Milliseconds()+int64(one.life) })
			},
			"a request": func(t *rapid.T) {
				id := id.Draw(t, "id")
				at := slices.IndexFunc(list, func(one admitted) bool { return one.id == id })
				switch got := m.findRecent(id, now); {
				case at < 0 && got != nil || at >= 0 && (got == nil || *got != list[at]):
					t.Fatalf("%x: %+v, want number %d of %+v", id, got, at, list)
				case got == nil:
					numbers++
					one := admitted{id: id, at: now, number: numbers, life: rapid.SampledFrom([]uint32{5_000, 7_000, 60_000}).Draw(t, "life")}
					m.add(one)
					list = append(list, one)
				case rapid.Bool().Draw(t, "taken back"):
					m.remove(got)
					list = slices.Delete(list, at, at+1)
				}
			},
			"memory is looked after": func(*rapid.T) { m.shrink() },
		})
	})
}
