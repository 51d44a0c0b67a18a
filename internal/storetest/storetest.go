// Package storetest defines a store by one suite that every database passes. Tests of the store's
// rooms share its helpers: migrated databases, plain SQL, a second replica, and a connection that
// can be cut.
package storetest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// Run runs the suite. The function open returns an empty, migrated database for one test. Run
// closes it.
func Run(t *testing.T, open func(t *testing.T) *store.DB) {
	for _, test := range []struct {
		name string
		run  func(s *suite)
	}{
		{"a new plan has the defaults", newPlanHasDefaults},
		{"set changes only what it names", setChangesOnlyWhatItNames},
		{"a plan out of bounds is refused", planOutOfBoundsIsRefused},
		{"an account or user that cannot be is refused", impossibleValuesAreRefused},
		{"names are safe in a header, a label and a path", namesAreSafe},
		{"what is in use is not deleted", inUseIsNotDeleted},
		{"a deleted user's key and sessions are unknown", deletedUserTakesAllAlong},
		{"what is missing is named", missingIsNamed},
		{"a key resolves to its user, account and plan", keyResolves},
		{"a key of somebody who may not call says so", keyTellsWhatIsWrong},
		{"a user has one live key", oneLiveKey},
		{"an ended key is not an unknown one", endedIsNotUnknown},
		{"keys are listed, ended ones too", keysAreListed},
		{"sessions live until they are revoked", sessionsLiveUntilRevoked},
		{"a session's life has bounds", sessionLifeHasBounds},
		{"one session can be ended", oneSessionEnds},
		{"a login link logs in once", linksLogInOnce},
		{"a subject names one user", subjectsNameUsers},
		{"regenerating has a pace", regeneratingHasAPace},
		{"a key is replaced by its id", aKeyIsReplacedByItsID},
		{"sealed keys are sealed again", sealedKeysAreSealedAgain},
		{"the audit tells who did what", auditTellsWhoDidWhat},
		{"the tag secret stays", tagSecretStays},
		{"there is one seal key", oneSealKey},
		{"an answer names the epoch that it is true for", answersNameTheirEpoch},
		{"a change that nobody needs to follow is confirmed at once", nobodyToWaitFor},
		{"a call that is repeated changes nothing", repeatedCallChangesNothing},
		{"many create a key for one user, one does", manyCreateOneDoes},
		{"many regenerate, each result was the key once", manyRegenerate},
		{"create, regenerate and revoke at once leave one key or none", mixedKeyChanges},
		{"changes to different fields of one thing all arrive", noLostUpdates},
		{"a delete and a use at once leave the data whole", deletesAgainstUses},
		{"a context that has ended changes nothing", endedContextChangesNothing},
		{"a closed database is an error and not an answer", closedIsNoAnswer},
		{"no error holds a key", noErrorHoldsAKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			t.Cleanup(func() { db.Close() })
			test.run(&suite{T: t, db: db, directory: directory.New(db), keys: directory.NewKeys(db), sessions: directory.NewSessions(db),
				lookups: directory.NewLookups(db), format: newFormat(t)})
		})
	}
}

// suite is one test with its database.
type suite struct {
	*testing.T
	db        *store.DB
	directory *directory.Directory
	keys      *directory.Keys
	sessions  *directory.Sessions
	lookups   *directory.Lookups
	format    *apikey.Format
}

func newFormat(t *testing.T) *apikey.Format {
	t.Helper()
	format, err := apikey.NewFormat(apikey.FormatConfig{Secrets: [][]byte{bytes.Repeat([]byte{7}, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	return format
}

// acme creates the plan pro, the account acme and the given users.
func (s *suite) acme(users ...string) {
	s.Helper()
	s.must(s.setPlan("pro", directory.PlanChange{}))
	s.must(s.setAccount("acme", directory.AccountChange{Plan: new("pro"), Kind: new("organization")}))
	for _, user := range users {
		s.must(s.setUser(user, directory.UserChange{Account: new("acme")}))
	}
}

func (s *suite) setPlan(name string, c directory.PlanChange) error {
	_, _, err := s.directory.SetPlan(s.Context(), name, c, "")
	return err
}

func (s *suite) setAccount(name string, c directory.AccountChange) error {
	_, _, err := s.directory.SetAccount(s.Context(), name, c, "")
	return err
}

func (s *suite) setUser(name string, c directory.UserChange) error {
	_, _, err := s.directory.SetUser(s.Context(), name, c, "")
	return err
}

func (s *suite) deletePlan(name string) error {
	_, err := s.directory.DeletePlan(s.Context(), name, "")
	return err
}

func (s *suite) deleteAccount(name string) error {
	_, err := s.directory.DeleteAccount(s.Context(), name, "")
	return err
}

func (s *suite) deleteUser(name string) error {
	_, err := s.directory.DeleteUser(s.Context(), name, "")
	return err
}

func (s *suite) createKey(user string) (directory.Key, apikey.Token) {
	s.Helper()
	key, token, err := s.keys.CreateKey(s.Context(), user, s.format)
	s.must(err)
	return key, token
}

func (s *suite) findKey(token apikey.Token) (authz.Principal, error) {
	return s.lookups.FindKey(s.Context(), token.Digest())
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// want checks that an error is the expected one.
func (s *suite) want(what string, err, target error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Errorf("%s: error %v, want %v", what, err, target)
	}
}

func equal[T comparable](s *suite, what string, got, want T) {
	s.Helper()
	if got != want {
		s.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

func newPlanHasDefaults(s *suite) {
	plan, _, err := s.directory.SetPlan(s.Context(), "pro", directory.PlanChange{}, "")
	s.must(err)
	want := directory.Plan{Name: "pro", APIAccess: true, RateLimit: 60, RateWindow: time.Minute, Credits: 20_000, Pool: "user"}
	equal(s, "the plan", plan, want)
	account, _, err := s.directory.SetAccount(s.Context(), "acme", directory.AccountChange{Plan: new("pro")}, "")
	s.must(err)
	equal(s, "the account", account, directory.Account{Name: "acme", Kind: "person", Plan: "pro", Status: "active"})
	user, _, err := s.directory.SetUser(s.Context(), "ada", directory.UserChange{Account: new("acme")}, "")
	s.must(err)
	equal(s, "the user", user, directory.User{Name: "ada", Kind: "person", Account: "acme", Status: "active"})
	plans, err := s.directory.Plans(s.Context())
	s.must(err)
	if !slices.Equal(plans, []directory.Plan{want}) {
		s.Errorf("listed: %+v", plans)
	}
}

func setChangesOnlyWhatItNames(s *suite) {
	s.acme("ada")
	s.must(s.setPlan("free", directory.PlanChange{}))
	for _, step := range []struct {
		change directory.PlanChange
		want   directory.Plan
	}{
		{directory.PlanChange{APIAccess: new(false)}, directory.Plan{Name: "pro", RateLimit: 60, RateWindow: time.Minute, Credits: 20_000, Pool: "user"}},
		{directory.PlanChange{RateLimit: new(usage.Unlimited)}, directory.Plan{Name: "pro", RateLimit: usage.Unlimited, RateWindow: time.Minute, Credits: 20_000, Pool: "user"}},
		{directory.PlanChange{RateLimit: new(usage.Limit(directory.MaxRateLimit)), RateWindow: new(1500 * time.Millisecond)}, directory.Plan{Name: "pro", RateLimit: 10_000, RateWindow: 1500 * time.Millisecond, Credits: 20_000, Pool: "user"}},
		{directory.PlanChange{Credits: new(usage.Unlimited), Pool: new("account")}, directory.Plan{Name: "pro", RateLimit: 10_000, RateWindow: 1500 * time.Millisecond, Credits: usage.Unlimited, Pool: "account"}},
		{directory.PlanChange{Credits: new(usage.Limit(0)), APIAccess: new(true)}, directory.Plan{Name: "pro", APIAccess: true, RateLimit: 10_000, RateWindow: 1500 * time.Millisecond, Pool: "account"}},
		{directory.PlanChange{}, directory.Plan{Name: "pro", APIAccess: true, RateLimit: 10_000, RateWindow: 1500 * time.Millisecond, Pool: "account"}},
	} {
		plan, _, err := s.directory.SetPlan(s.Context(), "pro", step.change, "")
		s.must(err)
		equal(s, "the plan as returned", plan, step.want)
		plans, err := s.directory.Plans(s.Context())
		s.must(err)
		equal(s, "the other plan", plans[0].Name, "free")
		equal(s, "the plan as listed", plans[1], step.want)
	}
	s.must(s.setAccount("acme", directory.AccountChange{Status: new("suspended")}))
	account, _, err := s.directory.SetAccount(s.Context(), "acme", directory.AccountChange{Plan: new("free")}, "")
	s.must(err)
	equal(s, "the account", account, directory.Account{Name: "acme", Kind: "organization", Plan: "free", Status: "suspended"})
	s.must(s.setUser("ada", directory.UserChange{Status: new("disabled")}))
	user, _, err := s.directory.SetUser(s.Context(), "ada", directory.UserChange{Kind: new("service")}, "")
	s.must(err)
	equal(s, "the user", user, directory.User{Name: "ada", Kind: "service", Account: "acme", Status: "disabled"})
}

func planOutOfBoundsIsRefused(s *suite) {
	s.must(s.setPlan("pro", directory.PlanChange{}))
	for what, change := range map[string]directory.PlanChange{
		"a negative rate limit":          {RateLimit: new(usage.Limit(-2))},
		"a rate limit too high":          {RateLimit: new(usage.Limit(directory.MaxRateLimit + 1))},
		"no window":                      {RateWindow: new(time.Duration(0))},
		"a window of half a second":      {RateWindow: new(500 * time.Millisecond)},
		"a window of more than a day":    {RateWindow: new(24*time.Hour + time.Millisecond)},
		"a window of half milliseconds":  {RateWindow: new(time.Minute + time.Microsecond)},
		"negative credits":               {Credits: new(usage.Limit(-2))},
		"credits that a grant overflows": {Credits: new(usage.Limit(math.MaxInt64))},
		"a pool of nobody's":             {Pool: new("nobody")},
		"an empty pool":                  {Pool: new("")},
	} {
		s.want(what+", changed", s.setPlan("pro", change), store.ErrInvalid)
		s.want(what+", new", s.setPlan("other", change), store.ErrInvalid)
	}
	plans, err := s.directory.Plans(s.Context())
	s.must(err)
	if len(plans) != 1 || plans[0].RateLimit != 60 || plans[0].Pool != "user" {
		s.Errorf("something was changed: %+v", plans)
	}
}

func impossibleValuesAreRefused(s *suite) {
	s.acme("ada")
	s.want("account kind", s.setAccount("acme", directory.AccountChange{Kind: new("team")}), store.ErrInvalid)
	s.want("account status", s.setAccount("acme", directory.AccountChange{Status: new("")}), store.ErrInvalid)
	s.want("empty plan", s.setAccount("acme", directory.AccountChange{Plan: new("")}), store.ErrInvalid)
	s.want("new account without a plan", s.setAccount("new", directory.AccountChange{}), store.ErrInvalid)
	s.want("new account, no such plan", s.setAccount("new", directory.AccountChange{Plan: new("gold")}), store.ErrNotFound)
	s.want("account, no such plan", s.setAccount("acme", directory.AccountChange{Plan: new("gold")}), store.ErrNotFound)
	s.want("user kind", s.setUser("ada", directory.UserChange{Kind: new("robot")}), store.ErrInvalid)
	s.want("user status", s.setUser("ada", directory.UserChange{Status: new("Active")}), store.ErrInvalid)
	s.want("new user without an account", s.setUser("new", directory.UserChange{}), store.ErrInvalid)
	s.want("new user, no such account", s.setUser("new", directory.UserChange{Account: new("other")}), store.ErrNotFound)
	s.want("user, no such account", s.setUser("ada", directory.UserChange{Account: new("other")}), store.ErrNotFound)
	accounts, err := s.directory.Accounts(s.Context())
	s.must(err)
	users, err := s.directory.Users(s.Context())
	s.must(err)
	if len(accounts) != 1 || accounts[0].Plan != "pro" || len(users) != 1 || users[0].Account != "acme" {
		s.Errorf("something was changed: %+v %+v", accounts, users)
	}
}

func namesAreSafe(s *suite) {
	s.acme()
	for _, name := range []string{"a", "0", "Ada.Lovelace+x@example-1.org", "a_b", strings.Repeat("a", 128)} {
		s.must(s.setPlan(name, directory.PlanChange{}))
		s.must(s.setAccount(name, directory.AccountChange{Plan: new(name)}))
		s.must(s.setUser(name, directory.UserChange{Account: new(name)}))
	}
	for _, name := range []string{
		"", " ", "a b", "a\n", "\na", ".a", "-a", "_a", "@", "+1", "a/b", "a,b", "a;b", "a%2f", "é", "a\x00", "a\xff", "ａ",
		strings.Repeat("a", 129),
		// a key in place of a name
		"wh_" + strings.Repeat("0f", 24), "my-own_" + strings.Repeat("0f", 24),
	} {
		_, _, create := s.keys.CreateKey(s.Context(), name, s.format)
		_, _, session := s.sessions.CreateSession(s.Context(), name, time.Hour, s.format)
		for what, err := range map[string]error{
			"plan":         s.setPlan(name, directory.PlanChange{}),
			"account":      s.setAccount(name, directory.AccountChange{Plan: new("pro")}),
			"user":         s.setUser(name, directory.UserChange{Account: new("acme")}),
			"account plan": s.setAccount("new", directory.AccountChange{Plan: new(name)}),
			"user account": s.setUser("new", directory.UserChange{Account: new(name)}),
			"key":          create,
			"session":      session,
			"delete":       s.deletePlan(name),
		} {
			s.want(what+" "+name, err, store.ErrInvalid)
		}
	}
}

func inUseIsNotDeleted(s *suite) {
	s.acme("ada")
	for what, err := range map[string]error{
		"acme": s.deletePlan("pro"),
		"ada":  s.deleteAccount("acme"),
	} {
		s.want("deleting what "+what+" uses", err, store.ErrInUse)
		if err != nil && !strings.Contains(err.Error(), what) {
			s.Errorf("%q does not name %s", err, what)
		}
	}
	s.must(s.deleteUser("ada"))
	s.must(s.deleteAccount("acme"))
	s.must(s.deletePlan("pro"))
	plans, err := s.directory.Plans(s.Context())
	s.must(err)
	equal(s, "plans left", len(plans), 0)
}

func deletedUserTakesAllAlong(s *suite) {
	s.acme("ada", "bob")
	_, first := s.createKey("ada")
	_, second, _, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "")
	s.must(err)
	_, session, err := s.sessions.CreateSession(s.Context(), "ada", time.Hour, s.format)
	s.must(err)
	_, other := s.createKey("bob")
	s.must(s.deleteUser("ada"))
	for _, token := range []apikey.Token{first, second} {
		_, err := s.findKey(token)
		s.want("a key", err, authz.ErrUnknown)
	}
	_, err = s.lookups.FindSession(s.Context(), session.Digest())
	s.want("a session", err, authz.ErrUnknown)
	if _, err := s.findKey(other); err != nil {
		s.Errorf("another user's key: %v", err)
	}
	s.must(s.setUser("ada", directory.UserChange{Account: new("acme")})) // the name is free again
}

func missingIsNamed(s *suite) {
	s.acme()
	ctx := s.Context()
	_, _, create := s.keys.CreateKey(ctx, "eve", s.format)
	_, _, _, regenerate := s.keys.RegenerateKey(ctx, "eve", s.format, directory.Rate{}, "")
	_, _, revoke := s.keys.RevokeKey(ctx, "eve", "")
	_, live := s.keys.LiveKey(ctx, "eve")
	_, _, session := s.sessions.CreateSession(ctx, "eve", time.Hour, s.format)
	_, _, sessions := s.sessions.RevokeSessions(ctx, "eve", "")
	for what, err := range map[string]error{
		"create": create, "regenerate": regenerate, "revoke": revoke, "live key": live, "session": session, "sessions": sessions,
		"delete plan": s.deletePlan("eve"), "delete account": s.deleteAccount("eve"), "delete user": s.deleteUser("eve"),
	} {
		s.want(what, err, store.ErrNotFound)
		if err != nil && !strings.Contains(err.Error(), "eve") {
			s.Errorf("%s: %q does not say who", what, err)
		}
	}
}

func keyResolves(s *suite) {
	s.acme("ada")
	key, token := s.createKey("ada")
	p, err := s.findKey(token)
	s.must(err)
	equal(s, "the principal", p, authz.Principal{
		KeyID: key.ID, User: "ada", Account: "acme", Plan: "pro", UserActive: true, AccountActive: true, APIAccess: true,
		RateLimit: 60, RateWindow: time.Minute, Credits: 20_000, Pool: usage.PoolUser, Epoch: p.Epoch,
	})
	s.must(s.setPlan("pro", directory.PlanChange{Pool: new("account"), Credits: new(usage.Unlimited)}))
	later, err := s.findKey(token)
	s.must(err)
	if later.Pool != usage.PoolAccount || later.Credits != usage.Unlimited || later.Epoch <= p.Epoch {
		s.Errorf("after a change of the credits: %+v", later)
	}
	_, session, err := s.sessions.CreateSession(s.Context(), "ada", time.Hour, s.format)
	s.must(err)
	_, err = s.findKey(session)
	s.want("a session as a key", err, authz.ErrUnknown)
	_, err = s.lookups.FindSession(s.Context(), token.Digest())
	s.want("a key as a session", err, authz.ErrUnknown)
}

func keyTellsWhatIsWrong(s *suite) {
	s.acme("ada")
	_, token := s.createKey("ada")
	_, session, err := s.sessions.CreateSession(s.Context(), "ada", time.Hour, s.format)
	s.must(err)
	good, err := s.findKey(token)
	s.must(err)
	disabled, suspended, without := good, good, good
	disabled.UserActive, suspended.AccountActive, without.APIAccess = false, false, false
	for _, step := range []struct {
		what string
		err  error
		want authz.Principal
	}{
		{"disabled", s.setUser("ada", directory.UserChange{Status: new("disabled")}), disabled},
	} {
		s.must(step.err)
		p, err := s.findKey(token)
		s.must(err)
		p.Epoch = good.Epoch
		equal(s, step.what, p, step.want)
	}
	steps := []struct {
		what string
		do   func() error
		want authz.Principal
	}{
		{"enabled", func() error { return s.setUser("ada", directory.UserChange{Status: new("active")}) }, good},
		{"suspended", func() error { return s.setAccount("acme", directory.AccountChange{Status: new("suspended")}) }, suspended},
		{"cancelled", func() error { return s.setAccount("acme", directory.AccountChange{Status: new("cancelled")}) }, suspended},
		{"active", func() error { return s.setAccount("acme", directory.AccountChange{Status: new("active")}) }, good},
		{"without API access", func() error { return s.setPlan("pro", directory.PlanChange{APIAccess: new(false)}) }, without},
	}
	for _, step := range steps {
		s.must(step.do())
		p, err := s.findKey(token)
		s.must(err)
		p.Epoch = good.Epoch // it grows with each change
		equal(s, step.what, p, step.want)
		p, err = s.lookups.FindSession(s.Context(), session.Digest())
		s.must(err)
		want := step.want
		want.KeyID, p.Epoch = "", good.Epoch
		equal(s, "session, "+step.what, p, want)
	}
}

// fixed checks that an error names what makes the refused operation possible for ada.
func (s *suite) fixed(err error, want directory.Fix) {
	s.Helper()
	if fixable := (directory.FixableError{}); !errors.As(err, &fixable) || fixable.Fix != want || fixable.Name != "ada" {
		s.Errorf("%v does not say what helps", err)
	}
}

func oneLiveKey(s *suite) {
	s.acme("ada")
	s.createKey("ada")
	_, token, err := s.keys.CreateKey(s.Context(), "ada", s.format)
	s.want("a second key", err, store.ErrExists)
	if !token.IsZero() {
		s.Error("a key that was not made was returned")
	}
	s.fixed(err, directory.RegenerateKey)
	_, _, err = s.keys.RevokeKey(s.Context(), "ada", "")
	s.must(err)
	_, _, _, err = s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "")
	s.want("regenerating an ended key", err, store.ErrNotFound)
	s.fixed(err, directory.CreateKey)
	_, _, err = s.keys.RevokeKey(s.Context(), "ada", "")
	s.want("revoking an ended key", err, store.ErrNotFound)
	s.createKey("ada")
}

func endedIsNotUnknown(s *suite) {
	s.acme("ada")
	_, never := s.format.Generate(), s.format.Generate()
	_, err := s.findKey(never)
	s.want("a key that never was", err, authz.ErrUnknown)
	old, first := s.createKey("ada")
	key, second, _, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "")
	s.must(err)
	_, err = s.findKey(first)
	s.want("a replaced key", err, authz.ErrRevoked)
	owner := authz.RevokedError{}
	if !errors.As(err, &owner) || owner != (authz.RevokedError{User: "ada", KeyID: old.ID}) {
		s.Errorf("whose the replaced key was: %v, want ada's %s", err, old.ID)
	}
	p, err := s.findKey(second)
	s.must(err)
	equal(s, "the new key's id", p.KeyID, key.ID)
	ended, _, err := s.keys.RevokeKey(s.Context(), "ada", "")
	s.must(err)
	equal(s, "the revoked key's id", ended.ID, key.ID)
	if ended.RevokedAt == nil {
		s.Error("the revoked key has no end")
	}
	_, err = s.findKey(second)
	s.want("a revoked key", err, authz.ErrRevoked)
}

func keysAreListed(s *suite) {
	s.acme("ada", "bob")
	first, _ := s.createKey("ada")
	second, _, _, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "")
	s.must(err)
	other, _ := s.createKey("bob")
	for user, want := range map[string][]string{"ada": {first.ID, second.ID}, "bob": {other.ID}, "": {first.ID, second.ID, other.ID}, "eve": {}} {
		keys, err := s.keys.Keys(s.Context(), user)
		s.must(err)
		var got []string
		for _, key := range keys {
			got = append(got, key.ID)
			if ended := key.RevokedAt != nil; ended != (key.ID == first.ID) {
				s.Errorf("key %s: ended is %v", key.ID, ended)
			}
			if age := time.Since(key.CreatedAt); age < -time.Minute || age > time.Minute {
				s.Errorf("key %s was made at %v", key.ID, key.CreatedAt)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			s.Errorf("keys of %q: %v, want %v", user, got, want)
		}
	}
	live, err := s.keys.LiveKey(s.Context(), "ada")
	s.must(err)
	equal(s, "the live key", live, second)
}

func sessionsLiveUntilRevoked(s *suite) {
	s.acme("ada", "bob")
	tokens := map[string]apikey.Token{}
	for name, user := range map[string]string{"ada's first": "ada", "ada's second": "ada", "bob's": "bob"} {
		session, token, err := s.sessions.CreateSession(s.Context(), user, time.Hour, s.format)
		s.must(err)
		equal(s, name, session.User, user)
		if left := time.Until(session.ExpiresAt); left < 59*time.Minute || left > time.Hour {
			s.Errorf("%s ends in %v", name, left)
		}
		tokens[name] = token
	}
	n, _, err := s.sessions.RevokeSessions(s.Context(), "ada", "")
	s.must(err)
	equal(s, "sessions ended", n, 2)
	for name, want := range map[string]error{"ada's first": authz.ErrRevoked, "ada's second": authz.ErrRevoked, "bob's": nil} {
		_, err := s.lookups.FindSession(s.Context(), tokens[name].Digest())
		s.want(name, err, want)
	}
	n, _, err = s.sessions.RevokeSessions(s.Context(), "ada", "")
	s.must(err)
	equal(s, "sessions ended again", n, 0)
}

func sessionLifeHasBounds(s *suite) {
	s.acme("ada")
	for _, life := range []time.Duration{-time.Hour, 0, time.Second - 1, directory.MaxSession + 1} {
		_, _, err := s.sessions.CreateSession(s.Context(), "ada", life, s.format)
		s.want(life.String(), err, store.ErrInvalid)
	}
	for _, life := range []time.Duration{time.Second, directory.MaxSession} {
		_, _, err := s.sessions.CreateSession(s.Context(), "ada", life, s.format)
		s.must(err)
	}
}

func tagSecretStays(s *suite) {
	first, err := s.keys.TagSecrets(s.Context())
	s.must(err)
	second, err := s.keys.TagSecrets(s.Context())
	s.must(err)
	if len(first) != 1 || len(first[0]) < apikey.MinSecret || !slices.EqualFunc(first, second, bytes.Equal) {
		s.Errorf("%d secrets, then %d", len(first), len(second))
	}
}

func oneSealKey(s *suite) {
	s.want("no key at all", s.keys.SetSealKey(s.Context(), nil), store.ErrInvalid)
	s.want("a short key", s.keys.SetSealKey(s.Context(), []byte("short")), store.ErrInvalid)
	for i, want := range []error{nil, store.ErrExists} {
		key, err := apikey.NewSealKey()
		s.must(err)
		if err := s.keys.SetSealKey(s.Context(), key.Public()); !errors.Is(err, want) {
			s.Errorf("seal key %d: error %v, want %v", i, err, want)
		}
	}
	s.acme("ada")
	_, token := s.createKey("ada")
	_, err := s.findKey(token)
	s.must(err)
}

// calls returns methods that take a context, with arguments that would have an effect for the user
// ada with a live key. The token is a canary.
func (s *suite) calls(token apikey.Token) map[string]func(ctx context.Context) error {
	db, format, digest := s.db, s.format, token.Digest()
	return map[string]func(ctx context.Context) error{
		"Ping":    func(ctx context.Context) error { return db.Ping(ctx) },
		"FindKey": func(ctx context.Context) error { _, err := directory.NewLookups(db).FindKey(ctx, digest); return err },
		"FindSession": func(ctx context.Context) error {
			_, err := directory.NewLookups(db).FindSession(ctx, digest)
			return err
		},
		"TagSecrets": func(ctx context.Context) error { _, err := directory.NewKeys(db).TagSecrets(ctx); return err },
		"Plans":      func(ctx context.Context) error { _, err := directory.New(db).Plans(ctx); return err },
		"Accounts":   func(ctx context.Context) error { _, err := directory.New(db).Accounts(ctx); return err },
		"Users":      func(ctx context.Context) error { _, err := directory.New(db).Users(ctx); return err },
		"Keys":       func(ctx context.Context) error { _, err := directory.NewKeys(db).Keys(ctx, "ada"); return err },
		"LiveKey":    func(ctx context.Context) error { _, err := directory.NewKeys(db).LiveKey(ctx, "ada"); return err },
		"SetPlan": func(ctx context.Context) error {
			_, _, err := directory.New(db).SetPlan(ctx, "new", directory.PlanChange{}, "")
			return err
		},
		"SetAccount": func(ctx context.Context) error {
			_, _, err := directory.New(db).SetAccount(ctx, "new", directory.AccountChange{Plan: new("pro")}, "")
			return err
		},
		"SetUser": func(ctx context.Context) error {
			_, _, err := directory.New(db).SetUser(ctx, "new", directory.UserChange{Account: new("acme")}, "")
			return err
		},
		"CreateKey": func(ctx context.Context) error {
			_, _, err := directory.NewKeys(db).CreateKey(ctx, "bob", format)
			return err
		},
		"RegenerateKey": func(ctx context.Context) error {
			_, _, _, err := directory.NewKeys(db).RegenerateKey(ctx, "ada", format, directory.Rate{}, "")
			return err
		},
		"RevokeKey": func(ctx context.Context) error {
			_, _, err := directory.NewKeys(db).RevokeKey(ctx, "ada", "")
			return err
		},
		"CreateSession": func(ctx context.Context) error {
			_, _, err := directory.NewSessions(db).CreateSession(ctx, "ada", time.Hour, format)
			return err
		},
		"RevokeSessions": func(ctx context.Context) error {
			_, _, err := directory.NewSessions(db).RevokeSessions(ctx, "ada", "")
			return err
		},
		"DeleteUser": func(ctx context.Context) error { _, err := directory.New(db).DeleteUser(ctx, "ada", ""); return err },
		"DeleteAccount": func(ctx context.Context) error {
			_, err := directory.New(db).DeleteAccount(ctx, "free", "")
			return err
		},
		"DeletePlan": func(ctx context.Context) error { _, err := directory.New(db).DeletePlan(ctx, "free", ""); return err },
	}
}

func endedContextChangesNothing(s *suite) {
	s.acme("ada", "bob")
	s.must(s.setPlan("free", directory.PlanChange{}))
	_, token := s.createKey("ada")
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	for name, call := range s.calls(token) {
		s.want(name, call(ctx), context.Canceled)
	}
	plans, err := s.directory.Plans(s.Context())
	s.must(err)
	equal(s, "plans", len(plans), 2)
	users, err := s.directory.Users(s.Context())
	s.must(err)
	equal(s, "users", len(users), 2)
	if _, err := s.findKey(token); err != nil {
		s.Errorf("the key: %v", err)
	}
}

func closedIsNoAnswer(s *suite) {
	s.acme("ada", "bob")
	_, token := s.createKey("ada")
	s.must(s.db.Close())
	answers := []error{
		authz.ErrUnknown, authz.ErrRevoked, store.ErrNotFound, store.ErrExists, store.ErrInUse, store.ErrInvalid,
		lease.ErrUnconfirmed, store.ErrUnknownOutcome,
	}
	for name, call := range s.calls(token) {
		err := call(s.Context())
		if err == nil || slices.ContainsFunc(answers, func(answer error) bool { return errors.Is(err, answer) }) {
			s.Errorf("%s: %v, want an error that is no answer", name, err)
		}
	}
}

func noErrorHoldsAKey(s *suite) {
	s.acme("ada", "bob")
	_, token := s.createKey("ada")
	digest := token.Digest()
	check := func(name string, err error) {
		if err == nil {
			return
		}
		for _, secret := range []string{token.Reveal(), token.Reveal()[3:], hex.EncodeToString(digest[:]), string(digest[:])} {
			if strings.Contains(err.Error(), secret) {
				s.Errorf("the error of %s holds the key or its digest", name)
			}
		}
	}
	ended, cancel := context.WithCancel(s.Context())
	cancel()
	for name, call := range s.calls(token) {
		check(name, call(ended))
	}
	_, _, err := s.keys.RevokeKey(s.Context(), "ada", "")
	s.must(err)
	_, err = s.findKey(token)
	check("FindKey", err)
	s.must(s.db.Close())
	for name, call := range s.calls(token) {
		check(name, call(s.Context()))
	}
}

func answersNameTheirEpoch(s *suite) {
	s.acme("ada")
	key, token := s.createKey("ada")
	p, before, err := s.lookups.ResolveKey(s.Context(), token.Digest())
	s.must(err)
	equal(s, "the key", p.KeyID, key.ID)
	equal(s, "whom the answer is about", before, lease.Origin{Epoch: before.Epoch, User: "ada", Account: "acme", Plan: "pro"})
	s.must(s.setPlan("pro", directory.PlanChange{APIAccess: new(false)}))
	p, after, err := s.lookups.ResolveKey(s.Context(), token.Digest())
	s.must(err)
	if p.APIAccess || after.Epoch <= before.Epoch {
		s.Errorf("after a change: %+v at %d, before it %d", p, after.Epoch, before.Epoch)
	}
	s.must(s.setPlan("pro", directory.PlanChange{APIAccess: new(false)})) // the same again
	_, same, err := s.lookups.ResolveKey(s.Context(), token.Digest())
	s.must(err)
	equal(s, "the epoch after what changed nothing", same.Epoch, after.Epoch)
	_, _, err = s.keys.RevokeKey(s.Context(), "ada", "")
	s.must(err)
	_, ended, err := s.lookups.ResolveKey(s.Context(), token.Digest())
	s.want("an ended key", err, authz.ErrRevoked)
	_, unknown, err := s.lookups.ResolveKey(s.Context(), s.format.Generate().Digest())
	s.want("an unknown key", err, authz.ErrUnknown)
	if ended.Epoch <= after.Epoch || unknown.Epoch != ended.Epoch {
		s.Errorf("denials at %d and %d, before them %d", ended.Epoch, unknown.Epoch, after.Epoch)
	}
	equal(s, "whom they are about", ended.User+unknown.User, "")
}

func nobodyToWaitFor(s *suite) {
	s.acme("ada")
	replicas, newest, err := feed.New(s.db).Replicas(s.Context())
	s.must(err)
	equal(s, "replicas", len(replicas), 0)
	if newest == 0 {
		s.Error("there is no epoch")
	}
	s.createKey("ada")
	for what, call := range map[string]func() (lease.Confirmation, error){
		"a change": func() (lease.Confirmation, error) {
			_, c, err := s.keys.RevokeKey(s.Context(), "ada", "")
			return c.Confirmation, err
		},
		"the roll":         func() (lease.Confirmation, error) { return feed.New(s.db).RollCall(s.Context()) },
		"a history":        func() (lease.Confirmation, error) { return feed.New(s.db).AcceptHistory(s.Context()) },
		"a second history": func() (lease.Confirmation, error) { return feed.New(s.db).AcceptHistory(s.Context()) },
	} {
		c, err := call()
		s.must(err)
		equal(s, what, c, lease.Confirmation{Took: c.Took})
	}
	s.must(errors.Join(feed.New(s.db).Tidy(s.Context()), s.sessions.Tidy(s.Context()), ledger.New(s.db).Tidy(s.Context())))
}

func repeatedCallChangesNothing(s *suite) {
	s.acme("ada")
	s.createKey("ada")
	first, token, c, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "once")
	s.must(err)
	equal(s, "the first is repeated", c.Repeated, false)
	for range 2 {
		again, none, c, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "once")
		s.must(err)
		equal(s, "the key", again.ID, first.ID)
		equal(s, "its text", none.Reveal(), "")
		equal(s, "repeated", c.Repeated, true)
	}
	p, err := s.findKey(token)
	s.must(err)
	equal(s, "the live key", p.KeyID, first.ID)
	_, _, err = s.keys.RevokeKey(s.Context(), "ada", "once")
	s.want("another call", err, store.ErrInvalid)
	_, _, err = s.keys.RevokeKey(s.Context(), "ada", "not one")
	s.want("a bad key", err, store.ErrInvalid)
	keys, err := s.keys.Keys(s.Context(), "ada")
	s.must(err)
	equal(s, "keys", len(keys), 2)
}
