package lease_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/store/lease"
)

// list is a lease.Roster. The test sets its members over time, and when it cannot be read.
type list struct {
	t     *testing.T
	began time.Time
	// id → acked; nil: the database is unreachable
	members func(after time.Duration) map[string]lease.Epoch
	hangs   bool // while it is unreachable
	fenced  []string
}

const newest lease.Epoch = 7

func (l *list) Roster(ctx context.Context) (lease.Roll, error) {
	members := l.members(time.Since(l.began))
	if members == nil {
		return lease.Roll{}, l.away(ctx)
	}
	roll := lease.Roll{Newest: newest}
	for _, id := range slices.Sorted(maps.Keys(members)) {
		roll.Members = append(roll.Members, lease.Member{ID: id, Acked: members[id], Life: life})
	}
	return roll, nil
}

func (l *list) away(ctx context.Context) error {
	if l.hangs {
		<-ctx.Done()
	}
	return errLost
}

func (l *list) Fence(ctx context.Context, epoch lease.Epoch, ids []string) error {
	if epoch != newest || len(l.fenced) > 0 {
		l.t.Errorf("fenced at %d: %v, after %v", epoch, ids, l.fenced)
	}
	l.fenced = slices.Sorted(slices.Values(ids))
	if l.members(time.Since(l.began)) == nil {
		return l.away(ctx)
	}
	return nil
}

type acked = map[string]lease.Epoch

// always is a constant list.
func always(a acked) func(time.Duration) map[string]lease.Epoch {
	return func(time.Duration) map[string]lease.Epoch { return a }
}

// then is a list that changes once.
func then(at time.Duration, before, after acked) func(time.Duration) map[string]lease.Epoch {
	return func(now time.Duration) map[string]lease.Epoch {
		if now < at {
			return before
		}
		return after
	}
}

// A change waits for the replicas on the list until each has followed, has left, or has no lease
// any more. It waits for none of them longer than 1.05 × the lease.
func TestBarrier(t *testing.T) {
	const whole, soon = life + life/20, 10 * time.Millisecond
	for _, row := range []struct {
		name                         string
		members                      func(time.Duration) map[string]lease.Epoch
		hangs                        bool
		total, acknowledged, expired int
		fenced                       string
		least, most                  time.Duration
	}{
		{name: "nobody is on the list", members: always(acked{})},
		{name: "all have followed already", members: always(acked{"a": 7, "b": 9}), total: 2, acknowledged: 2},
		{
			name:    "one follows a moment later",
			members: then(soon, acked{"a": 7, "b": 6}, acked{"a": 7, "b": 7}), total: 2, acknowledged: 2, least: soon, most: 2 * soon,
		}, {
			name:    "one is silent, and alone is fenced",
			members: always(acked{"a": 7, "b": 6}), total: 2, acknowledged: 1, expired: 1, fenced: "b", least: whole, most: whole,
		}, {
			name:    "two are silent, of which one has applied nothing",
			members: always(acked{"a": -1, "b": 6}), total: 2, expired: 2, fenced: "a b", least: whole, most: whole,
		}, {
			name:    "one leaves meanwhile, and is not counted",
			members: then(soon, acked{"a": 7, "b": 6}, acked{"a": 7}), total: 1, acknowledged: 1, least: soon, most: 2 * soon,
		}, {
			name:    "one comes meanwhile, and is not waited for",
			members: then(soon, acked{"a": 6}, acked{"a": 7, "b": -1}), total: 1, acknowledged: 1, least: soon, most: 2 * soon,
		}, {
			name:    "a change that comes meanwhile is not waited for",
			members: then(soon, acked{"a": 6}, acked{"a": 7}), total: 1, acknowledged: 1, least: soon, most: 2 * soon,
		}, {
			name:    "the database is away at first: the leases count from the first look",
			members: then(life, nil, acked{"a": 6}), total: 1, expired: 1, fenced: "a", least: life + whole, most: life + whole + 25*time.Millisecond,
		}, {
			name:    "the database goes away",
			members: then(soon, acked{"a": 6}, nil), total: 1, expired: 1, fenced: "a", least: whole, most: whole,
		}, {
			name:    "the database goes away and does not even refuse",
			members: then(soon, acked{"a": 6}, nil), hangs: true, total: 1, expired: 1, fenced: "a", least: whole, most: whole + 250*time.Millisecond,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &list{t: t, began: time.Now(), members: row.members, hangs: row.hangs}
				c, err := (&lease.Barrier{Roster: l}).Wait(t.Context(), 0)
				if err != nil || c.Total != row.total || c.Acknowledged != row.acknowledged || c.Expired != row.expired {
					t.Errorf("%+v, %v; want %d, %d acknowledged, %d expired", c, err, row.total, row.acknowledged, row.expired)
				}
				if took := time.Since(l.began); took < row.least || took > row.most || took != c.Took {
					t.Errorf("it took %v, and says %v; want %v to %v", took, c.Took, row.least, row.most)
				}
				if fenced := strings.Join(l.fenced, " "); fenced != row.fenced {
					t.Errorf("fenced %q, not %q", fenced, row.fenced)
				}
			})
		})
	}
}

// A barrier that ends early returns [ErrUnconfirmed].
func TestABarrierThatIsCutShortConfirmsNothing(t *testing.T) {
	for name, members := range map[string]func(time.Duration) map[string]lease.Epoch{
		"one is silent":           always(acked{"a": 6}),
		"the list cannot be read": always(nil),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), life/2)
				defer cancel()
				l := &list{t: t, began: time.Now(), members: members}
				c, err := (&lease.Barrier{Roster: l}).Wait(ctx, 0)
				if !errors.Is(err, lease.ErrUnconfirmed) || c.Acknowledged+c.Expired != 0 || l.fenced != nil {
					t.Errorf("%+v, %v, fenced %v", c, err, l.fenced)
				}
				if took := time.Since(l.began); took != life/2 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// former is a Roster that reads at first, and now and then, from a server that lacks the change and
// the last registered replica.
type former struct {
	*list
	looks int
}

func (f *former) Roster(ctx context.Context) (lease.Roll, error) {
	f.looks++
	if f.looks%3 != 0 {
		return lease.Roll{Newest: newest - 1, Members: []lease.Member{{ID: "a", Acked: newest - 1, Life: life}}}, nil
	}
	return f.list.Roster(ctx)
}

// A list from a server that lacks the change confirms nothing, and a replica missing from it is not
// gone.
func TestAListOlderThanTheChangeSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &former{list: &list{t: t, began: time.Now(), members: func(after time.Duration) map[string]lease.Epoch {
			if after < life/2 {
				return acked{"a": newest, "late": newest - 1}
			}
			return acked{"a": newest, "late": newest}
		}}}
		c, err := (&lease.Barrier{Roster: l}).Wait(t.Context(), newest)
		if took := time.Since(l.began); err != nil || c.Total != 2 || c.Acknowledged != 2 || took < life/2 {
			t.Errorf("%+v, %v after %v; want 2 acknowledged, not before %v", c, err, took, life/2)
		}
	})
}
