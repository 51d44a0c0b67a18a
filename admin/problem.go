package admin

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// code is the stable name of a kind of problem.
type code string

// The kinds of problems.
const (
	invalidRequest   code = "invalid_request"
	invalidField     code = "invalid_field"
	missingField     code = "missing_field"
	unknownField     code = "unknown_field"
	unknownParameter code = "unknown_parameter"
	unauthorized     code = "unauthorized"
	forbidden        code = "forbidden"
	noOperation      code = "no_operation"
	notFound         code = "not_found"
	noKey            code = "no_key"
	methodNotAllowed code = "method_not_allowed"
	exists           code = "exists"
	inUse            code = "in_use"
	missingReference code = "missing_reference"
	keyReplaced      code = "key_replaced"
	keyNotKept       code = "key_not_kept"
	keyReused        code = "idempotency_key_reused"
	refused          code = "refused"
	changed          code = "changed"
	tooLarge         code = "too_large"
	mediaType        code = "unsupported_media_type"
	rateLimited      code = "rate_limited"
	internal         code = "internal"
	busy             code = "busy"
	outcomeUnknown   code = "outcome_unknown"
	keyUnreadable    code = "key_unreadable"
	unavailable      code = "unavailable"
)

// kinds are all kinds of problems, in the order of their statuses.
var kinds = []struct {
	code   code
	status int
	title  string
}{
	{invalidRequest, 400, "The request is malformed"},
	{invalidField, 400, "A field or a parameter has a value that is not allowed"},
	{missingField, 400, "A field is missing"},
	{unknownField, 400, "The body has a field that there is not"},
	{unknownParameter, 400, "The query has a parameter that there is not"},
	{unauthorized, 401, "A token is missing, or it is none"},
	{forbidden, 403, "The token lacks the scope"},
	{noOperation, 404, "There is no such operation"},
	{notFound, 404, "What is named does not exist"},
	{noKey, 404, "The user has no key"},
	{methodNotAllowed, 405, "The operation has other methods"},
	{exists, 409, "It exists already"},
	{inUse, 409, "Something else needs it"},
	{missingReference, 409, "Something that the body names does not exist"},
	{keyReplaced, 409, "Another key was made meanwhile"},
	{keyNotKept, 409, "The key cannot be shown again"},
	{keyReused, 409, "The Idempotency-Key was used for another call"},
	{refused, 409, "The state of the directory does not allow it"},
	{changed, 412, "It is no longer as it was when it was read"},
	{tooLarge, 413, "The body is too large"},
	{mediaType, 415, "The body is not JSON"},
	{rateLimited, 429, "Too many requests with this token"},
	{internal, 500, "A fault of the service"},
	{busy, 503, "The service is busy"},
	{outcomeUnknown, 503, "It is unknown whether the change was made"},
	{keyUnreadable, 503, "The sealed copy of the key does not open"},
	{unavailable, 503, "The database did not do it"},
}

// problem is the reason of an answer that refuses. As an error it ends an operation.
type problem struct {
	code   code
	detail string
	field  string        // the field or the parameter that is wrong, if one is
	retry  time.Duration // when to try again; 0: unknown
	allow  string        // the methods that the operation has
	cause  error         // for the log; nil if the caller is to blame
}

func (p problem) Error() string { return string(p.code) + ": " + p.detail }

// body returns the problem as in RFC 9457.
func (p problem) body(request string) (status int, body any) {
	for _, kind := range kinds {
		if kind.code == p.code {
			return kind.status, problemBody{"urn:keyporter:problem:" + string(p.code), kind.title, kind.status, p.detail, p.code, p.field, request}
		}
	}
	panic("admin: a problem of no kind") // kinds has all of the codes
}

type problemBody struct {
	Type    string `json:"type"`
	Title   string `json:"title"`
	Status  int    `json:"status"`
	Detail  string `json:"detail"`
	Code    code   `json:"code"`
	Field   string `json:"field,omitempty"`
	Request string `json:"request_id"`
}

// answers maps the errors of operations that are answers to kinds of problems.
var answers = map[operations.Kind]code{
	operations.Invalid: invalidField, operations.NotFound: notFound, operations.Exists: exists,
	operations.InUse: inUse, operations.Refused: refused,
}

// problemOf returns the problem of an error of an operation.
func problemOf(err error) problem {
	if p := (problem{}); errors.As(err, &p) {
		return p
	}
	kind := operations.KindOf(err)
	if kind == operations.Failed {
		return failure(err)
	}
	p := problem{code: answers[kind], detail: strings.ReplaceAll(err.Error(), "\n", "; "), field: fieldOf(err)}
	item := store.ItemError{}
	if errors.As(err, &item) { // its body names everything
		p.field = strings.TrimSuffix(fmt.Sprintf("%s[%d].%s", items, item.Index, p.field), ".")
	}
	switch {
	case errors.Is(err, feed.ErrKeyReused):
		p.code = keyReused
	case errors.Is(err, directory.ErrChanged):
		p.code = changed
	case errors.As(err, new(directory.ReplacedError)):
		p.code = keyReplaced
	case errors.Is(err, operations.ErrNoKey):
		p.code = noKey
	case errors.Is(err, operations.ErrNotKept):
		p.code = keyNotKept
	case p.field != "" && kind == operations.NotFound:
		p.code = missingReference
	case p.field == "" && kind == operations.Invalid:
		p.code = invalidRequest
	}
	return p
}

// fieldOf returns the field that an error is about, or "".
func fieldOf(err error) string {
	if f := (store.FieldError{}); errors.As(err, &f) {
		return f.Field
	}
	if f := (operations.FieldError{}); errors.As(err, &f) {
		return f.Field
	}
	if fix := (directory.FixableError{}); errors.As(err, &fix) {
		return map[directory.Fix]string{directory.CreatePlan: "plan", directory.CreateAccount: "account", directory.ReleaseSubject: "subject"}[fix.Fix]
	}
	switch {
	case errors.Is(err, store.ErrCursor):
		return "cursor"
	case errors.Is(err, feed.ErrKeyReused):
		return "Idempotency-Key"
	case errors.As(err, new(directory.ReplacedError)):
		return "replaces"
	}
	return ""
}

// failure returns the problem of an operation that the database did not do. The error stays in the
// log: it may name the server.
func failure(err error) problem {
	switch {
	case errors.Is(err, store.ErrUnknownOutcome):
		return problem{code: outcomeUnknown, retry: time.Second, cause: err,
			detail: "The connection to the database broke while the change was being saved: repeat the call with the Idempotency-Key of this answer, which makes it once."}
	case errors.Is(err, store.ErrConflict):
		return problem{code: busy, retry: time.Second, cause: err, detail: "Other changes are in the way; nothing was changed."}
	case errors.Is(err, operations.ErrUnsealed):
		return problem{code: keyUnreadable, retry: time.Minute, cause: err, detail: "The key still opens the API. Give this replica the --seal-key-file of its database, or regenerate the key."}
	}
	return problem{code: unavailable, retry: time.Second, cause: err, detail: "Repeat the call; a change with the Idempotency-Key of this answer."}
}
