package transport_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/keyporter/keyporter/envoy/transport"
)

// The server reports the cause of each connection that it ends, once, and no cause if the peer
// leaves by itself.
func TestCausesOfEnds(t *testing.T) {
	for name, row := range map[string]struct {
		does func(p *peer, release chan struct{})
		want []transport.Cause
	}{
		"it leaves":    {func(p *peer, _ chan struct{}) { hello(p); readSettings(p); p.Conn.Close() }, nil},
		"HTTP/1":       {func(p *peer, _ chan struct{}) { _, _ = io.WriteString(p.Conn, "GET / HTTP/1.1\r\n\r\n"); p.ends() }, []transport.Cause{transport.NotHTTP2}},
		"TLS":          {func(p *peer, _ chan struct{}) { _, _ = p.Conn.Write([]byte{0x16, 3, 1, 2, 0}); p.ends() }, []transport.Cause{transport.NotHTTP2}},
		"no handshake": {func(p *peer, _ chan struct{}) { p.ends() }, []transport.Cause{transport.Slow}},
		"a violation": {func(p *peer, _ chan struct{}) {
			hello(p)
			p.send(func() { _ = p.WriteRawFrame(http2.FrameData, 0, 0, nil) })
			p.ends()
		}, []transport.Cause{transport.Protocol}},
		"no answer to pings": {func(p *peer, _ chan struct{}) { hello(p); p.ends() }, []transport.Cause{transport.Silent}},
		"it does not read":   {func(p *peer, _ chan struct{}) { hello(p); time.Sleep(time.Minute) }, []transport.Cause{transport.Slow}},
		"it does not read what comes late": {func(p *peer, release chan struct{}) {
			hello(p)
			readSettings(p)
			p.echo(0, 'n')
			synctest.Wait()
			close(release) // the goroutine of the call writes
			time.Sleep(time.Minute)
		}, []transport.Cause{transport.Slow}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var got []transport.Cause
				release := make(chan struct{})
				_, l := inMemory(t, transport.Config{
					Methods: map[string]transport.Method{echoPath: later{release}},
					Ended: func(_ net.Conn, cause transport.Cause) {
						mu.Lock()
						defer mu.Unlock()
						got = append(got, cause)
					},
				})
				row.does(silentPeer(t, l.connect(t)), release)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				if fmt.Sprint(got) != fmt.Sprint(row.want) {
					t.Errorf("told %v, want %v", got, row.want)
				}
			})
		})
	}
}

func hello(p *peer) { p.send(func() { p.greet() }) }

// readSettings reads the first frames of a server, and its answer to the peer's settings.
func readSettings(p *peer) {
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return
		}
		if settings, ok := f.(*http2.SettingsFrame); ok && settings.IsAck() {
			return
		}
	}
}
