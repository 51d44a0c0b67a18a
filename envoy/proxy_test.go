package envoy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/routes"
)

// proxy is a real Envoy, run from the generated bootstrap, with a Server that knows one key on one
// side, and an upstream and a page that remember their requests on the other.
type proxy struct {
	*parts.Envoy
	addr           string
	key            apikey.Token
	server         *envoy.Server
	upstream, page *witness
}

// witness is an HTTP server that remembers the last request.
type witness struct {
	*httptest.Server
	mu     sync.Mutex
	last   *http.Request    // guarded by mu
	answer http.HandlerFunc // guarded by mu; nil: it says that it has seen the request
}

func newWitness(t *testing.T) *witness {
	w := &witness{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.last = r
		answer := w.answer
		w.mu.Unlock()
		if answer != nil {
			answer(out, r)
			return
		}
		fmt.Fprint(out, "seen")
	}))
	t.Cleanup(w.Close)
	return w
}

// take returns the last request since the last take, or nil.
func (w *witness) take() *http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.last
	w.last = nil
	return r
}

// answers sets the answer to requests from now on.
func (w *witness) answers(answer http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

func (w *witness) addr() string { return w.Listener.Addr().String() }

func startProxy(t *testing.T, config envoy.Config, token bearer.Token) *proxy {
	return startProxyOf(t, config, token, defaultTable(t))
}

// startProxyOf is startProxy with another route table.
func startProxyOf(t *testing.T, config envoy.Config, token bearer.Token, table *authz.RouteTable) *proxy {
	t.Helper()
	keys, err := apikey.NewFormat(apikey.FormatConfig{Prefix: "wh", Secrets: [][]byte{[]byte("0123456789abcdef0123456789abcdef")}})
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{key: keys.Generate(), upstream: newWitness(t), page: newWitness(t)}
	config.Authorize = authz.New(authz.Config{
		Meter:  authz.Unmetered{},
		Routes: table, Keys: keys,
		FindKey: func(_ context.Context, d apikey.Digest) (authz.Principal, error) {
			if d != p.key.Digest() {
				return authz.Principal{}, authz.ErrUnknown
			}
			return authz.Principal{KeyID: "k1", User: "ada", Account: "acme", Plan: "pro", UserActive: true, AccountActive: true, APIAccess: true}, nil
		},
		Sessions: &authz.Sessions{Format: keys, Find: func(context.Context, apikey.Digest) (authz.Principal, error) {
			return authz.Principal{User: "ada", UserActive: true}, nil
		}},
	}).Authorize
	config.DrainDelay = -1
	config.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	p.server = makeServer(config)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, p.server, listener)
	p.addr, err = parts.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	text := printed(t, bootstrap.Config{
		Authz: listener.Addr().String(), Upstream: p.upstream.addr(), Page: p.page.addr(), Listen: p.addr, Admin: "127.0.0.1:0", Token: token, Routes: table,
	})
	p.Envoy = partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: text})
	return p
}

// serve runs s until the test ends, and then cuts off its open calls.
func serve(t *testing.T, s *envoy.Server, l net.Listener) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx) // reports the cut
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// send writes a request unchanged, header lines included, so that no client library corrects it.
func (p *proxy) send(t *testing.T, requestLine string, headers ...string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := append([]string{requestLine + " HTTP/1.1", "host: api.example", "connection: close"}, headers...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(requestLine, " ")
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s: %v", requestLine, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

// printed returns the bootstrap of c, for the default routes if c has none.
func printed(t *testing.T, c bootstrap.Config) []byte {
	t.Helper()
	if c.Routes == nil {
		c.Routes = defaultTable(t)
	}
	text, err := bootstrap.YAML(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func defaultTable(t testing.TB) *authz.RouteTable {
	t.Helper()
	rules, err := routes.Default()
	if err != nil {
		t.Fatal(err)
	}
	table, err := authz.NewRouteTable(rules)
	if err != nil {
		t.Fatal(err)
	}
	return table
}
