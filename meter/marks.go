package meter

import (
	"time"

	"github.com/keyporter/keyporter/usage"
)

// rememberFor is how long a repeated Check is recognized. Envoy repeats a Check within its Check
// timeout, times its retries, after the first one.
const rememberFor = 5 * time.Second

// mark is an admitted request whose Check may be repeated. It contains no pointer: under load there
// are hundreds of thousands, and the garbage collector need not scan them.
type mark struct {
	id      uint64 // of the request and its user; 0: released
	at      time.Duration
	number  uint64 // of the charge
	month   usage.Month
	terms   uint32 // of the charge, as in [Charged]
	counted bool   // in the log of its user
	asked   bool   // as in [Attempt]
	twice   bool   // a repeated Check was answered as admitted
}

// marks are the recently admitted requests, oldest first, with an index to find them.
type marks struct {
	// ring has a power of two of places, so that numbers are masked: mark number i is at i. It
	// holds the marks from first on, before next. Numbers may wrap around.
	ring        []mark
	first, next uint32
	// index is a hash table with open addressing and linear probing, twice as large as the ring. An
	// entry is the upper half of an id, which is random, and the number of its mark. An entry whose
	// upper half is 0 is empty.
	index []uint64
}

// valid makes an id that the index can hold out of a random number.
func valid(random uint64) uint64 { return random | 1<<32 }

const smallestRing = 8

func (m *marks) place(number uint32) *mark { return &m.ring[number&uint32(len(m.ring)-1)] }

// home is where the search for an entry begins: by the bits that are random in every valid id.
func (m *marks) home(entry uint64) int { return int(entry>>33) & (len(m.index) - 1) }

// find returns the mark with this id, or nil. The result is valid until the next call of any
// method.
func (m *marks) find(id uint64) *mark {
	if slot := m.slot(id); slot >= 0 {
		return m.place(uint32(m.index[slot]))
	}
	return nil
}

// recent is find for requests admitted within rememberFor. It removes an older mark with this id
// and then returns nil.
func (m *marks) recent(id uint64, now time.Duration) *mark {
	one := m.find(id)
	if one != nil && one.at <= now-rememberFor {
		m.remove(one)
		return nil
	}
	return one
}

// slot returns the slot of an id in the index, or -1.
func (m *marks) slot(id uint64) int {
	if len(m.index) == 0 {
		return -1
	}
	for i := m.home(id); m.index[i] != 0; i = (i + 1) & (len(m.index) - 1) {
		if entry := m.index[i]; entry>>32 == id>>32 && m.place(uint32(entry)).id == id {
			return i
		}
	}
	return -1
}

// add adds the newest mark. Its id must not be present.
func (m *marks) add(one mark) {
	if int(m.next-m.first) == len(m.ring) {
		m.resize(max(smallestRing, 2*len(m.ring)))
	}
	*m.place(m.next) = one
	m.enter(one.id, m.next)
	m.next++
}

// enter adds an entry to the index.
func (m *marks) enter(id uint64, number uint32) {
	i := m.home(id)
	for m.index[i] != 0 {
		i = (i + 1) & (len(m.index) - 1)
	}
	m.index[i] = id&^(1<<32-1) | uint64(number)
}

// remove removes a mark.
func (m *marks) remove(one *mark) {
	if slot := m.slot(one.id); slot >= 0 {
		m.vacate(slot)
	}
	one.id = 0
}

// vacate empties a slot of the index. Displaced entries behind it move up, so that no search for
// them ends here.
func (m *marks) vacate(slot int) {
	mask := len(m.index) - 1
	for i := (slot + 1) & mask; m.index[i] != 0; i = (i + 1) & mask {
		if (i-m.home(m.index[i]))&mask >= (i-slot)&mask {
			m.index[slot], slot = m.index[i], i
		}
	}
	m.index[slot] = 0
}

// expire drops the marks that no Check can repeat any more.
func (m *marks) expire(now time.Duration) {
	for m.first != m.next && m.place(m.first).at <= now-rememberFor {
		if one := m.place(m.first); one.id != 0 {
			m.remove(one)
		}
		m.first++
	}
}

// shrink frees room that far more marks needed earlier.
func (m *marks) shrink() {
	if m.first == m.next {
		*m = marks{}
	} else if n := int(m.next - m.first); len(m.ring) > smallestRing && n <= len(m.ring)/8 {
		m.resize(len(m.ring) / 4)
	}
}

// resize moves all marks to a ring of this size.
func (m *marks) resize(places int) {
	old := *m
	m.ring, m.index = make([]mark, places), make([]uint64, 2*places)
	for number := m.first; number != m.next; number++ {
		one := old.place(number)
		*m.place(number) = *one
		if one.id != 0 {
			m.enter(one.id, number)
		}
	}
}
