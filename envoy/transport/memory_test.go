//go:build !race

package transport_test

import (
	"net"
	"runtime"
	"testing"

	"golang.org/x/net/http2"
)

// An idle connection that has answered calls holds at most 16 KiB, its goroutine's stack included.
func TestAnIdleConnectionIsASmallObject(t *testing.T) {
	address := serve(t, echoes())
	const conns = 1000
	all := make([]net.Conn, conns)
	before := held()
	for i := range all {
		var err error
		if all[i], err = net.Dial("tcp", address); err != nil {
			t.Fatal(err)
		}
		defer all[i].Close()
		callOnce(t, all[i])
	}
	if each := (held() - before) / conns; each > 16<<10 {
		t.Errorf("%d bytes for each connection", each)
	} else {
		t.Logf("%d bytes for each connection", each)
	}
}

// callOnce makes a call of some size and leaves nothing of its own behind.
func callOnce(t *testing.T, conn net.Conn) {
	r := newRaw(t, conn)
	r.greet()
	_ = r.open(0, r.call())
	_ = r.WriteData(1, false, append([]byte{0, 0, 0, 0x17, 0x70}, make([]byte, 3000)...))
	_ = r.WriteData(1, true, make([]byte, 3000))
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.HeadersFrame); ok && f.StreamEnded() {
			return
		}
	}
}

func held() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse) + int64(m.StackInuse)
}
