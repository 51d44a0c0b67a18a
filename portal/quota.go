package portal

import (
	"context"
	"errors"
	"sync"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// These limits are each user's quota on the page, so that endless requests of one user leave room
// for others: concurrent requests, and views gathered at the same time. The page answers excess
// requests with 429.
const (
	maxRequestsOfUser  = 8
	maxGatheringOfUser = 2
)

// errTooMany means that a user exceeds their quota.
var errTooMany = errors.New("too many requests of one user at once")

// quotas counts the requests in progress per user. It keeps no entry for a user without requests.
type quotas struct {
	mu  sync.Mutex
	all map[string]*quota // name → their quota; guarded by mu
}

// quota counts the requests in progress of one user.
type quota struct {
	requests  int           // guarded by quotas.mu
	gathering chan struct{} // one element per view being gathered
}

// enter begins a request. The caller must call leave, unless enter returns an error.
func (q *quotas) enter(name string) (*quota, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	mine := q.all[name]
	if mine == nil {
		mine = &quota{gathering: make(chan struct{}, maxGatheringOfUser)}
		q.all[name] = mine
	}
	if mine.requests >= maxRequestsOfUser {
		return nil, errTooMany
	}
	mine.requests++
	return mine, nil
}

func (q *quotas) leave(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if mine := q.all[name]; mine.requests > 1 {
		mine.requests--
		return
	}
	delete(q.all, name)
}

// limited returns a copy of sessions with a quota of concurrent look-ups for each session and each
// subject, because their user is still unknown.
func (q *quotas) limited(sessions authz.Sessions) *authz.Sessions {
	find, findSubject := sessions.Find, sessions.FindSubject
	sessions.Find = func(ctx context.Context, d apikey.Digest) (authz.Principal, error) {
		name := "session " + string(d[:])
		if _, err := q.enter(name); err != nil {
			return authz.Principal{}, err
		}
		defer q.leave(name)
		return find(ctx, d)
	}
	sessions.FindSubject = func(ctx context.Context, subject string) (authz.Principal, error) {
		name := "subject " + subject
		if _, err := q.enter(name); err != nil {
			return authz.Principal{}, err
		}
		defer q.leave(name)
		return findSubject(ctx, subject)
	}
	return &sessions
}
