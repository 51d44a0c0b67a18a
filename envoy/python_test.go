package envoy_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// pythonReads is the expected output of testdata/client.py.
const pythonReads = `without the token: UNAUTHENTICATED
now: allowed ada
later: allowed ada
no: denied 401 {"success":false,"error":"Unauthorized","code":"unauthorized"}
compressed: allowed ada
300 at once: {'allowed ada'}
health: 1
health of another: NOT_FOUND
watch: 1
a log that ends: None
drain: allowed ada
watch: 2
stop: allowed ada
a log that the server ends: None
watch: CANCELLED
`

// A client in another language, with generated stubs, gets its answers to Checks and health checks.
// Either side ends an access log, and no entry is lost.
func TestAClientInPython(t *testing.T) {
	partstest.Slow(t)
	python := partstest.PythonGRPC(t)
	const token = "a-token-of-some-length"
	own, err := bearer.Parse(token)
	if err != nil {
		t.Fatal(err)
	}
	var log endings
	s, stopped := directed(envoy.Config{Transport: envoy.FastTransport, Token: own, OnComplete: log.complete, DrainDelay: time.Nanosecond})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s, l)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := parts.Run(ctx, parts.Command{Path: python, Args: []string{"testdata/client.py", l.Addr().String(), token}})
	if err != nil || got != pythonReads {
		t.Fatalf("%v\n%s\nwant\n%s", err, got, pythonReads)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	ended, open := 0, 0
	for _, c := range log.take() {
		if strings.HasPrefix(c.Receipt, "ended") {
			ended++
		} else {
			open++
		}
	}
	if ended != 50 || open != 50 {
		t.Errorf("%d and %d of 50 entries are read", ended, open)
	}
}

// directed returns a server that follows the paths of its Checks, and the result of its stop.
func directed(c envoy.Config) (s *envoy.Server, stopped <-chan error) {
	result := make(chan error, 1)
	later := waits(allowAll)
	c.Authorize = func(ctx context.Context, r *authz.Request) (authz.Decision, error) {
		switch r.Path {
		case "/no":
			return authz.Decision{Reason: authz.MissingKey}, nil
		case "/later":
			return later(ctx, r)
		case "/drain":
			s.SetServing(false)
		case "/stop":
			go func() { result <- s.Shutdown(context.WithoutCancel(ctx)) }()
		}
		return allowAll(ctx, r)
	}
	s = envoy.NewServer(c)
	return s, result
}
