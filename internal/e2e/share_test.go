package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// A user who requests the page without a pause, on five connections with 100 streams each, gets 429
// beyond a share, and another user still gets each page. The test prints how much longer that takes
// than in the quiet half of the same run. The difference is the wait of hundreds of streams for one
// another in Envoy and in the test's own client: it is the same for requests for a path that gets a
// 404 without the page.
func TestOneUserLeavesThePageToOthers(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	const connections, streams, pages = 5, 100, 5
	s := start(t, stackConfig{database: databases["PostgreSQL 18"](t)})
	s.user("mallory", "pro")
	s.user("ann", "pro")
	flooder, cookie := s.session("mallory"), s.session("ann")
	median := func(when string) time.Duration {
		t.Helper()
		var took []time.Duration
		for range pages {
			began := time.Now()
			if a := s.page(cookie); a.status != 200 {
				t.Errorf("another user, %s: %d %s", when, a.status, a.body)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[pages/2]
	}
	quiet := median("in the quiet half")

	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var answered [600]atomic.Int64
	for range connections {
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		transport := &http.Transport{Protocols: &protocols}
		defer transport.CloseIdleConnections()
		for range streams {
			flood.Go(func() {
				for ctx.Err() == nil {
					answered[statusOf(ctx, transport, "http://"+s.front+"/api", flooder)].Add(1)
				}
			})
		}
	}
	partstest.EventuallyNil(t, "the flood is on", func() error {
		if n := answered[429].Load(); n < 200 {
			return fmt.Errorf("%d answers with 429", n)
		}
		return nil
	})
	loud := median("beside a flood")
	stop()
	flood.Wait()
	t.Logf("another user's page: %v, beside a flood %v (%.1f times); the flood: %d answers with 200, %d with 429, %d with 503",
		quiet, loud, float64(loud)/float64(quiet), answered[200].Load(), answered[429].Load(), answered[503].Load())
	if answered[200].Load() == 0 {
		t.Error("the one user gets no page at all, want a share")
	}
	if a := s.page(flooder); a.status != 200 {
		t.Errorf("afterwards: %d", a.status)
	}
	// Nor can a user fill the log: the errors of users are not logged.
	for range 20 {
		if a := s.send(request{target: "/api?before=%21", header: []string{"Cookie: " + flooder, "Accept: application/json"}}); a.status != 400 {
			t.Fatalf("a place in the list that is none: %d %s, want 400", a.status, a.body)
		}
	}
	for line := range strings.SplitSeq(s.replicas[0].process.Output(), "\n") {
		if strings.Contains(line, "a part of the page is left out") {
			t.Fatalf("a place in the list that is none is in the log: %s", line)
		}
	}
}

// statusOf returns the status of an answer, or 0 for none.
func statusOf(ctx context.Context, transport *http.Transport, url, cookie string) int {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0
	}
	request.Header.Set("Cookie", cookie)
	request.Header.Set("Accept", "application/json")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	io.Copy(io.Discard, response.Body)
	return response.StatusCode
}
