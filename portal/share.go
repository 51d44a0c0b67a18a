package portal

import (
	"context"
	"errors"
	"sync"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// A user's share of the page, so that one who asks without end leaves it to others: how many of
// their requests are answered at once, and for how many of these the facts are gathered at once.
// More are answered with 429.
const (
	mostOfUser      = 8
	gatheringOfUser = 2
)

// errTooMany is that a user asks for more at once than their share.
var errTooMany = errors.New("too many requests of one user at once")

// shares counts what is under way, by whose it is. It holds nothing of who has nothing under way.
type shares struct {
	mu  sync.Mutex
	all map[string]*share // name → their share; guarded by mu
}

// share is what is under way of one user.
type share struct {
	requests  int           // guarded by shares.mu
	gathering chan struct{} // has an element for each view that is being gathered
}

// enter begins a request. Whoever gets a share leaves it again.
func (s *shares) enter(name string) (*share, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.all[name]
	if mine == nil {
		mine = &share{gathering: make(chan struct{}, gatheringOfUser)}
		s.all[name] = mine
	}
	if mine.requests >= mostOfUser {
		return nil, errTooMany
	}
	mine.requests++
	return mine, nil
}

func (s *shares) leave(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if mine := s.all[name]; mine.requests > 1 {
		mine.requests--
		return
	}
	delete(s.all, name)
}

// sharing returns sessions that look up no more of one login at once than its share: whose it is is
// not known before.
func (s *shares) sharing(sessions authz.Sessions) *authz.Sessions {
	find, findSubject := sessions.Find, sessions.FindSubject
	sessions.Find = func(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
		name := "session " + string(d[:])
		if _, err := s.enter(name); err != nil {
			return authz.Principal{}, err
		}
		defer s.leave(name)
		return find(ctx, d)
	}
	sessions.FindSubject = func(ctx context.Context, subject string) (authz.Principal, error) {
		name := "subject " + subject
		if _, err := s.enter(name); err != nil {
			return authz.Principal{}, err
		}
		defer s.leave(name)
		return findSubject(ctx, subject)
	}
	return &sessions
}
