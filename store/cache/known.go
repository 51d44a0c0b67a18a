package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/keyporter/keyporter/nowait"
)

// ErrNoPlace is the [ErrBusy] of a key that may or may not exist while too many such keys are read.
var ErrNoPlace = fmt.Errorf("%w: of keys that may not exist", ErrBusy)

// KnownConfig configures a [Known]. Only Read and Unknown are required.
type KnownConfig struct {
	// Read calls each for the mark of every key of a group, or of all groups if the group is "".
	// Marks may come more than once. What was committed before Read is called must be among them.
	Read func(ctx context.Context, group string, each func(mark uint64) error) error
	// Unknown is the error for a key that does not exist. [Config.Negative] must accept it.
	Unknown error

	Size   int // marks kept, of 8 bytes each; 4,194,304 by default
	Places int // keys that may wait for a read or be read although they may not exist; 32 by default
	Turns  int // of these, may be read at the same time; 1 by default

	Log     *slog.Logger          // slog.Default() if nil
	Metrics prometheus.Registerer // none if nil
}

// Known is a list of all keys that exist, a mark for each, so that a guess is refused without a
// read. [Known.Admit] is the Admit of a [Config]. While the list is incomplete, a key on it is still
// read like any other, and the rest competes for a few places. It is safe for concurrent use. It
// reads nothing before [Known.Want].
type Known struct {
	config KnownConfig
	places chan struct{}
	turns  chan struct{}
	wake   chan struct{}
	state  atomic.Pointer[known]

	mu     sync.Mutex
	wanted bool
	due    map[string]int // group → how often it was announced; "": all groups
	full   bool           // there are too many keys, as far as is known
}

// known is a state of the list. Its slices are sorted, and never changed.
type known struct {
	marks, recent []uint64
	complete      bool // a key that is not on the list does not exist
}

func (k *known) has(mark uint64) bool {
	_, found := slices.BinarySearch(k.marks, mark)
	if !found {
		_, found = slices.BinarySearch(k.recent, mark)
	}
	return found
}

const (
	knownSize   = 4 << 20
	knownPlaces = 32
	// maxRecent bounds the marks that are kept apart, so that a few new ones do not copy them all.
	maxRecent = 1 << 16
	// readAgain is the pause after a read that failed.
	readAgain = time.Second
)

// NewKnown returns a Known. It panics if its metrics are already registered.
func NewKnown(c KnownConfig) *Known {
	c.Size = positiveOr(c.Size, knownSize)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	k := &Known{
		config: c, places: make(chan struct{}, positiveOr(c.Places, knownPlaces)), turns: make(chan struct{}, positiveOr(c.Turns, 1)),
		wake: make(chan struct{}, 1), due: map[string]int{},
	}
	k.state.Store(&known{})
	with := promauto.With(c.Metrics)
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyporter_imported_keys", Help: "Keys of other systems on this replica's list, live or revoked.",
	}, func() float64 { s := k.state.Load(); return float64(len(s.marks) + len(s.recent)) })
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyporter_imported_list_complete", Help: "1 while the list of the keys of other systems is complete, so that a guess costs no look-up.",
	}, func() float64 {
		if k.state.Load().complete {
			return 1
		}
		return 0
	})
	return k
}

// Want starts the list, once there may be keys to look for.
func (k *Known) Want() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.wanted {
		k.wanted = true
		k.announce("")
	}
}

// Announce says that a group has new keys, or with "" that anything may have changed. When it
// returns, the list counts as incomplete until the group was read.
func (k *Known) Announce(group string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wanted {
		k.announce(group)
	}
}

// announce is called with mu held.
func (k *Known) announce(group string) {
	if k.full && group != "" {
		return
	}
	k.due[group]++
	state := *k.state.Load()
	state.complete = false
	k.state.Store(&state)
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Admit decides whether a key with this mark may be read: at once if it is on the list, and not at
// all if it certainly does not exist. Otherwise it takes one of the places, or fails with
// [ErrNoPlace], and waits for its turn. The caller holds the lease, and calls leave after the read.
func (k *Known) Admit(ctx context.Context, mark uint64) (leave func(), _ error) {
	state := k.state.Load()
	if state.has(mark) {
		return func() {}, nil
	}
	if state.complete {
		return nil, k.config.Unknown
	}
	if err := nowait.Err(ctx); err != nil {
		return nil, err
	}
	k.Want()
	select {
	case k.places <- struct{}{}:
	default:
		return nil, ErrNoPlace
	}
	select {
	case k.turns <- struct{}{}:
		return func() { <-k.turns; <-k.places }, nil
	case <-ctx.Done():
		<-k.places
		return nil, fmt.Errorf("%w: %w", ErrNoPlace, context.Cause(ctx))
	}
}

// Run reads what is announced until ctx ends.
func (k *Known) Run(ctx context.Context) {
	for ctx.Err() == nil {
		group, announced, any := k.next()
		if !any {
			select {
			case <-k.wake:
			case <-ctx.Done():
			}
			continue
		}
		err := k.read(ctx, group, announced)
		if err == nil || ctx.Err() != nil {
			continue
		}
		k.config.Log.Warn("the list of imported keys is incomplete until it can be read: guesses at such keys compete for a few look-ups", "error", err)
		select {
		case <-time.After(readAgain):
		case <-ctx.Done():
		}
	}
}

// next returns a group that is due. All groups come first, and stand for each.
func (k *Known) next() (group string, announced int, any bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.due[""]; n > 0 {
		k.due = map[string]int{"": n}
		return "", n, true
	}
	for group, n := range k.due {
		return group, n, true
	}
	return "", 0, false
}

var errTooMany = errors.New("too many")

// read reads a group, or all of them anew.
func (k *Known) read(ctx context.Context, group string, announced int) error {
	var found []uint64
	room := k.config.Size
	if state := k.state.Load(); group != "" {
		room -= len(state.marks) + len(state.recent)
	}
	err := k.config.Read(ctx, group, func(mark uint64) error {
		if found = append(found, mark); len(found) > room {
			return errTooMany
		}
		return nil
	})
	if err != nil && !errors.Is(err, errTooMany) {
		return err
	}
	slices.Sort(found)
	k.take(group, announced, slices.Compact(found), err != nil)
	return nil
}

// take adds what was read. The group stays due if it was announced again meanwhile. A list that is
// too long is given up until anything may have changed.
func (k *Known) take(group string, announced int, found []uint64, tooMany bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.due[group] == announced {
		delete(k.due, group)
	}
	state := *k.state.Load()
	switch {
	case tooMany && group != "":
		k.due[""]++ // some may have been on the list before
	case group == "":
		state = known{marks: found}
		k.full = tooMany
	default:
		state = state.with(found)
	}
	if k.full {
		state, k.due = known{}, map[string]int{"": k.due[""]}
		maps.DeleteFunc(k.due, func(_ string, n int) bool { return n == 0 })
		k.config.Log.Warn("there are too many imported keys for a list in memory: guesses at such keys compete for a few look-ups", "most", k.config.Size)
	}
	state.complete = len(k.due) == 0 && !k.full
	k.state.Store(&state)
}

// with returns the state with more marks.
func (k known) with(found []uint64) known {
	k.recent = merged(k.recent, found)
	if len(k.recent) > maxRecent {
		k.marks, k.recent = merged(k.marks, k.recent), nil
	}
	return k
}

// merged returns a sorted list of two.
func merged(a, b []uint64) []uint64 {
	all := slices.Grow([]uint64(nil), len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		from := &a
		if b[0] < a[0] {
			from = &b
		}
		all, *from = append(all, (*from)[0]), (*from)[1:]
	}
	return slices.Compact(append(append(all, a...), b...))
}
