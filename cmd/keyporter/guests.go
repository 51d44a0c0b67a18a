package main

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// maxGuests is how many connections a listener takes whose callers show no token before they send a
// request: that for settling charges, and that of the operators. One takes some 20 KiB and a file.
const maxGuests = 1000

// guests are the connections of an HTTP server. Where there are too many, a new one ends the one
// that has been without a request for longest, or else the one whose request has taken longest: so
// who opens many, and asks nothing, neither takes memory and files from the rest of the service nor
// keeps anybody out.
type guests struct {
	most int

	mu          sync.Mutex
	places      map[net.Conn]place // guarded by mu, as is the rest
	quiet, busy *list.List         // of connections, in the order in which they became so
}

// place is where a connection is.
type place struct {
	list    *list.List
	element *list.Element
}

func newGuests(most int) *guests {
	return &guests{most: most, places: map[net.Conn]place{}, quiet: list.New(), busy: list.New()}
}

// note is for [http.Server.ConnState].
func (g *guests) note(conn net.Conn, state http.ConnState) {
	if victim := g.move(conn, state); victim != nil {
		victim.Close() // the server notices
	}
}

// move takes note of the state of a connection, and returns the one that is to end.
func (g *guests) move(conn net.Conn, state http.ConnState) (victim net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.places[conn]
	g.remove(conn)
	switch {
	case state == http.StateClosed || state == http.StateHijacked, !known && state != http.StateNew: // it has ended, or is to
		return nil
	case state == http.StateActive:
		g.places[conn] = place{g.busy, g.busy.PushBack(conn)}
	default:
		g.places[conn] = place{g.quiet, g.quiet.PushBack(conn)}
	}
	if len(g.places) <= g.most {
		return nil
	}
	first := g.quiet.Front()
	if first == nil || first.Value == conn {
		first = g.busy.Front()
	}
	victim = first.Value.(net.Conn)
	g.remove(victim)
	return victim
}

// remove is called with mu held.
func (g *guests) remove(conn net.Conn) {
	if p, ok := g.places[conn]; ok {
		p.list.Remove(p.element)
		delete(g.places, conn)
	}
}
