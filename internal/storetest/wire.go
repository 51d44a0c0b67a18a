package storetest

import (
	"bytes"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// Wire lies between the store and PostgreSQL, and can be cut at a COMMIT.
type Wire struct {
	*partstest.Proxy
	Sent atomic.Int64 // pieces of data from the client
	Cut  atomic.Int32 // at COMMIT: 1 before it is passed on, 2 after; then no answers pass
	Deaf atomic.Bool  // notifications are lost
}

// NewWire starts a wire to the server of a URL until the test ends, and returns the URL of the
// wire.
func NewWire(t *testing.T, url string) (*Wire, string) {
	t.Helper()
	host := url[strings.Index(url, "@")+1:]
	host = host[:strings.Index(host, "/")]
	w := &Wire{}
	w.Proxy = partstest.StartProxy(t, partstest.ProxyConfig{To: host, Filter: func(from io.Reader, up bool) io.Reader {
		if up {
			return &commits{Reader: from, wire: w}
		}
		return partstest.WithoutNotifications(from, w.Deaf.Load)
	}})
	return w, strings.Replace(url, host, w.Addr(), 1)
}

// Silence loses all data in both directions.
func (w *Wire) Silence(lost bool) {
	w.Up.Drop.Store(lost)
	w.Down.Drop.Store(lost)
}

// commits is what a client sends. It ends at a COMMIT that is to be cut.
type commits struct {
	io.Reader
	wire *Wire
	cut  bool
}

func (c *commits) Read(p []byte) (int, error) {
	if c.cut {
		time.Sleep(200 * time.Millisecond) // the server has it
		return 0, io.EOF
	}
	n, err := c.Reader.Read(p)
	if n > 0 {
		c.wire.Sent.Add(1)
	}
	if bytes.Contains(p[:n], []byte("COMMIT")) {
		switch c.wire.Cut.Load() {
		case 1:
			return 0, io.EOF
		case 2:
			c.wire.Down.Drop.Store(true)
			c.cut = true
		}
	}
	return n, err
}
