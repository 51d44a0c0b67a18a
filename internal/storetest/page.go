package storetest

import (
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// opens reports whether a session is live. On a busy machine a look-up may end without an answer.
func (s *suite) opens(session apikey.Digest) bool {
	for range 10 {
		_, err := s.lookups.FindSession(s.Context(), session)
		if err == nil || errors.Is(err, authz.ErrUnknown) || errors.Is(err, authz.ErrRevoked) {
			return err == nil
		}
	}
	s.Error("a session cannot be looked up")
	return false
}

func linksLogInOnce(s *suite) {
	s.acme("ada", "bob")
	link, token, err := s.sessions.CreateLoginLink(s.Context(), "ada", s.format)
	s.must(err)
	if left := time.Until(link.ExpiresAt); link.User != "ada" || left < 9*time.Minute || left > directory.LinkLife {
		s.Errorf("a link of %s that is good for %v", link.User, left)
	}
	for range 3 { // opening it spends nothing
		found, err := s.sessions.FindLoginLink(s.Context(), token.Digest())
		s.must(err)
		equal(s, "whose link it is", found.User, "ada")
	}
	var used, kept atomic.Int64
	var racing sync.WaitGroup
	for range 8 {
		_, before, err := s.sessions.CreateSession(s.Context(), "bob", time.Hour, s.format)
		s.must(err)
		racing.Go(func() {
			session, secret, err := s.sessions.UseLoginLink(s.Context(), token.Digest(), before.Digest(), time.Hour, s.format)
			if s.opens(before.Digest()) {
				kept.Add(1)
			}
			if errors.Is(err, store.ErrNotFound) {
				return
			}
			used.Add(1)
			p, findErr := s.lookups.FindSession(s.Context(), secret.Digest())
			if err != nil || findErr != nil || session.User != "ada" || p.User != "ada" || secret.Reveal() == token.Reveal() {
				s.Errorf("a login: %+v, %v, %v", session, err, findErr)
			}
		})
	}
	racing.Wait()
	equal(s, "logins with one link by many at once", used.Load(), 1)
	equal(s, "sessions kept by those who came too late", kept.Load(), 7)
	_, err = s.sessions.FindLoginLink(s.Context(), token.Digest())
	s.want("a used link", err, store.ErrNotFound)
	_, err = s.sessions.FindLoginLink(s.Context(), s.format.Generate().Digest())
	s.want("an unknown link", err, store.ErrNotFound)
	_, _, err = s.sessions.CreateLoginLink(s.Context(), "eve", s.format)
	s.want("a link of nobody", err, store.ErrNotFound)

	_, token, err = s.sessions.CreateLoginLink(s.Context(), "bob", s.format)
	s.must(err)
	s.must(s.setUser("bob", directory.UserChange{Status: new("disabled")}))
	_, err = s.sessions.FindLoginLink(s.Context(), token.Digest())
	s.want("a disabled user's link", err, store.ErrNotFound)
	_, _, err = s.sessions.UseLoginLink(s.Context(), token.Digest(), apikey.Digest{}, time.Hour, s.format)
	s.want("using a disabled user's link", err, store.ErrNotFound)
	s.must(s.deleteUser("bob")) // with their links
}

func oneSessionEnds(s *suite) {
	s.acme("ada")
	_, first, err := s.sessions.CreateSession(s.Context(), "ada", time.Hour, s.format)
	s.must(err)
	_, second, err := s.sessions.CreateSession(s.Context(), "ada", time.Hour, s.format)
	s.must(err)
	for range 2 { // repeating it changes nothing
		_, err = s.sessions.EndSession(s.Context(), first.Digest())
		s.must(err)
	}
	_, err = s.lookups.FindSession(s.Context(), first.Digest())
	s.want("the session that was ended", err, authz.ErrRevoked)
	_, err = s.lookups.FindSession(s.Context(), second.Digest())
	s.must(err)
}

func subjectsNameUsers(s *suite) {
	s.acme("ada", "bob")
	subject := "auth0|8f3c ğ\u2028'\"" // web apps may use any text
	s.must(s.setUser("ada", directory.UserChange{Subject: &subject}))
	p, err := s.lookups.FindSubject(s.Context(), subject)
	s.must(err)
	if p.User != "ada" || p.KeyID != "" || !p.NotBefore.IsZero() || !p.UserActive {
		s.Errorf("ada by her subject: %+v", p)
	}
	s.must(s.setUser("ada", directory.UserChange{Kind: new("service")}))
	users, err := s.directory.Users(s.Context())
	s.must(err)
	equal(s, "the subject after another change", users[0].Subject, subject)
	s.want("the same subject twice", s.setUser("bob", directory.UserChange{Subject: &subject}), store.ErrExists)
	s.want("a new user with the same subject", s.setUser("eve", directory.UserChange{Account: new("acme"), Subject: &subject}), store.ErrExists)
	for _, unknown := range []string{"", "auth0|8F3C ğ\u2028'\"", "ada", "a\x00b", "\xff"} {
		_, err := s.lookups.FindSubject(s.Context(), unknown)
		s.want("a subject that is nobody's", err, authz.ErrUnknown)
	}
	for _, bad := range []string{"a\nb", "\xff", strings.Repeat("x", 256)} {
		s.want("a subject that cannot be", s.setUser("ada", directory.UserChange{Subject: &bad}), store.ErrInvalid)
	}
	before := time.Now().Add(-time.Second)
	_, _, err = s.sessions.RevokeSessions(s.Context(), "ada", "")
	s.must(err)
	p, err = s.lookups.FindSubject(s.Context(), subject)
	s.must(err)
	if p.NotBefore.Before(before) {
		s.Errorf("after a revocation tokens count since %v", p.NotBefore)
	}
	s.must(s.setUser("ada", directory.UserChange{Subject: new("")}))
	_, err = s.lookups.FindSubject(s.Context(), subject)
	s.want("a subject that was taken away", err, authz.ErrUnknown)
	s.must(s.setUser("bob", directory.UserChange{Subject: &subject}))
}

func regeneratingHasAPace(s *suite) {
	s.acme("ada")
	s.createKey("ada")
	pace := directory.Rate{N: 3, Per: time.Hour}
	for range 2 {
		_, _, _, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, pace, "")
		s.must(err)
	}
	live, err := s.keys.LiveKey(s.Context(), "ada")
	s.must(err)
	_, token, _, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, pace, "")
	if tooOften := (directory.TooOftenError{}); !errors.As(err, &tooOften) || time.Until(tooOften.Until) < 59*time.Minute || !token.IsZero() {
		s.Errorf("a fourth key in an hour: %v", err)
	}
	still, err := s.keys.LiveKey(s.Context(), "ada")
	s.must(err)
	equal(s, "the key after a refusal", still, live)
	_, _, _, err = s.keys.RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "once")
	s.must(err)
	_, _, c, err := s.keys.RegenerateKey(s.Context(), "ada", s.format, pace, "once")
	s.must(err) // a repeated call makes no other key
	equal(s, "repeated", c.Repeated, true)
}

func aKeyIsReplacedByItsID(s *suite) {
	s.acme("ada")
	first, _ := s.createKey("ada")
	second, _, _, err := s.keys.ReplaceKey(s.Context(), "ada", first.ID, s.format, directory.Rate{}, "a")
	s.must(err)
	// A second window that was open meanwhile revokes nothing, with or without an idempotency key.
	for _, once := range []feed.IdempotencyKey{"b", ""} {
		_, token, _, err := s.keys.ReplaceKey(s.Context(), "ada", first.ID, s.format, directory.Rate{}, once)
		if replaced := (directory.ReplacedError{}); !errors.As(err, &replaced) || replaced.By.ID != second.ID || replaced.By.CreatedAt.IsZero() || !token.IsZero() {
			s.Errorf("a key that was replaced: %v, want that %s has replaced it", err, second.ID)
		}
	}
	live, err := s.keys.LiveKey(s.Context(), "ada")
	s.must(err)
	equal(s, "the live key", live, second)
	again, _, c, err := s.keys.ReplaceKey(s.Context(), "ada", first.ID, s.format, directory.Rate{}, "a")
	s.must(err)
	equal(s, "the same call again", again, second)
	equal(s, "repeated", c.Repeated, true)
}

func sealedKeysAreSealedAgain(s *suite) {
	old, fresh := newSealKey(s), newSealKey(s)
	s.must(s.keys.SetSealKey(s.Context(), old.Public()))
	s.acme("ada", "bob", "eve")
	tokens := map[string]apikey.Token{}
	for _, user := range []string{"ada", "bob"} {
		_, tokens[user] = s.createKey(user)
	}
	s.must(s.keys.ReplaceSealKey(s.Context(), old.Public(), fresh.Public()))
	s.want("a replacement of what is not there any more", s.keys.ReplaceSealKey(s.Context(), old.Public(), fresh.Public()), store.ErrNotFound)
	_, tokens["eve"] = s.createKey("eve") // sealed to the new one
	both := apikey.SealKeys{fresh, old}
	reseal := func(sealed []byte, id string) ([]byte, error) {
		if _, err := fresh.Unseal(sealed, id); err == nil {
			return nil, nil
		}
		token, err := both.Unseal(sealed, id)
		if err != nil {
			return nil, err
		}
		return apikey.Seal(fresh.Public(), token, id)
	}
	for _, want := range []int{2, 0} { // it can be repeated
		n, err := s.keys.Reseal(s.Context(), reseal)
		s.must(err)
		equal(s, "keys that were sealed again", n, want)
	}
	copies := map[string][]byte{}
	for user, token := range tokens {
		key, sealed, err := s.keys.SealedKey(s.Context(), user)
		s.must(err)
		opened, err := fresh.Unseal(sealed, key.ID)
		if err != nil || opened.Reveal() != token.Reveal() {
			s.Errorf("%s's key: %v", user, err)
		}
		copies[user] = sealed
	}
	if key, _, err := s.keys.SealedKey(s.Context(), "bob"); err == nil {
		if _, err := fresh.Unseal(copies["ada"], key.ID); !errors.Is(err, apikey.ErrSealed) {
			s.Errorf("a copy that was moved to another row opens: %v", err)
		}
	}
	_, _, err := s.keys.RevokeKey(s.Context(), "ada", "")
	s.must(err)
	_, _, err = s.keys.SealedKey(s.Context(), "ada")
	s.want("the copy of an ended key", err, store.ErrNotFound)
	_, err = s.keys.Reseal(s.Context(), func([]byte, string) ([]byte, error) { return nil, errors.New("broken off") })
	if err == nil || !strings.Contains(err.Error(), "broken off") {
		s.Errorf("a rotation that is broken off: %v", err)
	}
}

func newSealKey(s *suite) *apikey.SealKey {
	s.Helper()
	key, err := apikey.NewSealKey()
	s.must(err)
	return key
}

func auditTellsWhoDidWhat(s *suite) {
	s.must(s.keys.SetSealKey(s.Context(), newSealKey(s).Public()))
	boss := s.db.As("command:boss")
	setPlan := func(c directory.PlanChange) {
		_, _, err := directory.New(boss).SetPlan(s.Context(), "pro", c, "")
		s.must(err)
	}
	setPlan(directory.PlanChange{})
	setPlan(directory.PlanChange{Credits: new(usage.Limit(5))})
	setPlan(directory.PlanChange{Credits: new(usage.Limit(5))}) // changes nothing
	s.must(s.setAccount("acme", directory.AccountChange{Plan: new("pro")}))
	s.must(s.setUser("ada", directory.UserChange{Account: new("acme")}))
	_, first, err := directory.NewKeys(boss).CreateKey(s.Context(), "ada", s.format)
	s.must(err)
	key, second, _, err := directory.NewKeys(s.db.As("page:ada")).RegenerateKey(s.Context(), "ada", s.format, directory.Rate{}, "")
	s.must(err)
	s.must(directory.NewAudit(s.db.As("page:ada")).RecordReveal(s.Context(), "ada", key.ID, directory.Rate{N: 1, Per: time.Hour}))
	err = directory.NewAudit(s.db).RecordReveal(s.Context(), "ada", key.ID, directory.Rate{N: 1, Per: time.Hour})
	if tooOften := (directory.TooOftenError{}); !errors.As(err, &tooOften) || time.Until(tooOften.Until) < 59*time.Minute {
		s.Errorf("shown twice in an hour: %v", err)
	}
	_, err = ledger.New(boss).Grant(s.Context(), "ada", 7, "")
	s.must(err)
	_, session, err := directory.NewSessions(boss).CreateSession(s.Context(), "ada", time.Hour, s.format)
	s.must(err)
	_, link, err := directory.NewSessions(boss).CreateLoginLink(s.Context(), "ada", s.format)
	s.must(err)
	s.must(s.deleteUser("ada"))

	entries, err := directory.NewAudit(s.db).List(s.Context(), directory.AuditFilter{})
	s.must(err)
	var told []string
	all := ""
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		told = append(told, strings.Join([]string{e.Actor, e.Action, e.Kind, e.Name}, " "))
		all += string(e.Detail)
		if age := time.Since(e.At); age < -time.Minute || age > time.Minute {
			s.Errorf("at %v", e.At)
		}
	}
	equal(s, "the audit", strings.Join(told, "\n"), strings.Join([]string{
		"service created seal key page",
		"command:boss created plan pro", "command:boss changed plan pro",
		"service created account acme", "service created user ada",
		"command:boss created key ada", "page:ada changed key ada", "page:ada created key ada", "page:ada revealed key ada",
		"command:boss created grant ada", "command:boss created session ada", "command:boss created login link ada",
		"service deleted session ada", "service deleted key ada", "service deleted key ada", "service deleted user ada",
	}, "\n"))
	if !strings.Contains(strings.ReplaceAll(all, " ", ""), `{"credits":[20000,5]}`) || !strings.Contains(all, key.ID) {
		s.Errorf("the audit does not tell what was changed: %s", all)
	}
	for _, token := range []apikey.Token{first, second, session, link} {
		digest := token.Digest()
		for _, secret := range []string{token.Reveal(), token.Reveal()[3:], hex.EncodeToString(digest[:]), strings.ToUpper(hex.EncodeToString(digest[:]))} {
			if strings.Contains(all, secret) {
				s.Error("the audit holds a secret")
			}
		}
	}
	only, err := directory.NewAudit(s.db).List(s.Context(), directory.AuditFilter{Name: "pro", Limit: 1})
	s.must(err)
	if len(only) != 1 || only[0].Action != "changed" || only[0].Kind != "plan" {
		s.Errorf("the newest of the plan: %+v", only)
	}
	none, err := directory.NewAudit(s.db).List(s.Context(), directory.AuditFilter{Since: time.Now().Add(time.Hour)})
	s.must(err)
	equal(s, "of the future", len(none), 0)
}
