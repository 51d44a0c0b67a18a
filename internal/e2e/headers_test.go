package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

const tooLargeBody = `{"success":false,"error":"Request header fields too large.","code":"headers_too_large"}`

// Outcomes of requests with many or with long headers, in the order of growing size. Beyond its own
// limits, Envoy closes the connection or, with HTTP/2, the stream.
const (
	fits     = "200"
	tooLarge = "431"
	beyond   = "431 and the end"
	isReset  = "a reset"
)

// Around each limit of headers there are three outcomes: a request passes and is charged; there is
// no room for our headers, so it gets a free 431 regardless of its route's refund rule; or Envoy
// rejects it without a Check.
func TestHeadersForWhichThereIsNoRoom(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	s := start(t, stackConfig{config: `routes:
  - {paths: "/failure/*", kind: api_key}
  - {paths: "/never/*", kind: api_key, refund: never}
  - {paths: "/codes/*", kind: api_key, refund: {codes: [503]}}
`})
	due := map[string][2]int64{} // user → credits used and refunded
	for protocol, end := range map[string]string{"HTTP/1.1": beyond, "HTTP/2": isReset} {
		c := s.bulkyClient(t, protocol)
		got := map[string]int64{}
		c.grow(t, "headers", 110, end, got, func(n int) string { return c.ask(t, "/never/x", n, 0, "") })
		c.grow(t, "bytes", 70_000, end, got, func(n int) string { return c.ask(t, "/never/x", 0, n, "") })
		if t.Log(protocol, got); got[fits] == 0 || got[tooLarge] == 0 || got[end] == 0 || len(got) != 3 {
			t.Errorf("%s: %v", protocol, got)
		}
		due[c.user] = [2]int64{got[fits], got[tooLarge]}
		for _, rule := range []string{"failure", "never", "codes"} {
			c.user = rule + protocol[5:6]
			c.key = s.user(c.user, "metered")
			for _, body := range []string{"", strings.Repeat("b", 100_000)} {
				if got := c.ask(t, "/"+rule+"/x", 92, 0, body); !strings.HasPrefix(got, tooLarge) {
					t.Errorf("%s, %s: %s, want 431", protocol, rule, got)
				}
			}
			if got := c.ask(t, "/"+rule+"/x", 10, 0, strings.Repeat("b", 100_000)); got != fits {
				t.Errorf("%s, %s: a long body: %s", protocol, rule, got)
			}
			due[c.user] = [2]int64{1, 2}
		}
	}
	for user, d := range due {
		s.balanceBecomes(user, d[0], d[1])
	}
	s.ledgerAddsUp()
}

// grow sends requests of each size around both of the limits that it finds, and counts the
// outcomes.
func (c *bulkyClient) grow(t *testing.T, what string, most int, end string, got map[string]int64, send func(n int) string) {
	t.Helper()
	ask := func(n int) string {
		outcome := send(n)
		got[outcome]++
		return outcome
	}
	for _, edge := range []int{
		sort.Search(most, func(n int) bool { return ask(n) != fits }),
		sort.Search(most, func(n int) bool { return ask(n) == end }),
	} {
		last := ""
		for n := edge - 10; n <= edge+10; n++ {
			outcome := ask(n)
			if outcome < last {
				t.Errorf("%s, %d %s: %s, after %s for less", c.user, n, what, outcome, last)
			}
			last = outcome
		}
	}
}

// bulkyClient sends many or long headers.
type bulkyClient struct {
	*http.Client
	front, user, key string
}

func (s *stack) bulkyClient(t *testing.T, protocol string) *bulkyClient {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(protocol == "HTTP/1.1")
	protocols.SetUnencryptedHTTP2(protocol == "HTTP/2")
	transport := &http.Transport{Protocols: &protocols, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	user := "bulky" + protocol[5:6]
	return &bulkyClient{&http.Client{Transport: transport}, s.front, user, s.user(user, "metered", "--credits", "100000")}
}

// ask sends a request with headers extra headers, or with bytes extra bytes in one header.
func (c *bulkyClient) ask(t *testing.T, target string, headers, bytes int, body string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.front+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-API-Key", c.key)
	for i := range headers {
		r.Header.Set(fmt.Sprint("X-Header-", i), "1")
	}
	if bytes > 0 {
		r.Header.Set("X-Header", strings.Repeat("1", bytes))
	}
	answer, err := c.Do(r)
	if err != nil {
		if strings.Contains(err.Error(), "INTERNAL_ERROR") {
			return isReset
		}
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode == 431 && (string(text) != tooLargeBody || answer.Header.Get("Content-Type") != "application/json") {
		t.Errorf("%d headers, %d bytes: %s", headers, bytes, text)
	}
	if answer.Close && answer.StatusCode == 431 {
		return beyond
	}
	return fmt.Sprint(answer.StatusCode)
}
