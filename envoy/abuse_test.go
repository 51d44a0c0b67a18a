package envoy_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Whatever frames a caller without the token sends, however many, it is hung up on after a few
// kilobytes or has an answer, holds nothing, and is noticed by nobody else.
func TestFramesOfStrangers(t *testing.T) {
	address := guarded(t)
	headers := func(fields ...string) []byte {
		var block bytes.Buffer
		encoder := hpack.NewEncoder(&block)
		all := []string{":method", "POST", ":scheme", "http", ":path", "/grpc.health.v1.Health/Check", ":authority", "a", "content-type", "application/grpc"}
		for all = append(all, fields...); len(all) > 1; all = all[2:] {
			encoder.WriteField(hpack.HeaderField{Name: all[0], Value: all[1]})
		}
		return block.Bytes()
	}
	long := string(bytes.Repeat([]byte("a"), 8<<10))
	for name, send := range map[string]func(r raw, i uint32) error{
		"headers that go on":  func(r raw, i uint32) error {
			if i == 0 {
				return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers()})
			}
			return r.WriteContinuation(1, false, headers("x", long)[60:])
		},
		"rapid resets": func(r raw, i uint32) error {
			r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: headers(), EndHeaders: true})
			return r.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		},
		"pings":          func(r raw, i uint32) error { return r.WritePing(false, [8]byte{1}) },
		"settings":       func(r raw, i uint32) error { return r.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: i}) },
		"window updates": func(r raw, i uint32) error { return r.WriteWindowUpdate(0, 1) },
		"priorities":     func(r raw, i uint32) error { return r.WritePriority(2*i+1, http2.PriorityParam{}) },
		"empty data":     func(r raw, i uint32) error {
			if i == 0 {
				return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers(), EndHeaders: true})
			}
			return r.WriteData(1, false, nil)
		},
		"unknown frames": func(r raw, i uint32) error { return r.WriteRawFrame(0xfa, 0, 0, make([]byte, 100)) },
		"huge header": func(r raw, i uint32) error {
			return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: headers("x", long, "y", long, "z", long), EndHeaders: true})
		},
		"watches that nobody reads": func(r raw, i uint32) error {
			if i == 0 {
				r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			}
			block := bytes.Replace(headers(), nil, nil, 0)
			if err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true}); err != nil {
				return err
			}
			return r.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 0})
		},
		"deadlines": func(r raw, i uint32) error {
			return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: headers("grpc-timeout", "99999999H"), EndHeaders: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := rawDial(t, address)
			io.WriteString(conn.Conn, http2.ClientPreface)
			conn.WriteSettings()
			hungUp := make(chan struct{})
			go func() { io.Copy(io.Discard, conn.Conn); close(hungUp) }()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			sent := 0
			for ; sent < 100_000 && send(conn, uint32(sent)) == nil; sent++ {
			}
			select {
			case <-hungUp:
			case <-time.After(5 * time.Second):
			t.Errorf("not hung up on")
			}
			t.Logf("%d sent", sent)
			askBoth(t, address, 2)
		})
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Log(m.HeapInuse>>20, runtime.NumGoroutine())
	_ = net.Dial
}
