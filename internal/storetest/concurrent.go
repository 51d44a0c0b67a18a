package storetest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/usage"
)

// crowd is the number of concurrent callers.
const crowd = 16

// atOnce runs f crowd times concurrently and returns when all calls have ended.
func atOnce(f func(i int)) {
	var ready, done sync.WaitGroup
	ready.Add(crowd)
	for i := range crowd {
		done.Go(func() {
			ready.Done()
			ready.Wait()
			f(i)
		})
	}
	done.Wait()
}

// made collects the returned keys.
type made struct {
	mu     sync.Mutex
	tokens map[string]apikey.Token // guarded by mu; key id → key
}

func (m *made) add(key directory.Key, token apikey.Token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tokens == nil {
		m.tokens = map[string]apikey.Token{}
	}
	m.tokens[key.ID] = token
}

// wholeKeys checks that the keys of ada are exactly those in m, that the live one, if any, resolves
// to itself, and that all others are revoked. It returns the number of live keys.
func (s *suite) wholeKeys(m *made) int {
	s.Helper()
	keys, err := s.keys.Keys(s.Context(), "ada")
	s.must(err)
	equal(s, "keys in the database", len(keys), len(m.tokens))
	live := 0
	for _, key := range keys {
		token, ok := m.tokens[key.ID]
		if !ok {
			s.Errorf("key %s was returned to nobody", key.ID)
			continue
		}
		p, err := s.findKey(token)
		if key.RevokedAt != nil {
			s.want("an ended key", err, authz.ErrRevoked)
			continue
		}
		live++
		if err != nil || p.KeyID != key.ID {
			s.Errorf("the live key %s resolves to %q: %v", key.ID, p.KeyID, err)
		}
	}
	return live
}

func manyCreateOneDoes(s *suite) {
	s.acme("ada")
	var m made
	atOnce(func(int) {
		key, token, err := s.keys.CreateKey(s.Context(), "ada", s.format)
		if err == nil {
			m.add(key, token)
			return
		}
		s.want("create", err, store.ErrExists)
	})
	equal(s, "keys made", len(m.tokens), 1)
	equal(s, "live keys", s.wholeKeys(&m), 1)
}

func manyRegenerate(s *suite) {
	s.acme("ada")
	var m made
	m.add(s.createKey("ada"))
	atOnce(func(int) {
		key, token, _, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "")
		if err != nil {
			s.Errorf("regenerate: %v", err)
			return
		}
		m.add(key, token)
	})
	equal(s, "live keys", s.wholeKeys(&m), 1)
}

func mixedKeyChanges(s *suite) {
	s.acme("ada")
	var m made
	atOnce(func(i int) {
		for range 5 {
			switch i % 3 {
			case 0:
				key, token, err := s.keys.CreateKey(s.Context(), "ada", s.format)
				if err == nil {
					m.add(key, token)
				} else {
					s.want("create", err, store.ErrExists)
				}
			case 1:
				key, token, _, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "")
				if err == nil {
					m.add(key, token)
				} else {
					s.want("regenerate", err, store.ErrNotFound)
				}
			case 2:
				if _, _, err := s.keys.RevokeKey(s.Context(), "ada", ""); err != nil {
					s.want("revoke", err, store.ErrNotFound)
				}
			}
		}
	})
	if live := s.wholeKeys(&m); live > 1 {
		s.Errorf("%d live keys", live)
	}
}

func noLostUpdates(s *suite) {
	changes := []directory.PlanChange{
		{APIAccess: new(false)}, {RateLimit: new(usage.Limit(7))}, {Credits: new(usage.Limit(8))}, {Pool: new("account")},
	}
	// Any of the callers may create the plan.
	atOnce(func(i int) {
		if err := s.setPlan("pro", changes[i%len(changes)]); err != nil {
			s.Errorf("set: %v", err)
		}
	})
	plans, err := s.directory.Plans(s.Context())
	s.must(err)
	if len(plans) != 1 || plans[0].APIAccess || plans[0].RateLimit != 7 || plans[0].Credits != 8 || plans[0].Pool != "account" {
		s.Errorf("a change was lost: %+v", plans)
	}
}

func deletesAgainstUses(s *suite) {
	s.must(s.setPlan("keep", directory.PlanChange{}))
	s.must(s.setAccount("keep", directory.AccountChange{Plan: new("keep")}))
	for round := range 10 {
		plan, account, user := fmt.Sprint("plan", round), fmt.Sprint("account", round), fmt.Sprint("user", round)
		s.must(s.setPlan(plan, directory.PlanChange{}))
		s.must(s.setAccount(account, directory.AccountChange{Plan: new("keep")}))
		s.must(s.setUser(user, directory.UserChange{Account: new("keep")}))
		clear := func(what string, err error, allowed ...error) {
			for _, a := range allowed {
				if errors.Is(err, a) {
					return
				}
			}
			if err != nil {
				s.Errorf("%s: %v", what, err)
			}
		}
		atOnce(func(i int) {
			switch i % 6 {
			case 0:
				clear("delete plan", s.deletePlan(plan), store.ErrInUse, store.ErrNotFound)
			case 1:
				clear("use plan", s.setAccount(account, directory.AccountChange{Plan: new(plan)}), store.ErrNotFound)
			case 2:
				clear("delete account", s.deleteAccount(account), store.ErrInUse, store.ErrNotFound)
			case 3:
				clear("use account", s.setUser(user, directory.UserChange{Account: new(account)}), store.ErrNotFound)
			case 4:
				clear("delete user", s.deleteUser(user), store.ErrNotFound)
			case 5:
				_, _, err := s.keys.CreateKey(s.Context(), user, s.format)
				clear("create key", err, store.ErrNotFound, store.ErrExists)
			}
		})
	}
	s.whole()
}

// whole checks that no name refers to a missing row.
func (s *suite) whole() {
	s.Helper()
	names := map[string]bool{}
	plans, err := s.directory.Plans(s.Context())
	s.must(err)
	for _, plan := range plans {
		names["plan "+plan.Name] = true
	}
	accounts, err := s.directory.Accounts(s.Context())
	s.must(err)
	for _, account := range accounts {
		names["account "+account.Name] = true
		if !names["plan "+account.Plan] {
			s.Errorf("account %s has the plan %s, which is gone", account.Name, account.Plan)
		}
	}
	users, err := s.directory.Users(s.Context())
	s.must(err)
	for _, user := range users {
		names["user "+user.Name] = true
		if !names["account "+user.Account] {
			s.Errorf("user %s has the account %s, which is gone", user.Name, user.Account)
		}
	}
	keys, err := s.keys.Keys(s.Context(), "")
	s.must(err)
	for _, key := range keys {
		if !names["user "+key.User] {
			s.Errorf("key %s has the user %s, who is gone", key.ID, key.User)
		}
	}
}
