package envoy_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Whatever frames a caller without the token sends, its connection is closed after a few kilobytes,
// and nobody else notices.
func TestFramesOfStrangers(t *testing.T) {
	address := guarded(t)
	for name, send := range map[string]func(r raw, i uint32) error{
		"headers that do not end": func(r raw, i uint32) error {
			if i > 0 {
				return r.WriteContinuation(1, false, fields("x", strings.Repeat("a", 1<<10)))
			}
			return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: call()})
		},
		"calls that are reset": func(r raw, i uint32) error {
			if err := r.open(i, call()); err != nil {
				return err
			}
			return r.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		},
		"calls that are not read": func(r raw, i uint32) error {
			if i == 0 {
				r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			}
			if err := r.open(i, call()); err != nil {
				return err
			}
			return r.WriteData(2*i+1, true, make([]byte, 5))
		},
		"data without bytes": func(r raw, i uint32) error {
			if i > 0 {
				return r.WriteData(1, false, nil)
			}
			return r.open(0, call())
		},
		"huge headers":   func(r raw, i uint32) error { return r.open(i, call("x", strings.Repeat("a", 15<<10))) },
		"long deadlines": func(r raw, i uint32) error { return r.open(i, call("grpc-timeout", "99999999H")) },
		"pings":          func(r raw, _ uint32) error { return r.WritePing(false, [8]byte{1}) },
		"settings": func(r raw, i uint32) error {
			return r.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: i})
		},
		"window updates":                     func(r raw, _ uint32) error { return r.WriteWindowUpdate(0, 1) },
		"priorities":                         func(r raw, i uint32) error { return r.WritePriority(2*i+1, http2.PriorityParam{}) },
		"frames of a kind that there is not": func(r raw, _ uint32) error { return r.WriteRawFrame(0xfa, 0, 0, make([]byte, 100)) },
	} {
		t.Run(name, func(t *testing.T) {
			conn := rawDial(t, address)
			io.WriteString(conn.Conn, http2.ClientPreface)
			conn.WriteSettings()
			hungUp := make(chan struct{})
			go func() { defer close(hungUp); io.Copy(io.Discard, conn.Conn) }()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			for i := range uint32(100_000) {
				if send(conn, i) != nil {
					<-hungUp
					askBoth(t, address, 1)
					return
				}
			}
			t.Error("nobody hangs up")
		})
	}
}

// open opens a call to the health service.
func (r raw) open(i uint32, headers []byte) error {
	return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: headers, EndHeaders: true})
}

// call returns the headers of a call to the health service, and more, as names and values.
func call(more ...string) []byte {
	return callOf(grpc_health_v1.Health_Check_FullMethodName, more...)
}

// callOf returns the headers of a call of a method, and more, as names and values.
func callOf(method string, more ...string) []byte {
	return fields(append([]string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "a", "content-type", "application/grpc", "te", "trailers"}, more...)...)
}

func fields(all ...string) []byte {
	var block bytes.Buffer
	for encoder := hpack.NewEncoder(&block); len(all) > 0; all = all[2:] {
		encoder.WriteField(hpack.HeaderField{Name: all[0], Value: all[1]})
	}
	return block.Bytes()
}
