package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/keyporter/keyporter/usage"
)

const (
	idempotencyKey = "Idempotency-Key"

	defaultAttempts = 5
	defaultTimeout  = 70 * time.Second
	firstPause      = 100 * time.Millisecond
	maxPause        = 10 * time.Second

	maxAnswer = 16 << 20 // bytes; a page of 1000 items has less than one MiB
	pageSize  = "1000"
)

// call is one call. All its attempts send the same.
type call struct {
	method, path string
	query        url.Values
	body         []byte // nil: none
	head         http.Header
	safe         bool // it may be sent again if nobody knows whether it was carried out
	streamed     bool // the answer may be long: it is read by the caller, and has no time limit
}

// answer is the answer to a call: 200 or 202.
type answer struct {
	status int
	head   http.Header
	body   []byte        // read
	stream io.ReadCloser // of a call that is streamed
}

// do sends a call until it is answered, refused for good, or has had all its attempts.
func (c *Client) do(ctx context.Context, k call) (answer, error) {
	attempts := c.options.Attempts
	if attempts < 1 {
		attempts = defaultAttempts
	}
	pause := c.options.Pause
	if pause <= 0 {
		pause = firstPause
	}
	unclear := false
	for n := 1; ; n++ {
		a, err := c.attempt(ctx, k)
		if err == nil {
			return a, nil
		}
		refusal := (*Problem)(nil)
		again := k.safe && !errors.As(err, new(*tls.CertificateVerificationError))
		unclear = unclear || !neverSent(err)
		wait := jittered(pause)
		if errors.As(err, &refusal) {
			again = again && refusal.mayPass()
			wait = max(wait, refusal.RetryAfter)
		}
		if !again || n == attempts || !sleep(ctx, wait) {
			return answer{}, k.explain(err, unclear)
		}
		pause = min(2*pause, maxPause)
	}
}

// neverSent reports whether a request failed before anything of it was sent.
func neverSent(err error) bool {
	dialled := (*net.OpError)(nil)
	return errors.As(err, &dialled) && dialled.Op == "dial" || errors.As(err, new(*tls.CertificateVerificationError))
}

// explain adds to the last error what was called, and what to do about a change that may have been
// made.
func (k *call) explain(err error, unclear bool) error {
	once := k.head.Get(idempotencyKey)
	refusal := (*Problem)(nil)
	if errors.As(err, &refusal) {
		if refusal.IdempotencyKey == "" {
			refusal.IdempotencyKey = once
		}
		return err
	}
	err = fmt.Errorf("%s %s: %w", k.method, k.path, err)
	if once != "" && unclear {
		return &UnclearError{once, err}
	}
	return err
}

// attempt sends a call once.
func (c *Client) attempt(ctx context.Context, k call) (a answer, err error) {
	timeout := c.options.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(timeout, func() { cancel(fmt.Errorf("no answer within %v", timeout)) })
	defer func() {
		timer.Stop()
		if a.stream == nil {
			cancel(nil)
		}
	}()
	target := c.base + k.path
	if len(k.query) > 0 {
		target += "?" + k.query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, k.method, target, bytes.NewReader(k.body))
	if err != nil {
		return answer{}, err
	}
	for name, values := range k.head {
		r.Header[name] = values
	}
	r.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	if k.body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(r)
	if err != nil {
		return answer{}, causeOf(ctx, err)
	}
	a = answer{status: response.StatusCode, head: response.Header}
	good := a.status == http.StatusOK || a.status == http.StatusAccepted
	if good && k.streamed {
		a.stream = &stream{response.Body, cancel}
		return a, nil
	}
	defer response.Body.Close()
	if a.body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer+1)); err != nil {
		return answer{}, causeOf(ctx, err)
	}
	if len(a.body) > maxAnswer {
		return answer{}, errTooLong
	}
	if !good {
		return answer{}, problemOf(a.status, a.head, a.body)
	}
	return a, nil
}

// causeOf returns why a request failed, without the URL that net/http puts before it.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// stream is a body whose context ends with it.
type stream struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (s *stream) Close() error {
	s.cancel(nil)
	return s.ReadCloser.Close()
}

// jittered returns a pause between the half and one and a half of the mean, so that callers who
// were refused together do not come back together.
func jittered(mean time.Duration) time.Duration {
	return mean/2 + time.Duration(randv2.Int64N(int64(mean)))
}

// sleep waits. It reports false, at once, if ctx ends before that.
func sleep(ctx context.Context, d time.Duration) bool {
	if deadline, bounded := ctx.Deadline(); bounded && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// read calls an operation that changes nothing.
func read[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	value, _, err := readTagged[T](ctx, c, path, query)
	return value, err
}

// readTagged is read, and returns the ETag of the answer.
func readTagged[T any](ctx context.Context, c *Client, path string, query url.Values) (value T, etag string, err error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query, safe: true})
	if err != nil {
		return value, "", err
	}
	return value, a.head.Get("ETag"), decode(path, a.body, &value)
}

// ask calls an operation that changes nothing, with a body.
func ask[T any](ctx context.Context, c *Client, path string, body any, safe bool) (value T, err error) {
	k := call{method: http.MethodPost, path: path, safe: safe}
	if body != nil {
		if k.body, err = json.Marshal(body); err != nil {
			return value, err
		}
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return value, err
	}
	return value, decode(path, a.body, &value)
}

// change calls an operation that changes something, with a body or nil.
func change[T any](ctx context.Context, c *Client, method, path string, body any) (Changed[T], error) {
	k := call{method: method, path: path, safe: true, head: http.Header{}}
	if c.once == "" {
		k.head.Set(idempotencyKey, rand.Text())
	} else {
		k.head.Set(idempotencyKey, c.once)
	}
	for name, condition := range map[string]string{"If-Match": c.ifMatch, "If-None-Match": c.ifNoneMatch} {
		if condition != "" {
			k.head.Set(name, condition)
		}
	}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return Changed[T]{}, err
		}
		k.body = text
	}
	return send[T](ctx, c, k)
}

// send sends a change, and returns what became of it.
func send[T any](ctx context.Context, c *Client, k call) (done Changed[T], err error) {
	a, err := c.do(ctx, k)
	if err != nil {
		return done, err
	}
	if err := decode(k.path, a.body, &done.Value); err != nil {
		return done, &UnclearError{k.head.Get(idempotencyKey), err}
	}
	if err := decode(k.path, a.body, &done.Enforcement); err != nil {
		return done, &UnclearError{k.head.Get(idempotencyKey), err}
	}
	done.IdempotencyKey = k.head.Get(idempotencyKey)
	if tagged, is := any(&done.Value).(interface{ setETag(string) }); is {
		tagged.setETag(a.head.Get("ETag"))
	}
	done.again = func(ctx context.Context) (Enforcement, error) {
		again, err := send[T](ctx, c, k)
		return again.Enforcement, err
	}
	return done, nil
}

// decode reads the body of an answer. The error quotes none of it: it may have a secret.
func decode(path string, body []byte, into any) error {
	if json.Unmarshal(body, into) != nil {
		return fmt.Errorf("the answer to %s is not one of the API", path)
	}
	return nil
}

// page is a part of a list.
type page[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next_cursor"`
}

// pages lists all items of a list, and reads it page by page. An error ends the list.
func pages[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		q := url.Values{"limit": {pageSize}}
		for name, values := range query {
			q[name] = values
		}
		for {
			part, err := read[page[T]](ctx, c, path, q)
			if err != nil {
				yield(*new(T), err)
				return
			}
			for _, item := range part.Items {
				if !yield(item, nil) {
					return
				}
			}
			if part.Next == nil {
				return
			}
			q.Set("cursor", *part.Next)
		}
	}
}

// path returns the path of an operation on something with a name.
func path(parts ...string) string {
	var b bytes.Buffer
	for i, part := range parts {
		if i%2 == 1 {
			part = url.PathEscape(part)
		}
		b.WriteString(part)
	}
	return b.String()
}

// filter returns the query of the values that are not empty, from pairs.
func filter(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// Span is a time span, as the API writes it in words such as 1m30s.
type Span time.Duration

// String returns the span in words.
func (s Span) String() string { return time.Duration(s).String() }

// MarshalText implements [encoding.TextMarshaler].
func (s Span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Span) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	*s = Span(d)
	return err
}

// Limit is a number of requests or of credits from 0 on, or [Unlimited].
type Limit = usage.Limit

// Unlimited is the [Limit] that never refuses.
const Unlimited = usage.Unlimited
