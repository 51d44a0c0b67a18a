package ratelimit

import (
	"time"

	"github.com/keyporter/keyporter/usage"
)

// admitted is an admitted request whose Check may be repeated. It contains no pointer: under load
// there are hundreds of thousands, and the garbage collector need not scan them.
type admitted struct {
	id          uint64 // of the request and its user; 0: released
	at          time.Duration
	number      uint64 // of the charge
	month       usage.Month
	fingerprint uint32 // of the charge, as in [ChargeRef]
	life        uint32 // how long it is remembered, in milliseconds
	counted     bool   // in the log of its user
	asked       bool   // as in [Attempt]
	repeated    bool   // a repeated Check was answered as admitted
}

// over reports whether no Check of the request is repeated any more.
func (a *admitted) over(now time.Duration) bool {
	return a.at <= now-time.Duration(a.life)*time.Millisecond
}

// recentSet holds the recently admitted requests, oldest first, with an index to find them. One
// whose time is over is not found any more, but keeps its place until those before it are dropped.
type recentSet struct {
	// ring has a power of two of places, so that numbers are masked: request number i is at i. It
	// holds the requests from first on, before next. Numbers may wrap around.
	ring        []admitted
	first, next uint32
	// index is a hash table with open addressing and linear probing, twice as large as the ring. An
	// entry is the upper half of an id, which is random, and the number of its request. An entry
	// whose upper half is 0 is empty.
	index []uint64
}

// valid makes an id that the index can hold out of a random number.
func valid(random uint64) uint64 { return random | 1<<32 }

const smallestRing = 8

func (m *recentSet) at(number uint32) *admitted { return &m.ring[number&uint32(len(m.ring)-1)] }

// home is where the search for an entry begins: by the bits that are random in every valid id.
func (m *recentSet) home(entry uint64) int { return int(entry>>33) & (len(m.index) - 1) }

// find returns the request with this id, or nil. The result is valid until the next call of any
// method.
func (m *recentSet) find(id uint64) *admitted {
	if slot := m.slot(id); slot >= 0 {
		return m.at(uint32(m.index[slot]))
	}
	return nil
}

// findRecent is find for requests whose Check may still be repeated. It removes an older one with
// this id, and then returns nil.
func (m *recentSet) findRecent(id uint64, now time.Duration) *admitted {
	one := m.find(id)
	if one != nil && one.over(now) {
		m.remove(one)
		return nil
	}
	return one
}

// slot returns the slot of an id in the index, or -1.
func (m *recentSet) slot(id uint64) int {
	if len(m.index) == 0 {
		return -1
	}
	for i := m.home(id); m.index[i] != 0; i = (i + 1) & (len(m.index) - 1) {
		if entry := m.index[i]; entry>>32 == id>>32 && m.at(uint32(entry)).id == id {
			return i
		}
	}
	return -1
}

// add adds the newest request. Its id must not be present.
func (m *recentSet) add(one admitted) {
	if int(m.next-m.first) == len(m.ring) {
		m.resize(max(smallestRing, 2*len(m.ring)))
	}
	*m.at(m.next) = one
	m.enter(one.id, m.next)
	m.next++
}

// enter adds an entry to the index.
func (m *recentSet) enter(id uint64, number uint32) {
	i := m.home(id)
	for m.index[i] != 0 {
		i = (i + 1) & (len(m.index) - 1)
	}
	m.index[i] = id&^(1<<32-1) | uint64(number)
}

// remove removes a request.
func (m *recentSet) remove(one *admitted) {
	if slot := m.slot(one.id); slot >= 0 {
		m.vacate(slot)
	}
	one.id = 0
}

// vacate empties a slot of the index. Displaced entries behind it move up, so that no search for
// them ends here.
func (m *recentSet) vacate(slot int) {
	mask := len(m.index) - 1
	for i := (slot + 1) & mask; m.index[i] != 0; i = (i + 1) & mask {
		if (i-m.home(m.index[i]))&mask >= (i-slot)&mask {
			m.index[slot], slot = m.index[i], i
		}
	}
	m.index[slot] = 0
}

// expire drops the oldest requests, up to the first one whose Check may still be repeated.
func (m *recentSet) expire(now time.Duration) {
	for ; m.first != m.next; m.first++ {
		one := m.at(m.first)
		if one.id == 0 {
			continue
		}
		if !one.over(now) {
			return
		}
		m.remove(one)
	}
}

// shrink frees room that far more requests needed earlier.
func (m *recentSet) shrink() {
	if m.first == m.next {
		*m = recentSet{}
	} else if n := int(m.next - m.first); len(m.ring) > smallestRing && n <= len(m.ring)/8 {
		m.resize(len(m.ring) / 4)
	}
}

// resize moves all requests to a ring of this size.
func (m *recentSet) resize(places int) {
	old := *m
	m.ring, m.index = make([]admitted, places), make([]uint64, 2*places)
	for number := m.first; number != m.next; number++ {
		one := old.at(number)
		*m.at(number) = *one
		if one.id != 0 {
			m.enter(one.id, number)
		}
	}
}
