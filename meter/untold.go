package meter

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// untold holds what was admitted while Valkey was away, until it can be told.
type untold struct {
	mu     sync.Mutex
	number uint64                 // guarded by mu; how many there ever were
	users  map[string][]admission // guarded by mu; user → what was admitted, oldest first
	pruned time.Duration          // guarded by mu; when prune has last looked
}

// admission is a request that was admitted without asking.
type admission struct {
	number  uint64 // no other one of this process has it
	request string
	at      time.Duration
	window  time.Duration
}

// add remembers a request.
func (u *untold) add(a Attempt, at time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users == nil {
		u.users = map[string][]admission{}
	}
	u.number++
	u.users[a.User] = append(unexpired(u.users[a.User], at), admission{u.number, strings.Clone(a.ID), at, a.Window}) // it may be part of something larger
}

// unexpired drops what counts no longer.
func unexpired(all []admission, now time.Duration) []admission {
	return slices.DeleteFunc(all, func(a admission) bool { return a.at <= now-a.window })
}

// remove forgets a request that was taken back, if it is here.
func (u *untold) remove(user, request string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.set(user, slices.DeleteFunc(u.users[user], func(a admission) bool { return a.request == request }))
}

// set must be called with mu held.
func (u *untold) set(user string, all []admission) {
	if len(all) > 0 {
		u.users[user] = all
		return
	}
	delete(u.users, user)
}

// pruneInterval is how often prune looks: whoever adds something waits meanwhile.
const pruneInterval = time.Second

// prune drops what counts no longer, so that a long absence needs no more memory than a window.
func (u *untold) prune(now time.Duration) {
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

// take returns everything, and forgets it.
func (u *untold) take() map[string][]admission {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := u.users
	u.users = nil
	return all
}

// giveBack remembers again what could not be told, which is older than what is here. Some of it may have been.
func (u *untold) giveBack(all map[string][]admission) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for user, newer := range u.users {
		all[user] = append(all[user], newer...)
	}
	u.users = all
}

// few takes so many requests at most out of all of them.
func few(all map[string][]admission, most int) map[string][]admission {
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
