package portal

import (
	"context"
	"errors"
	"sync"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// These limits are a user's share of the page, so that a user who sends endless requests leaves
// room for others: the requests answered at once, and the views gathered at once. Excess requests
// are answered with 429.
const (
	maxRequestsOfUser  = 8
	maxGatheringOfUser = 2
)

// errTooMany means that a user exceeds their share.
var errTooMany = errors.New("too many requests of one user at once")

// shares counts the requests in progress per user. It keeps no entry for a user without requests.
type shares struct {
	mu  sync.Mutex
	all map[string]*share // name → their share; guarded by mu
}

// share counts the requests in progress of one user.
type share struct {
	requests  int           // guarded by shares.mu
	gathering chan struct{} // one element per view being gathered
}

// enter begins a request. The caller must call leave, unless enter returns an error.
func (s *shares) enter(name string) (*share, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.all[name]
	if mine == nil {
		mine = &share{gathering: make(chan struct{}, maxGatheringOfUser)}
		s.all[name] = mine
	}
	if mine.requests >= maxRequestsOfUser {
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

// limited returns a copy of sessions that limits the concurrent look-ups of each session and each
// subject to a share, because their user is still unknown.
func (s *shares) limited(sessions authz.Sessions) *authz.Sessions {
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
