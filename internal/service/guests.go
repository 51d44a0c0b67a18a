package service

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// maxGuests bounds the connections of the settle port and the operators' ports, which know no
// caller before the first request. A connection takes about 20 KiB and a file descriptor.
const maxGuests = 1000

// guests limits the connections of an HTTP server. A new connection over the limit closes the one
// that has been idle for longest; if none is idle, the one with the oldest request of an unknown
// caller; or else the one with the oldest request. A client that opens many connections without
// sending requests therefore neither takes memory and file descriptors from the rest of the service
// nor locks out others, and a stranger ends no call of a known caller.
type guests struct {
	most int

	mu     sync.Mutex
	places map[net.Conn]place // mu guards this and the lists
	// Connections, in the order in which they entered the state: without a request, with one, and
	// with an authenticated one.
	quiet, busy, known *list.List
}

// place is the position of a connection in one of the lists.
type place struct {
	list    *list.List
	element *list.Element
}

func newGuests(most int) *guests {
	return &guests{most: most, places: map[net.Conn]place{}, quiet: list.New(), busy: list.New(), known: list.New()}
}

// guestKey is the key of a request's connection in its context.
type guestKey struct{}

// introduce is the [http.Server.ConnContext] hook that lets keep find the connection.
func (g *guests) introduce(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, guestKey{}, conn)
}

// keep notes that the request with this context is of a known caller.
func (g *guests) keep(ctx context.Context) {
	conn, _ := ctx.Value(guestKey{}).(net.Conn)
	g.mu.Lock()
	defer g.mu.Unlock()
	if p, there := g.places[conn]; there && p.list == g.busy {
		g.remove(conn)
		g.places[conn] = place{g.known, g.known.PushBack(conn)}
	}
}

// note is the [http.Server.ConnState] hook.
func (g *guests) note(conn net.Conn, state http.ConnState) {
	if victim := g.move(conn, state); victim != nil {
		cut(victim) // the server notices the close
	}
}

// cut closes a connection at once. A [tls.Conn] would first take its time to say so to its peer.
func cut(conn net.Conn) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	conn.Close()
}

// move records the state of a connection, and returns the connection to close, or nil.
func (g *guests) move(conn net.Conn, state http.ConnState) (victim net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.places[conn]
	g.remove(conn)
	switch {
	// closed, or already chosen as a victim
	case state == http.StateClosed || state == http.StateHijacked, !known && state != http.StateNew:
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
	for _, others := range []*list.List{g.busy, g.known} {
		if first == nil || first.Value == conn {
			first = others.Front()
		}
	}
	victim = first.Value.(net.Conn)
	g.remove(victim)
	return victim
}

// remove requires mu.
func (g *guests) remove(conn net.Conn) {
	if p, ok := g.places[conn]; ok {
		p.list.Remove(p.element)
		delete(g.places, conn)
	}
}
