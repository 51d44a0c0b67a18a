package ratelimit

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/keyporter/keyporter/usage"
)

// shards is the number of locks of a [Memory].
const shards = 256

// Memory is the log of a single replica: it keeps that of each user in memory. It is exact, and as
// fast with a million users as with one. Its methods are safe for concurrent use.
type Memory struct {
	clock  func() time.Duration
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu     sync.Mutex
	users  map[string]slidingLog
	recent recentSet // recently admitted requests
	_      [56]byte  // keeps each shard on its own cache lines
}

// NewMemory returns a Memory that counts by a clock that never goes back; nil: the machine's
// monotonic clock.
func NewMemory(clock func() time.Duration) *Memory {
	if clock == nil {
		began := time.Now()
		clock = func() time.Duration { return time.Since(began) }
	}
	m := &Memory{clock: clock, seed: maphash.MakeSeed()}
	for i := range m.shards {
		m.shards[i].users = map[string]slidingLog{}
	}
	return m
}

// shard returns the shard of a user's log, and the id of one of the user's requests. The id of the
// empty request is 0.
func (m *Memory) shard(user, request string) (s *shard, id uint64) {
	hash := maphash.String(m.seed, user)
	if request != "" {
		id = valid(hash*31 + maphash.String(m.seed, request))
	}
	return &m.shards[hash%shards], id
}

// Named returns false: the log remembers charges by number.
func (m *Memory) Named() bool { return false }

// Admit counts a request, unless the limit was reached in the window before it. A refused request
// is not counted. Admit never fails.
func (m *Memory) Admit(_ context.Context, a Attempt) (Verdict, error) {
	s, id := m.shard(a.User, a.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	clock := m.clock()
	s.recent.expire(clock)
	if a.Limit == usage.Unlimited {
		v := Verdict{Admitted: true}
		if v.Charge, v.Duplicate = m.again(s, id, &a, clock); !v.Duplicate {
			m.remember(s, id, &a, clock, false)
		}
		return v, nil
	}
	r := s.users[a.User]
	now := r.expire(clock, a.Window)
	var v Verdict
	if v.Charge, v.Duplicate = m.again(s, id, &a, now); v.Duplicate {
		v.Admitted = true
	} else if int64(r.n()) < int64(a.Limit) {
		v.Admitted = true
		r = s.add(r, now, &a)
		m.remember(s, id, &a, now, true)
	}
	v.Remaining = max(0, int64(a.Limit)-int64(r.n()))
	v.Reset = r.reset(now, int(a.Limit))
	return v, nil
}

// add counts a request in the log of its user.
func (s *shard) add(r slidingLog, now time.Duration, a *Attempt) slidingLog {
	places := len(r)
	if r = r.add(now, a.Window, int(a.Limit)); len(r) != places {
		s.users[a.User] = r // it has moved
	}
	return r
}

// again reports whether a request was admitted recently, and returns its charge if that is known.
// From then on the request cannot be released.
func (m *Memory) again(s *shard, id uint64, a *Attempt, now time.Duration) (charge ChargeRef, again bool) {
	first := s.recent.findRecent(id, now)
	if first == nil {
		return ChargeRef{}, false
	}
	first.repeated = true
	if first.fingerprint != a.Charge.Fingerprint { // the charge cannot be reconstructed
		return ChargeRef{}, true
	}
	return ChargeRef{Number: first.number, Month: first.month, Fingerprint: first.fingerprint}, true
}

// remember records a request whose Check may be repeated.
func (m *Memory) remember(s *shard, id uint64, a *Attempt, now time.Duration, counted bool) {
	if id != 0 {
		s.recent.add(admitted{
			id: id, at: now, life: uint32(a.remembered().Milliseconds()), counted: counted, asked: a.asked,
			number: a.Charge.Number, month: a.Charge.Month, fingerprint: a.Charge.Fingerprint,
		})
	}
}

// Peek returns what Admit would, without counting anything. It never fails.
func (m *Memory) Peek(_ context.Context, a Attempt) (Verdict, error) {
	if a.Limit == usage.Unlimited {
		return Verdict{Admitted: true}, nil
	}
	s, _ := m.shard(a.User, "")
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.users[a.User]
	now := r.now(m.clock())
	n, reset := r.peek(now, a.Window, int(a.Limit))
	return Verdict{Admitted: int64(n) < int64(a.Limit), Remaining: max(0, int64(a.Limit)-int64(n)), Used: int64(n), Reset: reset}, nil
}

// count counts a request that Valkey has admitted, unless this replica admitted it recently: then
// it returns true and the charge of the first Check.
func (m *Memory) count(a Attempt) (charge ChargeRef, again bool) {
	s, id := m.shard(a.User, a.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := m.clock()
	s.recent.expire(now)
	if a.Limit == usage.Unlimited {
		if charge, again = m.again(s, id, &a, now); !again {
			m.remember(s, id, &a, now, false)
		}
		return charge, again
	}
	r := s.users[a.User]
	now = r.expire(now, a.Window)
	if charge, again = m.again(s, id, &a, now); !again {
		s.add(r, now, &a)
		m.remember(s, id, &a, now, true)
	}
	return charge, again
}

// asked reports whether the request is remembered, and a server was asked about it.
func (m *Memory) asked(user, request string) bool {
	s, id := m.shard(user, request)
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.recent.find(id)
	return one != nil && one.asked
}

// Release takes back a request that was admitted and not answered, and reports whether it has. It
// does not if a repeated Check of the request was admitted as well, or if the request has no ID. It
// never fails.
func (m *Memory) Release(_ context.Context, user, request string) (bool, error) {
	s, id := m.shard(user, request)
	if id == 0 {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.recent.find(id)
	if one == nil || one.repeated {
		return false, nil
	}
	if r := s.users[user]; one.counted {
		r.remove(one.at)
	}
	s.recent.remove(one)
	return true, nil
}

// Users returns the number of users with a log.
func (m *Memory) Users() (n int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		n += len(s.users)
		s.mu.Unlock()
	}
	return n
}

// sweepTime is how long one sweep over all users takes.
const sweepTime = time.Minute

// Run forgets users that have been idle for a window until ctx ends, a few at a time.
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
	s.recent.expire(now)
	s.recent.shrink()
	for user, r := range s.users {
		if r.idle(now) {
			delete(s.users, user)
		}
	}
}
