package storetest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Wire lies between the store and PostgreSQL and can be cut.
type Wire struct {
	net.Listener
	to string

	Sent atomic.Int64 // chunks from the client
	Slow atomic.Int64 // the delay of a new connection, in nanoseconds
	Mute atomic.Bool  // swallow everything
	Up   atomic.Bool  // swallow data from the client
	Down atomic.Bool  // swallow data from the server
	Deaf atomic.Bool  // swallow announcements on new connections
	Cut  atomic.Int32 // at COMMIT: 1 before it is passed on, 2 after

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
	all   sync.WaitGroup
}

// NewWire starts a wire to the server of a URL until the test ends, and returns the URL of the
// wire.
func NewWire(t *testing.T, url string) (*Wire, string) {
	t.Helper()
	host := url[strings.Index(url, "@")+1:]
	host = host[:strings.Index(host, "/")]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{Listener: l, to: host}
	w.all.Go(w.serve)
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.all.Wait()
	})
	return w, strings.Replace(url, host, l.Addr().String(), 1)
}

// Ends counts the ends of all connections so far, two for each.
func (w *Wire) Ends() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

func (w *Wire) serve() {
	for {
		client, err := w.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", w.to)
		if err != nil {
			client.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, client, server)
		w.mu.Unlock()
		takes := time.Duration(w.Slow.Load())
		w.all.Go(func() { time.Sleep(takes); w.copy(server, client, true) })
		w.all.Go(func() { w.copy(client, server, false) })
	}
}

func (w *Wire) copy(to, from net.Conn, up bool) {
	defer to.Close()
	defer from.Close()
	if !up && w.Deaf.Load() {
		withoutAnnouncements(to, from)
		return
	}
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if w.Mute.Load() || up && w.Up.Load() || !up && w.Down.Load() {
			io.Copy(io.Discard, from)
			return
		}
		commit := up && bytes.Contains(b[:n], []byte("COMMIT"))
		if up {
			w.Sent.Add(1)
		}
		if commit && w.Cut.Load() == 1 {
			return
		}
		if commit && w.Cut.Load() == 2 {
			w.Mute.Store(true) // no answer comes back
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
		if commit && w.Cut.Load() == 2 {
			time.Sleep(200 * time.Millisecond) // the server has it
			return
		}
	}
}

// withoutAnnouncements passes on a server's data without announcements, like a pooler with other
// sessions behind it.
func withoutAnnouncements(to io.Writer, from io.Reader) {
	const notificationResponse, header = 'A', 5
	head := make([]byte, header)
	for {
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(from, body); err != nil {
			return
		}
		if head[0] == notificationResponse {
			continue
		}
		if _, err := to.Write(slices.Concat(head, body)); err != nil {
			return
		}
	}
}
