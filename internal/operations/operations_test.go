package operations_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

const actor = "command:root"

// house is a database. The account acme has the plan pro and two users: ada with a key, and bob
// without one. The plan spare and the account idle are unused.
type house struct {
	*testing.T
	db *store.DB
	by operations.Operator
}

func newHouse(t *testing.T, url string) house {
	t.Helper()
	h := house{t, storetest.Open(t, store.Config{URL: url}), operations.Operator{}}
	h.by = operations.By(actor, h.db)
	_, err1 := h.by.Plans().Set(t.Context(), "pro", directory.PlanChange{}, "")
	_, err2 := h.by.Plans().Set(t.Context(), "spare", directory.PlanChange{}, "")
	_, err3 := h.by.Accounts().Set(t.Context(), "acme", directory.AccountChange{Plan: new("pro")}, "")
	_, err4 := h.by.Accounts().Set(t.Context(), "idle", directory.AccountChange{Plan: new("pro")}, "")
	_, err5 := h.by.Users().Set(t.Context(), "ada", directory.UserChange{Account: new("acme"), Subject: new("auth0|ada")}, "")
	_, err6 := h.by.Users().Set(t.Context(), "bob", directory.UserChange{Account: new("acme")}, "")
	_, err7 := h.by.Keys("wh_").Create(t.Context(), "ada", "")
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7); err != nil {
		t.Fatal(err)
	}
	return h
}

// audit returns the entries of the audit, oldest first.
func (h house) audit() []directory.AuditEntry {
	h.Helper()
	all, err := store.Collect(h.by.Audit().Each(h.Context(), operations.AuditFilter{Limit: 1000}))
	if err != nil {
		h.Fatal(err)
	}
	slices.Reverse(all)
	return all
}

// answer is what a change returned, without its type.
type answer struct {
	json     string
	repeated bool
	err      error
}

func of[T any](done operations.Committed[T], err error) answer {
	text, problem := json.Marshal(done)
	return answer{string(text), done.Confirmation.Repeated, errors.Join(err, done.Unconfirmed, problem)}
}

// changes are all operations with an idempotency key. Each is possible in a house after those
// before it.
var changes = []struct {
	name   string
	audits string // the entry of the audit that it leaves
	change func(h house, once feed.IdempotencyKey) answer
}{
	{"a plan is set", "changed plan pro", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Plans().Set(h.Context(), "pro", directory.PlanChange{Pool: new("account")}, once))
	}},
	{"an account is set", "changed account idle", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Accounts().Set(h.Context(), "idle", directory.AccountChange{Status: new("suspended")}, once))
	}},
	{"a user is set", "changed user bob", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Users().Set(h.Context(), "bob", directory.UserChange{Kind: new("service")}, once))
	}},
	{"a key is made", "created key bob", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Keys("wh_").Create(h.Context(), "bob", once))
	}},
	{"a key is replaced", "created key ada", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Keys("wh_").Regenerate(h.Context(), "ada", "", once))
	}},
	{"a key is revoked", "changed key bob", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Keys("wh_").Revoke(h.Context(), "bob", once))
	}},
	{"sessions are ended", "changed user ada", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Sessions(operations.UserPage{}).Revoke(h.Context(), "ada", once))
	}},
	{"a session is made", "created session ada", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Sessions(operations.UserPage{}).Create(h.Context(), "ada", time.Hour, once))
	}},
	{"a login link is made", "created login link ada", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Sessions(operations.UserPage{}).CreateLink(h.Context(), "ada", once))
	}},
	{"credits are granted", "created grant acme", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Credits().Grant(h.Context(), "ada", 7, once))
	}},
	{"a user is deleted", "deleted user bob", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Users().Delete(h.Context(), "bob", once))
	}},
	{"an account is deleted", "deleted account idle", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Accounts().Delete(h.Context(), "idle", once))
	}},
	{"a plan is deleted", "deleted plan spare", func(h house, once feed.IdempotencyKey) answer {
		return of(h.by.Plans().Delete(h.Context(), "spare", once))
	}},
}

// A change is made once, however often it is called with one idempotency key. The audit names its
// author, and each answer says that every replica enforces it.
func TestAChangeIsMadeOnceByItsAuthorAndConfirmed(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		h := newHouse(t, url)
		for i, row := range changes {
			before := len(h.audit())
			for _, repeated := range []bool{false, true} {
				got := row.change(h, feed.IdempotencyKey(fmt.Sprint("call-", i)))
				if got.err != nil || got.repeated != repeated {
					t.Errorf("%s: repeated: %t, want %t: %v", row.name, got.repeated, repeated, got.err)
				}
				if want := `"confirmed":true,"replicas":{"total":0,"acknowledged":0,"expired":0},"took_ms":`; !strings.Contains(got.json, want) {
					t.Errorf("%s: %s lacks %s", row.name, got.json, want)
				}
				if !repeated {
					h.audited(row.name, before, row.audits)
				}
				before = len(h.audit())
			}
			if more := h.audit()[before:]; len(more) > 0 {
				t.Errorf("%s: the repeated call changed something: %+v", row.name, more)
			}
		}
	})
}

// audited checks that the audit has the entry of a change, and names the author of all new entries.
func (h house) audited(change string, before int, want string) {
	h.Helper()
	var lines []string
	for _, e := range h.audit()[before:] {
		lines = append(lines, fmt.Sprintf("%s %s %s", e.Action, e.Kind, e.Name))
		if e.Actor != actor {
			h.Errorf("%s: by %s in the audit", change, e.Actor)
		}
	}
	if !slices.Contains(lines, want) {
		h.Errorf("%s: the audit has %q, want %q among them", change, lines, want)
	}
}

// A change that not every replica is known to enforce was made: its result, here a key that is
// never shown again, is returned with the reason.
func TestAnUnconfirmedChangeHasAResult(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		h := newHouse(t, url)
		silent, err := feed.NewRegistry(h.db, feed.Replica{Life: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		if _, err := silent.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		go func() {
			h.awaitKey("bob")
			interrupt()
		}()
		done, err := h.by.Keys("wh_").Create(ctx, "bob", "")
		if err != nil || !errors.Is(done.Unconfirmed, lease.ErrUnconfirmed) || done.Result.Key == nil {
			t.Errorf("unconfirmed: %v, a key: %t, error %v", done.Unconfirmed, done.Result.Key != nil, err)
		}
		if text, err := json.Marshal(done); err != nil || !strings.Contains(string(text), `"confirmed":false,"replicas":{`) {
			t.Errorf("the JSON of %d bytes does not say that it is unconfirmed: %v", len(text), err)
		}
	})
}

// awaitKey waits until a user has a live key, or the test ends.
func (h house) awaitKey(user string) {
	for h.Context().Err() == nil {
		if _, err := directory.NewKeys(h.db).LiveKey(h.Context(), user); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// A refusal has a kind, from which commands and HTTP handlers derive their status, and changes
// nothing.
func TestARefusalHasAKindAndChangesNothing(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		h := newHouse(t, url)
		if got := of(h.by.Plans().Set(t.Context(), "pro", directory.PlanChange{}, "used")); got.err != nil {
			t.Fatal(got.err)
		}
		before := len(h.audit())
		keys, users := h.by.Keys("wh_"), h.by.Users()
		for _, row := range []struct {
			what string
			want operations.Kind
			got  answer
		}{
			{"a plan has a blank in its name", operations.Invalid, of(h.by.Plans().Set(t.Context(), "a b", directory.PlanChange{}, ""))},
			{"a plan has an unknown pool", operations.Invalid, of(h.by.Plans().Set(t.Context(), "pro", directory.PlanChange{Pool: new("all")}, ""))},
			{"a new account has no plan", operations.Invalid, of(h.by.Accounts().Set(t.Context(), "new", directory.AccountChange{}, ""))},
			{"an account has a plan that does not exist", operations.NotFound, of(h.by.Accounts().Set(t.Context(), "new", directory.AccountChange{Plan: new("gold")}, ""))},
			{"a user has an account that does not exist", operations.NotFound, of(users.Set(t.Context(), "eve", directory.UserChange{Account: new("new")}, ""))},
			{"two users have one subject", operations.Exists, of(users.Set(t.Context(), "bob", directory.UserChange{Subject: new("auth0|ada")}, ""))},
			{"a plan in use is deleted", operations.InUse, of(h.by.Plans().Delete(t.Context(), "pro", ""))},
			{"an account in use is deleted", operations.InUse, of(h.by.Accounts().Delete(t.Context(), "acme", ""))},
			{"a user who does not exist is deleted", operations.NotFound, of(users.Delete(t.Context(), "eve", ""))},
			{"a second key is made", operations.Exists, of(keys.Create(t.Context(), "ada", ""))},
			{"a key is made for nobody", operations.NotFound, of(keys.Create(t.Context(), "eve", ""))},
			{"a missing key is replaced", operations.NotFound, of(keys.Regenerate(t.Context(), "bob", "", ""))},
			{"a missing key is revoked", operations.NotFound, of(keys.Revoke(t.Context(), "bob", ""))},
			{"no credits are granted", operations.Invalid, of(h.by.Credits().Grant(t.Context(), "ada", 0, ""))},
			{"credits are granted to nobody", operations.NotFound, of(h.by.Credits().Grant(t.Context(), "eve", 1, ""))},
			{"an idempotency key has a blank", operations.Invalid, of(keys.Create(t.Context(), "bob", "a b"))},
			{"an idempotency key is that of another call", operations.Invalid, of(keys.Create(t.Context(), "bob", "used"))},
			{"a session lasts no time", operations.Invalid, failure(h.by.Sessions(operations.UserPage{}).Create(t.Context(), "ada", 0, ""))},
			{"a session is for nobody", operations.NotFound, failure(h.by.Sessions(operations.UserPage{}).Create(t.Context(), "eve", time.Hour, ""))},
			{"a link is for nobody", operations.NotFound, failure(h.by.Sessions(operations.UserPage{}).CreateLink(t.Context(), "eve", ""))},
			{"the balance is that of nobody", operations.NotFound, failure(h.by.Credits().Balance(t.Context(), "eve"))},
			{"the user shown does not exist", operations.NotFound, failure(users.Show(t.Context(), "eve"))},
			{"no entries of the audit are wanted", operations.Invalid, failure(store.Collect(h.by.Audit().Each(t.Context(), operations.AuditFilter{})))},
			{"the audit of the future is wanted", operations.Invalid, failure(store.Collect(h.by.Audit().Each(t.Context(), operations.AuditFilter{Limit: 1, Since: -1})))},
		} {
			if row.got.err == nil || operations.KindOf(row.got.err) != row.want {
				t.Errorf("%s: %v", row.what, row.got.err)
			}
		}
		if more := h.audit()[before:]; len(more) > 0 {
			t.Errorf("refusals changed something: %+v", more)
		}
	})
}

func failure[T any](_ T, err error) answer { return answer{err: err} }

// Each error that the store counts as an answer has a kind. All others are failures, so that nobody
// takes an unknown outcome for a refusal.
func TestEachAnswerOfTheStoreHasAKind(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		store.ErrNotFound, store.ErrExists, store.ErrInUse, store.ErrInvalid, store.ErrRefused, directory.TooOftenError{}, directory.ReplacedError{},
		store.ErrDatabase, store.ErrRights, store.ErrMigration, store.ErrConflict, store.ErrUnknownOutcome, lease.ErrUnconfirmed, context.Canceled,
	} {
		wrapped := fmt.Errorf("setting plan pro: %w", err)
		if got := operations.KindOf(wrapped); (got != operations.Failed) != store.IsAnswer(err) {
			t.Errorf("%v has the kind %d", err, got)
		}
	}
}

// The cookie and the link of a session fit the page that they are made for. The audit names their
// author.
func TestSessionsAndLinksFitThePage(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		h := newHouse(t, url)
		for _, row := range []struct {
			page         operations.UserPage
			cookie, link string
		}{
			{operations.UserPage{Path: "/api"}, "__Host-keyporter_session=ks_", "/api/-/login?token=kl_"},
			{operations.UserPage{URL: "https://a.example", Path: "/keys", InsecureCookies: true}, "keyporter_session=ks_", "https://a.example/keys/-/login?token=kl_"},
		} {
			session, err1 := h.by.Sessions(row.page).Create(t.Context(), "ada", time.Hour, "")
			link, err2 := h.by.Sessions(row.page).CreateLink(t.Context(), "ada", "")
			if err1 != nil || err2 != nil || !strings.HasPrefix(*session.Result.Cookie, row.cookie) || !strings.HasPrefix(*link.Result.Link, row.link) {
				t.Errorf("%+v: the cookie or the link is not that of the page: %v, %v", row.page, err1, err2)
			}
		}
		for _, e := range h.audit() {
			if e.Actor != actor {
				t.Errorf("%s %s %s by %s", e.Action, e.Kind, e.Name, e.Actor)
			}
		}
	})
}
