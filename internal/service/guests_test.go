package service

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
)

// A client that opens many connections and sends nothing, too little or only one request, keeps
// only a few of them. Other clients are answered meanwhile, even if their requests are slow.
func TestManyConnectionsKeepNobodyOut(t *testing.T) {
	for name, sent := range map[string]string{
		"silence":        "",
		"half a request": "GET /",
		"one request":    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"half a body":    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234",
	} {
		t.Run(name, func(t *testing.T) {
			const most = 5
			begun, over := make(chan struct{}), make(chan struct{})
			mux := http.NewServeMux()
			mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "answered") })
			mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { close(begun); <-over })
			address := serveGuests(t, mux, newGuests(most))
			slow := make(chan error, 1)
			go func() {
				response, err := (&http.Client{Transport: &http.Transport{}}).Get(address.url("/slow"))
				if err == nil {
					response.Body.Close()
				}
				slow <- err
			}()
			<-begun
			ended := make(chan struct{}, 4*most)
			for range cap(ended) {
				conn, err := net.Dial("tcp", string(address))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				io.WriteString(conn, sent)
				go func() { io.Copy(io.Discard, conn); ended <- struct{}{} }()
			}
			for range cap(ended) - most {
				<-ended
			}
			ask(t, address)
			close(over)
			// then no connection is idle
			if err := <-slow; err != nil && !strings.HasPrefix(name, "half") {
				t.Errorf("who waited for an answer was hung up on: %v", err)
			}
		})
	}
}

// A stranger with many requests ends no call of a known caller.
func TestStrangersEndNoCallOfAKnownCaller(t *testing.T) {
	const most = 5
	over := make(chan struct{})
	begun := make(chan bool, 4*most)
	g := newGuests(most)
	mux := http.NewServeMux()
	mux.HandleFunc("/known", func(_ http.ResponseWriter, r *http.Request) { g.keep(r.Context()); begun <- true; <-over })
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) { begun <- true; <-over })
	address := serveGuests(t, mux, g)
	call := func(path string) <-chan error {
		done := make(chan error, 1)
		go func() {
			response, err := (&http.Client{Transport: &http.Transport{}}).Get(address.url(path))
			if err == nil {
				response.Body.Close()
			}
			done <- err
		}()
		<-begun
		return done
	}
	known := call("/known")
	var strangers []<-chan error
	for range 3 * most {
		strangers = append(strangers, call("/stranger"))
	}
	for _, call := range strangers[:len(strangers)-(most-1)] {
		if <-call == nil {
			t.Error("the call of a stranger has ended without an error")
		}
	}
	close(over)
	for _, call := range append(strangers[len(strangers)-(most-1):], known) {
		if err := <-call; err != nil {
			t.Errorf("a call was hung up on: %v", err)
		}
	}
}

type guestAddress string

func (a guestAddress) url(path string) string { return fmt.Sprintf("http://%s%s", a, path) }

func serveGuests(t *testing.T, h http.Handler, g *guests) guestAddress {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newHTTPServer(h, slog.New(slog.DiscardHandler))
	server.ConnState, server.ConnContext = g.note, g.introduce
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return guestAddress(listener.Addr().String())
}

// ask sends a request on its own connection.
func ask(t *testing.T, address guestAddress) {
	t.Helper()
	conn, err := net.Dial("tcp", string(address))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != 200 {
		t.Errorf("a request is not answered: %v", err)
	}
}
