package admin

import (
	"cmp"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// What several operations read.
type (
	none struct{}

	ofPlan struct {
		Plan string `path:"plan" form:"name" doc:"the name of the plan"`
	}
	ofAccount struct {
		Account string `path:"account" form:"name" doc:"the name of the account"`
	}
	ofUser struct {
		User string `path:"user" form:"name" doc:"the name of the user"`
	}

	// paged are the parameters of a list.
	paged struct {
		Cursor *string `query:"cursor" form:"visible" length:"2048" doc:"the next_cursor of the answer before; without it the list begins"`
		Limit  *int64  `query:"limit" min:"1" max:"1000" doc:"the maximum number of items; 100 by default"`
	}

	// repeatable is the name of a change.
	repeatable struct {
		Once *string `header:"Idempotency-Key" form:"visible" length:"255" doc:"names the call, for a week: a repeated call with the same key changes nothing, and waits again until every replica enforces the change; without it the answer has one that was made"`
	}

	// conditional is the precondition of a change.
	conditional struct {
		IfMatch     *string `header:"If-Match" form:"etag" doc:"the ETag of what is changed, as it was read, or *"`
		IfNoneMatch *string `header:"If-None-Match" enum:"*" doc:"* makes the call create only"`
	}
	// existing is conditional for changes that create nothing.
	existing struct {
		IfMatch *string `header:"If-Match" form:"etag" doc:"the ETag of what is changed, as it was read, or *"`
	}
)

// defaultPage is the number of items without limit.
const defaultPage = 100

// page returns where a list goes on, and how many items it has.
func (p paged) page() (cursor string, n int) {
	return text(p.Cursor), int(*cmp.Or(p.Limit, new(int64(defaultPage))))
}

// key returns the idempotency key of a call, which is never that of another caller.
func (r repeatable) key(c *call) (feed.IdempotencyKey, error) {
	return feed.IdempotencyKey(text(r.Once)).Of(c.actor())
}

// condition returns the precondition of a change. With only, the change creates nothing.
func (e existing) condition(only bool) (directory.Condition, error) {
	return conditional{IfMatch: e.IfMatch}.condition(only)
}

// condition returns the precondition of a change. With only, the change creates nothing.
func (c conditional) condition(only bool) (directory.Condition, error) {
	on := directory.Condition{Exists: only}
	if c.IfMatch != nil && c.IfNoneMatch != nil {
		return on, problem{code: invalidField, field: "If-Match", detail: "If-Match and If-None-Match exclude each other."}
	}
	on.Absent = c.IfNoneMatch != nil
	switch {
	case c.IfMatch == nil:
	case *c.IfMatch == "*":
		on.Exists = true
	default:
		on.Version = strings.Trim(*c.IfMatch, `"`)
	}
	return on, nil
}

// text returns what a pointer points to, or "".
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// checked returns the idempotency key of a change, unless an earlier check failed, or the body has
// a name that is not the one in the path.
func checked(c *call, name *string, path string, named repeatable, failed error) (feed.IdempotencyKey, error) {
	switch {
	case failed != nil:
		return "", failed
	case name != nil && *name != path:
		return "", problem{code: invalidField, field: "name", detail: "name: want the name in the path; nothing can be renamed."}
	}
	return named.key(c)
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
