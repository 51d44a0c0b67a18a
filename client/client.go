// Package client calls the operators' API of Keyporter: plans, accounts, users, keys, sessions,
// credits and usage, for billing systems and web apps.
//
// A [Client] repeats what is safe: reads, and changes, since each change has an Idempotency-Key
// that the client makes once for each call. A change is in force on every replica when its method
// returns with Confirmed; else [Changed.Wait] waits on. Refusals are a [*Problem] with a stable
// code. Tokens, keys, cookies and login links are a [Secret], which cannot be printed.
//
// The API is described in docs/api.md of the repository, and by itself at /v1/openapi.json.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Options configures a [Client]. The zero Options are ready for use.
type Options struct {
	// HTTP sends the requests, and decides about TLS, proxies and connections. Nil:
	// [http.DefaultClient]. Redirects are never followed, since the API has none.
	HTTP *http.Client
	// PlainHTTP lets the token travel without TLS to other machines, as in a private network.
	PlainHTTP bool
	// Attempts is how often a call is tried before its error is returned. 0: 5; 1: no repetition.
	Attempts int
	// Pause is the mean pause before the second attempt; it doubles with each further one, up to ten
	// seconds. 0: 100 ms. A longer Retry-After of an answer is kept.
	Pause time.Duration
	// Timeout bounds an attempt, until its answer is read or, for a list that is streamed, until it
	// begins. 0: 70 s, which is longer than the API waits for replicas. The context of a method bounds
	// all attempts together.
	Timeout time.Duration
}

// ErrPlainHTTP is the error of [New] for a URL by which the token would travel in the clear.
var ErrPlainHTTP = errors.New("client: plain HTTP would send the token in the clear: use https, or allow PlainHTTP in a network that you trust")

// Client calls the API. It is safe for concurrent use.
type Client struct {
	base    string // without a slash at its end
	token   Secret
	http    *http.Client
	options Options

	once, ifMatch, ifNoneMatch string // of changes; "": none
}

// New returns a client of the API at a URL such as https://keyporter.internal:9012, with a token of
// its --admin-tokens-file. It refuses plain HTTP to other machines, unless the options allow it.
func New(baseURL string, token Secret, o Options) (*Client, error) {
	u, err := url.Parse(baseURL)
	if err != nil {
		return nil, errors.New("client: the URL of the API cannot be read") // the cause quotes it
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		return nil, errors.New("client: want the URL of the API as https://HOST:PORT")
	case u.Scheme == "http" && !o.PlainHTTP && !loopback(u.Hostname()):
		return nil, fmt.Errorf("http://%s: %w", u.Host, ErrPlainHTTP)
	case token.IsZero():
		return nil, errors.New("client: the token is empty")
	case strings.ContainsFunc(token.Reveal(), func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("client: the token has blanks or characters that a header does not carry")
	}
	if o.HTTP == nil {
		o.HTTP = http.DefaultClient
	}
	sender := *o.HTTP
	sender.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: strings.TrimSuffix(baseURL, "/"), token: token, http: &sender, options: o}, nil
}

// loopback reports whether a host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Once returns a client whose next change has this Idempotency-Key, 1 to 255 visible ASCII
// characters such as the number of an invoice: for a week, a repeated call with it changes nothing,
// waits again, and returns the same result, but for a secret. Use the returned client for one call;
// another call with the same key is [ErrReused].
func (c *Client) Once(key string) *Client {
	named := *c
	named.once = key
	return &named
}

// IfMatch returns a client whose changes of plans, accounts and users are made only if the ETag is
// still that of what is changed, as it was read; else they are [ErrChanged].
func (c *Client) IfMatch(etag string) *Client {
	provided := *c
	provided.ifMatch = etag
	return &provided
}

// IfAbsent returns a client whose SetPlan, SetAccount and SetUser only create; else they are
// [ErrChanged].
func (c *Client) IfAbsent() *Client {
	provided := *c
	provided.ifNoneMatch = "*"
	return &provided
}

// Changed is a change that was made.
type Changed[T any] struct {
	Value T
	Enforcement
	// IdempotencyKey names the call.
	IdempotencyKey string

	again func(context.Context) (Enforcement, error)
}

// Enforcement is how far a change is in force.
type Enforcement struct {
	Confirmed bool          `json:"confirmed"` // no replica decides by the old state any more
	Replicas  ReplicaCounts `json:"replicas"`
	TookMS    int64         `json:"took_ms"`
}

// ReplicaCounts counts the replicas that enforce a change. The total is 0 if none is running, or if
// none had to be told.
type ReplicaCounts struct {
	Total        int `json:"total"`
	Acknowledged int `json:"acknowledged"`
	Expired      int `json:"expired"`
}

// Wait returns when the change is confirmed, at once if it is. Otherwise it repeats the call with
// its Idempotency-Key, so that nothing is changed again. The error is that of the context, or of a
// call that was refused.
func (c *Changed[T]) Wait(ctx context.Context) error {
	for pause := firstPause; !c.Confirmed; pause = min(2*pause, maxPause) {
		if c.again == nil {
			return errors.New("client: a change that no call has made")
		}
		now, err := c.again(ctx)
		if err != nil {
			return err
		}
		c.Enforcement = now
		if !now.Confirmed && !sleep(ctx, jittered(pause)) {
			return ctx.Err()
		}
	}
	return nil
}

// OpenAPI returns the document of the API, as the service has it.
func (c *Client) OpenAPI(ctx context.Context) (json.RawMessage, error) {
	return read[json.RawMessage](ctx, c, "/v1/openapi.json", nil)
}
