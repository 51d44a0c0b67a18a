package admin

import (
	"context"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/internal/operations"
)

// call is one call of a caller with the right scope.
type call struct {
	*server
	caller bearer.Caller
	by     operations.Operator
}

// operation is a row of the table: what the API routes, permits, reads, documents and counts. There
// is no other way to add one than newOperation, so none lacks a scope or a document.
type operation struct {
	id, method, path string
	scope            bearer.Scope // "": any token
	summary          string
	in, out          reflect.Type
	params           []param
	codes            []code // of its problems
	serve            func(ctx context.Context, c *call, in any) (any, error)
}

// newOperation returns an operation that reads an In and answers with an Out, or with one of the
// problems that follow from what it reads, or of more.
func newOperation[In, Out any](id, method, path string, scope bearer.Scope, summary string, serve func(context.Context, *call, In) (Out, error), more ...code) operation {
	in := reflect.TypeFor[In]()
	o := operation{
		id: id, method: method, path: path, scope: scope, summary: summary, in: in, out: reflect.TypeFor[Out](), params: paramsOf(in),
		serve: func(ctx context.Context, c *call, in any) (any, error) { return serve(ctx, c, *in.(*In)) },
	}
	o.codes = append(o.problems(), more...)
	return o
}

// problems returns the problems that follow from what the operation reads. Every operation looks at
// the whole query, at conditions and at the size of the body.
func (o *operation) problems() []code {
	all := []code{invalidRequest, invalidField, unknownParameter, unauthorized, tooLarge, rateLimited, internal, busy, unavailable}
	for _, row := range []struct {
		code code
		can  bool
	}{
		{forbidden, o.scope != ""},
		{missingField, slices.ContainsFunc(o.params, func(p param) bool { return p.required && (p.place == "json" || p.place == "query") })},
		{unknownField, o.takesBody()},
		{mediaType, o.takesBody()},
		{notFound, strings.Contains(o.path, "{")},
		{changed, o.has("header", "If-Match")},
		{keyReused, o.changes()},
		{outcomeUnknown, o.changes()},
	} {
		if row.can {
			all = append(all, row.code)
		}
	}
	return all
}

// time returns how long a call may take.
func (o *operation) time() time.Duration {
	if o.out.Implements(reflect.TypeFor[streamed]()) {
		return listTime
	}
	return callTime
}

// takesBody reports whether a request may have a body, although perhaps one without fields.
func (o *operation) takesBody() bool {
	return o.method != http.MethodGet && o.method != http.MethodDelete
}

// change is the result of a change: [operations.Committed].
type change interface {
	Enforcement() operations.Enforcement
	Value() any
}

// changes reports whether a caller can name a call of the operation, so that it is made once.
func (o *operation) changes() bool { return o.has("header", idempotencyKey) }

const idempotencyKey = "Idempotency-Key"

// match returns the parts of a path that a pattern names, such as {user}.
func match(pattern, path string) (parts map[string]string, matches bool) {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil, false
	}
	parts = map[string]string{}
	for i, part := range want {
		text, err := url.PathUnescape(got[i])
		if err != nil || text == "" && i > 0 {
			return nil, false
		}
		if name, isName := strings.CutPrefix(part, "{"); isName {
			parts[strings.TrimSuffix(name, "}")] = text
		} else if part != text {
			return nil, false
		}
	}
	return parts, true
}

// find returns the operation of a request, and the parts of its path.
func find(table []operation, r *http.Request) (o *operation, parts map[string]string, err error) {
	var allowed []string
	for i := range table {
		found, matches := match(table[i].path, r.URL.EscapedPath())
		if !matches {
			continue
		}
		if table[i].method == r.Method {
			return &table[i], found, nil
		}
		allowed = append(allowed, table[i].method)
	}
	if len(allowed) == 0 {
		return nil, nil, problem{code: noOperation, detail: "GET /v1/openapi.json lists all operations."}
	}
	methods := strings.Join(allowed, ", ")
	return nil, nil, problem{code: methodNotAllowed, allow: methods, detail: "The methods are: " + methods + "."}
}
