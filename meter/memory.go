package meter

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/keyporter/keyporter/authz"
)

// shards is the number of locks of a [Memory]. Two users share one by chance.
const shards = 256

// Memory is a [Limiter] for a single replica: it keeps the log of each user in memory. It is exact,
// and takes no longer for a million users than for one. The methods may be called from many goroutines.
type Memory struct {
	clock  func() time.Duration
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu    sync.Mutex
	users map[string]*rolling
	_     [48]byte // each shard on cache lines of its own
}

// NewMemory returns a Memory that counts by a clock which never goes back; if nil, by the monotonic
// one of the machine.
func NewMemory(clock func() time.Duration) *Memory {
	if clock == nil {
		began := time.Now()
		clock = func() time.Duration { return time.Since(began) }
	}
	m := &Memory{clock: clock, seed: maphash.MakeSeed()}
	for i := range m.shards {
		m.shards[i].users = map[string]*rolling{}
	}
	return m
}

func (m *Memory) shard(user string) *shard {
	return &m.shards[maphash.String(m.seed, user)%shards]
}

// id returns the number of a request: never 0 but for the empty one.
func (m *Memory) id(request string) uint64 {
	if request == "" {
		return 0
	}
	return maphash.String(m.seed, request) | 1
}

// Admit implements [Limiter]. It never fails.
func (m *Memory) Admit(_ context.Context, a Attempt) (Verdict, error) {
	id, s := m.id(a.ID), m.shard(a.User)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.users[a.User]
	if r == nil {
		r = &rolling{}
	}
	now := r.expire(m.clock(), a.Window)
	var v Verdict
	if first := r.again(id); first != nil {
		v.Admitted, v.Duplicate, v.Charge = true, true, first.charge
	} else if a.Limit == authz.Unlimited {
		v.Admitted = true
		r.remember(now, id, a.Charge)
		s.users[a.User] = r
	} else if int64(r.n) < int64(a.Limit) {
		v.Admitted = true
		r.add(now, id, a.Charge)
		s.users[a.User] = r
	}
	if a.Limit == authz.Unlimited {
		return v, nil
	}
	v.Remaining = max(0, int64(a.Limit)-int64(r.n))
	v.Reset = r.reset(now, int(a.Limit))
	return v, nil
}

// Look implements [Limiter]. It never fails.
func (m *Memory) Look(_ context.Context, a Attempt) (Verdict, error) {
	if a.Limit == authz.Unlimited {
		return Verdict{Admitted: true}, nil
	}
	s := m.shard(a.User)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.users[a.User]
	if r == nil {
		r = &rolling{}
	}
	now := max(m.clock(), r.seen)
	n, reset := r.look(now, a.Window, int(a.Limit))
	return Verdict{Admitted: int64(n) < int64(a.Limit), Remaining: max(0, int64(a.Limit)-int64(n)), Reset: reset}, nil
}

// count counts a request that was admitted elsewhere, unless it had been admitted here a moment ago: then
// it returns true and the charge of that time.
func (m *Memory) count(a Attempt) (charge string, again bool) {
	id, s := m.id(a.ID), m.shard(a.User)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.users[a.User]
	if r == nil {
		r = &rolling{}
		s.users[a.User] = r
	}
	now := r.expire(m.clock(), a.Window)
	if first := r.again(id); first != nil {
		return first.charge, true
	}
	if a.Limit == authz.Unlimited {
		r.remember(now, id, a.Charge)
	} else {
		r.add(now, id, a.Charge)
	}
	return "", false
}

// Release implements [Limiter]. It never fails.
func (m *Memory) Release(_ context.Context, user, request string) (bool, error) {
	id, s := m.id(request), m.shard(user)
	if id == 0 {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.users[user]
	return r != nil && r.remove(id), nil
}

// Users returns how many users have a log.
func (m *Memory) Users() (n int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		n += len(s.users)
		s.mu.Unlock()
	}
	return n
}

// sweepTime is how long it takes to look at all users once for those who have been idle for a window.
const sweepTime = time.Minute

// Run forgets idle users until ctx ends, a few at a time.
func (m *Memory) Run(ctx context.Context) {
	tick := time.NewTicker(sweepTime / shards)
	defer tick.Stop()
	for i := 0; ; i = (i + 1) % shards {
		select {
		case <-tick.C:
			m.shards[i].sweep(m.clock())
		case <-ctx.Done():
			return
		}
	}
}

func (s *shard) sweep(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for user, r := range s.users {
		if r.idle(now) {
			delete(s.users, user)
		}
	}
}
