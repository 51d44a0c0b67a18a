package service

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// A profile takes its time, also when that is longer than other answers may take, and a stop ends
// it. The limit of other answers is what a busy machine has to finish the profile.
func TestAProfileTakesItsTime(t *testing.T) {
	stopping, stop := context.WithCancel(t.Context())
	server := newHTTPServer(withPprof(stopping, http.NotFoundHandler()), slog.New(slog.DiscardHandler))
	server.ReadTimeout, server.WriteTimeout = 1500*time.Millisecond, 1500*time.Millisecond
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	defer server.Close()
	trace := func(seconds string) time.Duration {
		begun := time.Now()
		response, err := http.Get("http://" + listener.Addr().String() + "/debug/pprof/trace?seconds=" + seconds)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != 200 {
			t.Errorf("%s, %v", response.Status, err)
		}
		return time.Since(begun)
	}
	if took := trace("2"); took < 2*time.Second {
		t.Errorf("two seconds took %v", took)
	}
	time.AfterFunc(100*time.Millisecond, stop)
	if took := trace("60"); took > 30*time.Second {
		t.Errorf("after the stop it took %v", took)
	}
}
