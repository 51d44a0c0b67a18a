package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Code is the stable name of a kind of problem. It is a target of [errors.Is]:
//
//	if errors.Is(err, client.ErrNotFound) { … }
type Code string

func (c Code) Error() string { return strings.ReplaceAll(string(c), "_", " ") }

// The codes that callers often tell apart. The document of the API lists all of them.
const (
	ErrUnauthorized Code = "unauthorized"           // the API does not know the token
	ErrForbidden    Code = "forbidden"              // the token lacks a scope
	ErrNotFound     Code = "not_found"              // what is named does not exist
	ErrExists       Code = "exists"                 // what was to be made exists already
	ErrInUse        Code = "in_use"                 // something else needs what was to be deleted
	ErrRefused      Code = "refused"                // the state of the directory does not allow it
	ErrMissing      Code = "missing_reference"      // the plan or the account of Field does not exist
	ErrChanged      Code = "changed"                // it is no longer as it was when it was read
	ErrKeyReplaced  Code = "key_replaced"           // another key was made meanwhile
	ErrReused       Code = "idempotency_key_reused" // the key of Once was used for another call
	ErrRateLimited  Code = "rate_limited"           // too many requests with this token
	ErrUnreadable   Code = "key_unreadable"         // the service's seal key is another database's
)

// Problem is an answer of the API that is a refusal, as in RFC 9457.
type Problem struct {
	Status    int    `json:"status"` // of HTTP
	Code      Code   `json:"code"`   // stable; "" if the answer is not one of the API
	Type      string `json:"type"`
	Title     string `json:"title"`
	Detail    string `json:"detail"` // for people; it may change
	Field     string `json:"field"`  // the field or the parameter that is wrong, if one is
	RequestID string `json:"request_id"`
	// RetryAfter is when to try again; 0 if the API does not say it. The client has already tried
	// again as often as its options allow.
	RetryAfter time.Duration `json:"-"`
	// IdempotencyKey is that of a change. A repeated call with it, see [Client.Once], makes the
	// change once, whether or not this call made it.
	IdempotencyKey string `json:"-"`
}

func (p *Problem) Error() string {
	text := p.Detail
	if p.Code != "" {
		text = string(p.Code) + ": " + text
	}
	if p.RequestID != "" {
		text += " (request " + p.RequestID + ")"
	}
	return text
}

// Is reports whether target is the code of the problem.
func (p *Problem) Is(target error) bool {
	code, is := target.(Code)
	return is && code == p.Code && code != ""
}

// mayPass reports whether the same call may succeed later: the API was busy, or could not be
// reached by whatever is in front of it.
func (p *Problem) mayPass() bool {
	if p.Code == ErrUnreadable {
		return false // until somebody corrects the configuration
	}
	switch p.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// problemOf returns the problem that an answer with its body is.
func problemOf(status int, head http.Header, body []byte) *Problem {
	p := &Problem{}
	kind, _, _ := mime.ParseMediaType(head.Get("Content-Type"))
	if kind != "application/problem+json" || json.Unmarshal(body, p) != nil || p.Code == "" {
		*p = Problem{Detail: fmt.Sprintf("the answer is not one of the API: %d %s", status, http.StatusText(status)), RequestID: head.Get("X-Request-Id")}
	}
	p.Status, p.IdempotencyKey = status, head.Get(idempotencyKey)
	p.RetryAfter = retryAfter(head.Get("Retry-After"))
	return p
}

// maxRetryAfter bounds a Retry-After: nobody waits for a day, and a larger number of seconds may be
// no duration.
const maxRetryAfter = 24 * time.Hour

// retryAfter reads a header Retry-After, which is a number of seconds or, of a proxy, a time.
func retryAfter(text string) time.Duration {
	seconds, err := strconv.ParseUint(text, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(time.Until(at), 0), maxRetryAfter)
}

// UnclearError reports a change whose answer was lost. It may have been made or not: a repeated call
// with the key, see [Client.Once], makes it once.
type UnclearError struct {
	IdempotencyKey string
	Err            error // of the last attempt
}

func (e *UnclearError) Error() string {
	return fmt.Sprintf("%v: the change may have been made or not; repeat it with the idempotency key %s", e.Err, e.IdempotencyKey)
}

func (e *UnclearError) Unwrap() error { return e.Err }

// errTooLong is the error of an answer that is no answer of the API.
var errTooLong = errors.New("client: the answer is too long")
