package meter

import "time"

// rememberFor is how long a second Check of a request is taken for the first one. Envoy asks again
// within its Check timeout, times its retries, after the first.
const rememberFor = 5 * time.Second

// mark is an admitted request whose Check may come again.
type mark struct {
	id    uint64 // of the request; 0: it was taken back
	at    time.Duration
	twice bool // a second Check was told that it is admitted
	// charge is the name of what the first Check has charged.
	charge string
}

// marks are the requests that were admitted a moment ago, oldest first.
type marks struct {
	ring    []mark // n of them from head on; as many as a power of two, so that places are masked
	head, n int
	gone    int            // how many were dropped so far
	byID    map[uint64]int // id → its place, gone included; only where there are many
}

// manyMarks is the number of marks from which on a map finds them faster.
const manyMarks = 32

// place returns the mark at a place, counted from the oldest.
func (m *marks) place(i int) *mark { return &m.ring[(m.head+i)&(len(m.ring)-1)] }

// newest returns the newest mark, or nil.
func (m *marks) newest() *mark {
	if m.n == 0 {
		return nil
	}
	return m.place(m.n - 1)
}

// find returns the mark with this id, or nil. An id of 0 is none.
func (m *marks) find(id uint64) *mark {
	if id == 0 {
		return nil
	}
	if m.byID != nil {
		if place, ok := m.byID[id]; ok {
			return m.place(place - m.gone)
		}
		return nil
	}
	for i := range m.n {
		if one := m.place(i); one.id == id {
			return one
		}
	}
	return nil
}

func (m *marks) add(one mark) {
	if m.n == len(m.ring) {
		m.grow()
	}
	m.n++
	*m.newest() = one
	switch {
	case m.byID != nil:
		m.byID[one.id] = m.gone + m.n - 1
	case m.n > manyMarks:
		m.byID = make(map[uint64]int, 2*m.n)
		for i := range m.n {
			m.byID[m.place(i).id] = m.gone + i
		}
	}
}

// grow doubles the ring, from 1 on: most users have few.
func (m *marks) grow() {
	ring := make([]mark, max(1, 2*len(m.ring)))
	copied := copy(ring, m.ring[m.head:])
	copy(ring[copied:], m.ring[:m.head])
	m.ring, m.head = ring, 0
}

// remove takes a mark back.
func (m *marks) remove(one *mark) {
	delete(m.byID, one.id)
	one.id, one.charge = 0, ""
}

// expire drops the marks that no Check can repeat any more.
func (m *marks) expire(now time.Duration) {
	for m.n > 0 && m.place(0).at <= now-rememberFor {
		one := m.place(0)
		delete(m.byID, one.id)
		*one = mark{}
		m.head = (m.head + 1) & (len(m.ring) - 1)
		m.n--
		m.gone++
	}
	if m.n == 0 && m.byID != nil {
		m.ring, m.head, m.byID = nil, 0, nil // there were many
	}
}
