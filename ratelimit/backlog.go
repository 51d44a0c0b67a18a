package ratelimit

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// backlog holds the requests that were admitted while Valkey was unreachable, until they are
// replayed.
type backlog struct {
	mu     sync.Mutex
	number uint64                 // guarded by mu; the number of admissions ever added
	users  map[string][]admission // guarded by mu; user → admissions, oldest first
	pruned time.Duration          // guarded by mu; time of the last prune
}

// admission is a request that was admitted without Valkey.
type admission struct {
	number  uint64 // unique in this process
	request string
	at      time.Duration
	window  time.Duration
}

// add adds a request to the backlog.
func (u *backlog) add(a Attempt, at time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users == nil {
		u.users = map[string][]admission{}
	}
	u.number++
	// The ID is cloned, because it may be part of a larger string.
	u.users[a.User] = append(unexpired(u.users[a.User], at), admission{u.number, strings.Clone(a.ID), at, a.Window})
}

// unexpired drops the admissions that no longer count.
func unexpired(all []admission, now time.Duration) []admission {
	return slices.DeleteFunc(all, func(a admission) bool { return a.at <= now-a.window })
}

// remove drops a released request, if it is in the backlog.
func (u *backlog) remove(user, request string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.set(user, slices.DeleteFunc(u.users[user], func(a admission) bool { return a.request == request }))
}

// set must be called with mu held.
func (u *backlog) set(user string, all []admission) {
	if len(all) > 0 {
		u.users[user] = all
		return
	}
	delete(u.users, user)
}

// pruneInterval is the minimum time between two prunes: add waits during one.
const pruneInterval = time.Second

// prune drops the admissions that no longer count, so that a long outage needs no more memory than
// a window.
func (u *backlog) prune(now time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now-u.pruned < pruneInterval {
		return
	}
	u.pruned = now
	for user, all := range u.users {
		u.set(user, unexpired(all, now))
	}
}

// take empties the backlog and returns its content.
func (u *backlog) take() map[string][]admission {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := u.users
	u.users = nil
	return all
}

// requeue requeues admissions that could not be replayed, ahead of newer ones. Valkey may have
// counted some of them.
func (u *backlog) requeue(all map[string][]admission) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for user, newer := range u.users {
		all[user] = append(all[user], newer...)
	}
	u.users = all
}

// takeN takes at most this many requests out of all.
func takeN(all map[string][]admission, most int) map[string][]admission {
	some := map[string][]admission{}
	for user, requests := range all {
		if most == 0 {
			break
		}
		n := min(len(requests), most)
		some[user], most = requests[:n:n], most-n
		if all[user] = requests[n:]; len(all[user]) == 0 {
			delete(all, user)
		}
	}
	return some
}
