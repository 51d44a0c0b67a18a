package meter

import (
	"slices"
	"time"
)

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
	list []mark
	old  int            // how many at its beginning are of the past
	gone int            // how many were dropped from its beginning so far
	byID map[uint64]int // id → its place, gone included; only where there are many
}

// manyMarks is the number of marks from which on a map finds them faster.
const manyMarks = 32

// find returns the mark with this id, or nil. An id of 0 is none.
func (m *marks) find(id uint64) *mark {
	if id == 0 {
		return nil
	}
	if m.byID != nil {
		if place, ok := m.byID[id]; ok {
			return &m.list[place-m.gone]
		}
		return nil
	}
	for i := range m.list {
		if m.list[i].id == id {
			return &m.list[i]
		}
	}
	return nil
}

func (m *marks) add(one mark) {
	m.list = append(m.list, one)
	switch {
	case m.byID != nil:
		m.byID[one.id] = m.gone + len(m.list) - 1
	case len(m.list) > manyMarks:
		m.byID = make(map[uint64]int, 2*len(m.list))
		for i := range m.list {
			m.byID[m.list[i].id] = m.gone + i
		}
	}
}

// remove takes a mark back.
func (m *marks) remove(one *mark) {
	delete(m.byID, one.id)
	one.id, one.charge = 0, ""
}

// expire drops the marks that no Check can repeat any more. With many it waits until they are half of all.
func (m *marks) expire(now time.Duration) {
	for m.old < len(m.list) && m.list[m.old].at <= now-rememberFor {
		delete(m.byID, m.list[m.old].id)
		m.list[m.old].id = 0
		m.old++
	}
	if m.old == 0 || len(m.list) > manyMarks && m.old < len(m.list)/2 {
		return
	}
	m.list, m.gone, m.old = slices.Delete(m.list, 0, m.old), m.gone+m.old, 0
	if len(m.list) == 0 {
		m.byID = nil
	}
}
