package envoy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/usage"
)

// Clients that do not read stop nobody else, although their requests share a connection to the
// upstream.
func TestSlowReadersStopNobodyElse(t *testing.T) {
	partstest.Slow(t)
	s := startTeller(t, bearer.Token{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var written, ended, connections atomic.Int64
	server := &http.Server{
		Protocols: overHTTP(true),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for what := path.Base(r.URL.Path); strings.HasPrefix(what, "unread."); {
				n, err := w.Write(make([]byte, 16<<10))
				if err != nil {
					ended.Add(1)
					return
				}
				written.Add(int64(n))
			}
			fmt.Fprint(w, "quick")
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connections.Add(1)
			}
		},
	}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	_, addr := s.startEnvoyWith(t, bootstrap.Config{Upstream: "h2c://" + listener.Addr().String()})
	const clients = 40 // more than a connection of 1 MiB has room for
	for i := range clients {
		if err := dial(t, addr, fmt.Sprint("unread.", i)).(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
	}
	last, same := int64(0), 0
	partstest.Eventually(t, "all requests wait", func() bool {
		now := written.Load()
		if now != last || now < clients*envoy.Unread {
			last, same = now, 0
		}
		same++
		return same > 40
	})
	if status, body := get(t, addr, "x", false); status != 200 || body != "quick" {
		t.Errorf("%d %s, want 200 quick", status, body)
	}
	if ended.Load() > 0 {
		t.Error("the answer came when those who do not read were gone")
	}
	if connections.Load() != 1 {
		t.Errorf("on %d connections, so it tells nothing", connections.Load())
	}
}

// serveHTTP2 answers the requests of a connection, each as the last segment of its path says, until
// the connection or ctx ends.
func (u *rogue) serveHTTP2(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				framer.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			what := path.Base(f.PseudoValue("path"))
			u.asked.Store(what, true)
			if strings.HasPrefix(what, "hangs") {
				continue
			}
			name, value, _ := strings.Cut(what, "=")
			if value == "NUL" {
				value = "\x00"
			}
			var block bytes.Buffer
			encoder := hpack.NewEncoder(&block)
			encoder.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
			encoder.WriteField(hpack.HeaderField{Name: name, Value: value})
			framer.WriteHeaders(http2.HeadersFrameParam{StreamID: f.StreamID, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
		}
	}
}

// An answer that is no HTTP ends its own request, and no other on the same connection.
func TestAnAnswerThatIsNoHTTPEndsItsOwnRequestOnly(t *testing.T) {
	s, upstream := startTeller(t, bearer.Token{}), startRogue(t, (*rogue).serveHTTP2)
	_, addr := s.startEnvoyWith(t, bootstrap.Config{Upstream: "h2c://" + upstream.Addr().String()})
	others := dial(t, addr, "hangs")
	partstest.Eventually(t, "the upstream is asked", known(&upstream.asked, "hangs"))
	bad := []string{"x=NUL", "X-Upper=1", "content-length=5", "connection=close"}
	for _, what := range bad {
		if status, body := get(t, addr, what, false); status != 502 || body != authz.Undecided.Outcome().Body() {
			t.Errorf("%s: %d %s, want 502", what, status, body)
		}
	}
	if status, _ := get(t, addr, "x=1", false); status != 200 {
		t.Errorf("then a good answer is %d", status)
	}
	others.Close()
	for _, what := range bad {
		s.expect(t, what, 502, usage.NoAnswer)
	}
	s.expect(t, "hangs", 0, usage.NoFailure) // its client left, and had no answer before
}

// A client's trailers cannot bypass the checks of its headers: none reaches an upstream that would
// read them without an announcement.
func TestTrailersGoNoFurther(t *testing.T) {
	s := startTeller(t, bearer.Token{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	fields := make(chan string, 1000)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go recordFields(conn, fields)
		}
	}()
	_, addr := s.startEnvoyWith(t, bootstrap.Config{Upstream: "h2c://" + listener.Addr().String()})
	transport := &http.Transport{Protocols: overHTTP(true)}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodPost, "http://"+addr+"/api/v1/brands/x", io.MultiReader(strings.NewReader("body")))
	if err != nil {
		t.Fatal(err)
	}
	r.Trailer = http.Header{"X-Keyporter-User": {"mallory"}, "X-Api-Key": {"mallory"}, "Cookie": {"mallory"}, "Other": {"mallory"}}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	var seen []string
	for len(fields) > 0 {
		seen = append(seen, <-fields)
	}
	if all := strings.Join(seen, "\n"); answer.StatusCode != 200 || strings.Contains(all, "mallory") || !strings.Contains(all, "x-keyporter-user: ada") {
		t.Errorf("%s; the upstream saw\n%s", answer.Status, all)
	}
}

// recordFields is an upstream that sends all fields of headers and trailers to fields, and answers
// 200.
func recordFields(conn net.Conn, fields chan<- string) {
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	var block bytes.Buffer
	hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				framer.WriteSettingsAck()
			}
			continue
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				fields <- field.Name + ": " + field.Value
			}
		}
		if frame.Header().Flags.Has(http2.FlagDataEndStream) && frame.Header().StreamID != 0 {
			framer.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.Header().StreamID, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
		}
	}
}
