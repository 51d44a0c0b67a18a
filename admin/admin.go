// Package admin is the operators' API over HTTP: JSON under /v1, for billing systems and web apps.
// It reads a request, calls an operation of internal/operations, which the commands call as well,
// and writes the result. One table has all operations: the routes, the scopes, the document and the
// metrics come from it. The API has a port of its own, apart from the users' page.
package admin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"regexp"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// Config configures the API. All fields but Known, Unseal, Log and Metrics are required.
type Config struct {
	// Caller returns the caller of a request, by its token or its certificate.
	Caller func(*http.Request) (bearer.Caller, bool)
	// Known is called with the context of each request with a valid token. Nil: not at all.
	Known func(context.Context)
	// Operator returns the operations of an author, for the audit.
	Operator func(actor string) operations.Operator
	Page     operations.UserPage // for login links and cookies
	Prefix   string              // of new keys
	Valkey   bool                // replicas count rate limits together
	// Unseal opens the sealed copy of a key; nil: no key is revealed.
	Unseal operations.Unseal
	// Authorize decides about a key as a Check does: [authz.Authorizer.AuthorizeKey].
	Authorize func(context.Context, authz.KeyQuestion) (authz.Decision, error)
	// Usage returns a user's rate limit and credits from memory, without counting anything.
	Usage func(context.Context, *authz.Principal) (usage.Rate, usage.Credits, error)

	Log     *slog.Logger          // nil: slog.Default()
	Metrics prometheus.Registerer // nil: none
}

// callTime bounds a call. It is longer than a change and the wait for the longest lease, and
// shorter than the server lets a connection write.
const callTime = 58 * time.Second

// listTime bounds a [stream], which may take longer as long as its reader reads.
const listTime = time.Hour

const (
	jsonType    = "application/json"
	problemType = "application/problem+json"
	realm       = `Bearer realm="keyporter operators"`
)

// server is the handler.
type server struct {
	config    Config
	table     []operation
	pace      pace // of lists
	document  json.RawMessage
	metrics   *metrics
	rates     *rates
	verifying sync.Mutex // held while the ledger is verified

	calls, verifications *places
}

// New returns the handler of the API.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &server{config: c, table: table(), pace: pace{time.Minute, listTime}, rates: newRates(), calls: newPlaces(), verifications: newPlaces()}
	text, err := document(s.table)
	if err != nil {
		panic("admin: the document does not encode: " + err.Error()) // it has texts and numbers only
	}
	s.document, s.metrics = text, newMetrics(s.table, c.Metrics)
	return s
}

// request is one request and its progress.
type request struct {
	*http.Request
	id     string // its name in logs and answers
	caller bearer.Caller
	op     *operation // nil until it is found
	leave  func()     // gives back the place of the call; nil: it has none
	cancel func()     // ends the operation; nil: it has not begun
}

// end ends the operation, and gives back the place of the call. That is after the answer is written, so that callers who do
// not read cannot make the service hold more answers than there are places.
func (q *request) end() {
	if q.cancel != nil {
		q.cancel()
	}
	if q.leave != nil {
		q.leave()
	}
}

// requestName matches a name that a caller may give a request.
var requestName = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// keyDigits matches the digits of a key, which must not get into a log.
var keyDigits = regexp.MustCompile(`[0-9a-f]{48}`)

// ServeHTTP implements [http.Handler]. It makes the whole answer before it writes any of it, so
// that a slow reader keeps no connection to the database. A [stream] is read in parts, which keep
// none either.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{Request: r, id: r.Header.Get("X-Request-Id")}
	if !requestName.MatchString(q.id) || keyDigits.MatchString(q.id) {
		q.id = rand.Text()
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBatch+1)
	head := w.Header()
	head.Set("X-Request-Id", q.id)
	head.Set("Cache-Control", "no-store")
	head.Set("X-Content-Type-Options", "nosniff")
	defer q.end()
	result, err := s.answer(q)
	if q.op != nil && q.op.changes() { // a refusal may say to repeat the call with it
		if once := q.Header.Values(idempotencyKey); len(once) == 1 {
			head.Set(idempotencyKey, once[0])
		}
	}
	if list, is := result.(streamed); is && err == nil {
		s.send(w, q, list)
		return
	}
	status, kind, body := http.StatusOK, jsonType, result
	if err != nil {
		p := problemOf(err)
		s.explain(q, p, head)
		kind = problemType
		status, body = p.body(q.id)
	} else {
		status = s.done(q, result, head)
	}
	text, err := json.Marshal(body)
	if err != nil { // only of results, whose change was made
		s.config.Log.Warn("an answer of the operators' API does not encode", "operation", q.name(), "request", q.id, "error", err)
		kind = problemType
		status, body = problem{code: internal, detail: "The result cannot be shown."}.body(q.id)
		text, _ = json.Marshal(body)
	}
	s.metrics.count(q.op, status)
	head.Set("Content-Type", kind)
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // the caller may have left
}

// send writes a list. An error breaks the answer off, so that its reader takes no part for the
// whole.
func (s *server) send(w http.ResponseWriter, q *request, list streamed) {
	defer list.close()
	s.metrics.count(q.op, http.StatusOK)
	w.Header().Set("Content-Type", list.contentType())
	if err := list.write(s.pace.writer(w)); err != nil {
		if q.Context().Err() == nil { // the caller has not left
			s.config.Log.Warn("an answer of the operators' API was broken off", "operation", q.name(), "caller", q.caller.Name, "request", q.id, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
}

// answer finds the caller, then the operation, and carries it out. A stranger learns nothing else.
func (s *server) answer(q *request) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			result, err = nil, problem{code: internal, detail: "The operation failed; a change may have been made or not.", cause: fmt.Errorf("panic with a %T\n%s", p, debug.Stack())} // the value may quote a key
		}
	}()
	known := false
	if q.caller, known = s.config.Caller(q.Request); !known {
		return nil, problem{code: unauthorized, detail: "Want Authorization: Bearer TOKEN, with a token of --admin-tokens-file, or a certificate that it names."}
	}
	if s.config.Known != nil {
		s.config.Known(q.Context())
	}
	if !s.rates.allow(q.caller) {
		return nil, problem{code: rateLimited, retry: time.Second, detail: fmt.Sprintf("This token has %d requests per second on each replica.", q.caller.Rate)}
	}
	op, path, err := find(s.table, q.Request)
	if err != nil {
		return nil, err
	}
	q.op = op
	// From here on, since the time for the answer is running already.
	var ctx context.Context
	ctx, q.cancel = context.WithTimeout(q.Context(), op.time())
	if op.scope != "" && !q.caller.May(op.scope) {
		return nil, lacks(op.scope)
	}
	if op.changes() && len(q.Header.Values(idempotencyKey)) == 0 {
		q.Header.Set(idempotencyKey, string(feed.NewIdempotencyKey()))
	}
	in, err := op.read(q.Request, path)
	if err != nil {
		return nil, err
	}
	places := s.calls
	if op.scope == bearer.Verify { // never behind changes that wait for a replica
		places = s.verifications
	}
	if !places.enter(q.caller.Name) {
		return nil, problem{code: busy, retry: time.Second, detail: "Too many calls are in progress on this replica."}
	}
	q.leave = func() { places.leave(q.caller.Name) }
	c := &call{server: s, caller: q.caller}
	c.by = s.config.Operator(c.actor())
	return op.serve(ctx, c, in)
}

// actor is the author of the caller's changes, in the audit.
func (c *call) actor() string { return "api:" + c.caller.Name }

func lacks(scope bearer.Scope) error {
	return problem{code: forbidden, detail: "The token lacks the scope " + string(scope) + "."}
}

// explain writes the headers of a problem, and logs a fault of the service.
func (s *server) explain(q *request, p problem, head http.Header) {
	if p.cause != nil && !errors.Is(q.Context().Err(), context.Canceled) {
		s.config.Log.Warn("a call of the operators' API failed", "operation", q.name(), "caller", q.caller.Name, "request", q.id, "error", p.cause)
	}
	if p.retry > 0 {
		head.Set("Retry-After", strconv.Itoa(int(max(1, p.retry/time.Second))))
	}
	if p.allow != "" {
		head.Set("Allow", p.allow)
	}
	if p.code == unauthorized {
		head.Set("WWW-Authenticate", realm)
	}
}

// done writes the headers of a result, logs a change, and returns the status.
func (s *server) done(q *request, result any, head http.Header) int {
	status := http.StatusOK
	made, isChange := result.(change)
	if isChange {
		if !made.Enforcement().Confirmed {
			status = http.StatusAccepted
		}
		s.config.Log.Info("a change by the operators' API", "operation", q.name(), "caller", q.caller.Name, "path", q.URL.Path,
			"request", q.id, "confirmed", made.Enforcement().Confirmed)
		result = made.Value()
	}
	if tagged, has := result.(interface{ Version() string }); has && taggedTypes[reflect.TypeOf(result)] {
		head.Set("ETag", `"`+tagged.Version()+`"`)
	}
	return status
}

// taggedTypes are the results with an ETag.
var taggedTypes = map[reflect.Type]bool{
	reflect.TypeFor[operations.Plan](): true, reflect.TypeFor[directory.Account](): true, reflect.TypeFor[directory.User](): true,
}

// name returns the operation of the request.
func (q *request) name() string {
	if q.op == nil {
		return noneAtAll
	}
	return q.op.id
}
