package meter

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/authz"
)

// SharedConfig says what a [Shared] counts with. The zero value is a single replica.
type SharedConfig struct {
	// Valkey keeps the logs of all replicas; Close closes it. Nil: each replica admits its share of each limit.
	Valkey *Valkey
	// Replicas returns how many replicas share a limit where there is no Valkey, or while it is away. It
	// must be quick. Nil: one.
	Replicas func() int
	// Strict refuses to decide while Valkey is away. Users without a limit are admitted.
	Strict bool
	// Timeout bounds one question to Valkey, and as much again the wait until it is asked; [DefaultTimeout] if 0. Both are
	// part of the time for a Check.
	Timeout time.Duration

	Clock   func() time.Duration  // as of [NewMemory]
	Log     *slog.Logger          // slog.Default() if nil
	Metrics prometheus.Registerer // none if nil
}

// Shared is a [Limiter] for one or for several replicas. With a Valkey that answers it is exact. While
// Valkey does not answer, each replica goes on by its own log with its share of the limit, max(1, ⌊limit /
// replicas⌋), and tells Valkey afterwards what it has admitted.
//
// Where the server comes back without its memory, both have to agree for one window: Valkey, and the share
// of this replica. So whatever fails, and however often, no window has more than twice the limit: at most
// the limit by a Valkey that remembers the whole window, and at most its share by each replica.
type Shared struct {
	config  SharedConfig
	local   *Memory // what this replica has admitted, by whatever decision
	untold  untold
	metrics *limiterMetrics

	away     atomic.Bool            // Valkey does not answer, or has forgotten
	noticed  chan error             // wakes watch, since away was set, with the reason
	identity atomic.Pointer[string] // of the memory that Valkey had when it was last looked at
	since    atomic.Int64           // when that memory was empty, on the clock of local
	longest  atomic.Int64           // window seen
	silent   time.Time              // since when Valkey has not answered, zero: it does; owned by watch
	denied   atomic.Pointer[denial] // the last one
	logged   time.Time              // when that was logged last; owned by watch
}

// DefaultTimeout is how long a question to Valkey may take.
const DefaultTimeout = 50 * time.Millisecond

// NewShared returns a Shared, which needs [Shared.Run].
func NewShared(c SharedConfig) *Shared {
	if c.Replicas == nil {
		c.Replicas = func() int { return 1 }
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Shared{config: c, local: NewMemory(c.Clock), noticed: make(chan error, 1)}
	s.away.Store(c.Valkey != nil)
	s.metrics = newLimiterMetrics(s, c.Metrics)
	return s
}

// Local is what this replica has admitted, by whatever decision.
func (s *Shared) Local() *Memory { return s.local }

// ErrAway is returned by a strict [Shared] while Valkey does not answer.
var ErrAway = errors.New("the shared rate log does not answer, and --rate-limit-strict is set")

// errUnsure says that Valkey may know of a second Check.
var errUnsure = errors.New("the shared rate log does not answer, so it cannot be told whether the request was repeated")

// Named implements [Limiter]: other replicas know nothing of this one's numbers.
func (s *Shared) Named() bool { return s.config.Valkey != nil }

// Admit implements [Limiter].
func (s *Shared) Admit(ctx context.Context, a Attempt) (Verdict, error) {
	unlimited := a.Limit == authz.Unlimited
	if s.config.Valkey == nil || unlimited && a.Charge.Name == "" {
		return s.local.Admit(ctx, s.share(a))
	}
	if w := int64(a.Window); w > s.longest.Load() && !unlimited {
		s.longest.Store(w)
	}
	if a.ID == "" {
		a.ID = "-" + rand.Text() // no other request is called that
	}
	if !s.away.Load() {
		v, err := s.ask(ctx, a)
		if err == nil {
			return v, nil
		}
		s.lost(err)
		a.asked = !errors.Is(err, errNotAsked) && !errors.Is(err, errNotConnected) && !errors.Is(err, errForgotten)
	}
	if s.config.Strict && !unlimited {
		return Verdict{}, ErrAway
	}
	v, err := s.local.Admit(ctx, s.share(a))
	if v.Admitted && !v.Duplicate && !unlimited {
		s.untold.add(a, s.local.clock())
	}
	return v, err
}

// Look implements [Limiter]. While Valkey is away it tells what this replica alone knows.
func (s *Shared) Look(ctx context.Context, a Attempt) (Verdict, error) {
	local, _ := s.local.Look(ctx, s.share(a)) // never fails
	if s.config.Valkey == nil || s.away.Load() || a.Limit == authz.Unlimited {
		return local, nil
	}
	asking, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	v, err := s.config.Valkey.Look(asking, a)
	if err != nil {
		return local, nil
	}
	if s.forgot(a.Window) { // both must agree
		v.Admitted, v.Remaining = v.Admitted && local.Admitted, min(v.Remaining, local.Remaining)
		v.Used = max(v.Used, local.Used)
	}
	return v, nil
}

// share is the attempt with this replica's part of the limit.
func (s *Shared) share(a Attempt) Attempt {
	if n := s.config.Replicas(); n > 1 && a.Limit > 0 {
		a.Limit = max(1, a.Limit/authz.Limit(n))
	}
	return a
}

// ask asks Valkey, whether or not the caller leaves.
func (s *Shared) ask(ctx context.Context, a Attempt) (Verdict, error) {
	began := time.Now()
	v, err := s.config.Valkey.Admit(s.config.Timeout, *s.identity.Load(), a)
	s.metrics.asked(time.Since(began), err)
	if err != nil || !v.Admitted || v.Duplicate {
		return v, err
	}
	a.asked = true
	mine := v
	if s.forgot(a.Window) && a.Limit != authz.Unlimited {
		mine, _ = s.local.Admit(ctx, s.share(a)) // never fails
	} else if charge, again := s.local.count(a); again {
		mine.Duplicate, mine.Charge = true, charge
	}
	if !mine.Admitted || mine.Duplicate {
		_, _ = s.release(ctx, s.config.Timeout-time.Since(began), a.User, a.ID) // else it counts for a window, which is safe
	}
	mine.Remaining = min(mine.Remaining, v.Remaining)
	return mine, nil
}

// forgot reports whether Valkey may lack what was admitted in this window.
func (s *Shared) forgot(window time.Duration) bool {
	return s.local.clock()-time.Duration(s.since.Load()) < window
}

// lost goes on without Valkey until watch has seen that it answers.
func (s *Shared) lost(err error) {
	if said, ok := refusal(err); ok {
		s.refuse(said)
	}
	s.away.Store(true)
	select {
	case s.noticed <- err:
	default: // it knows
	}
}

// Release implements [Limiter].
func (s *Shared) Release(ctx context.Context, user, id string) (bool, error) {
	asked := s.local.asked(user, id)
	if asked && s.away.Load() {
		return false, errUnsure
	}
	if released, _ := s.local.Release(ctx, user, id); !released {
		return false, nil
	}
	if s.untold.remove(user, id); !asked {
		return true, nil
	}
	stands, err := s.release(ctx, s.config.Timeout, user, id)
	return err == nil && !stands, err
}

// release takes a request back in Valkey, whether or not the caller leaves.
func (s *Shared) release(ctx context.Context, timeout time.Duration, user, id string) (stands bool, err error) {
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return s.config.Valkey.Release(asking, user, id)
}

// Close ends the connections to Valkey.
func (s *Shared) Close() {
	if s.config.Valkey != nil {
		s.config.Valkey.Close()
	}
}

// Divided returns by how much limits are divided now: 1 where they hold over all replicas.
func (s *Shared) Divided() int {
	if s.config.Valkey != nil && !s.away.Load() && !s.forgot(time.Duration(s.longest.Load())) {
		return 1
	}
	return max(1, s.config.Replicas())
}

// How often Valkey is looked at: whether it is back, and whether it has forgotten.
const (
	awayInterval = 100 * time.Millisecond
	hereInterval = time.Second
	// logInterval is how long questions that are lost one by one are not logged again.
	logInterval = 10 * time.Second
	// toldAtOnce is how many requests Valkey is told of at a time that were admitted without it. It answers nobody else
	// for some 3 ms then.
	toldAtOnce = 250
	// tellTimeout bounds telling it of so many.
	tellTimeout = time.Second
)

// Run forgets idle users and looks after Valkey until ctx ends.
func (s *Shared) Run(ctx context.Context) {
	var running sync.WaitGroup
	if s.config.Valkey != nil {
		running.Go(func() { s.watch(ctx) })
	}
	s.local.Run(ctx)
	running.Wait()
}

// Connect looks at Valkey once before [Shared.Run], so that the first requests find it. It is no error
// that it is away: Run goes on looking.
func (s *Shared) Connect(ctx context.Context) {
	if s.config.Valkey != nil {
		s.look(ctx)
	}
}

// denial is what a Valkey has said that answers whoever looks after it, and refuses to count: for
// want of a right on some keys, or since somebody else keeps other things under their names. It is
// asked again when the pause is over, which grows each time, so that it does not come and go with
// each request.
type denial struct {
	said  string
	at    time.Time
	pause time.Duration
}

// The pauses after which a Valkey that refused to count is asked to again.
const (
	leastPause = 10 * time.Second
	mostPause  = 5 * time.Minute
)

// refuse notes a refusal. Those that were under way at the same time are one.
func (s *Shared) refuse(said string) {
	old, now := s.denied.Load(), time.Now()
	next := &denial{said, now, leastPause}
	if old != nil && now.Sub(old.at) < old.pause {
		return
	}
	if old != nil && now.Sub(old.at) < 3*old.pause {
		next.pause = min(2*old.pause, mostPause)
	}
	s.denied.CompareAndSwap(old, next)
}

// usable returns why Valkey cannot be counted with, although it answers.
func (s *Shared) usable(ctx context.Context) error {
	if r := s.denied.Load(); r != nil && time.Since(r.at) < r.pause {
		return refusedError{r.said}
	}
	return s.config.Valkey.probe(ctx)
}

// watch looks at Valkey again and again, and at once where a question has failed.
func (s *Shared) watch(ctx context.Context) {
	for ctx.Err() == nil {
		s.look(ctx)
		wait := hereInterval
		if s.away.Load() {
			wait = awayInterval
		}
		select {
		case <-time.After(wait):
		case err := <-s.noticed:
			// Limits are divided for a moment even if the next look finds all well. Where that happens again and
			// again, it is not logged each time.
			if time.Since(s.logged) > logInterval {
				s.silence(err)
			}
		case <-ctx.Done():
		}
	}
}

// silence notes that Valkey does not answer, and logs it once.
func (s *Shared) silence(err error) {
	if s.silent.IsZero() {
		s.silent = time.Now()
		s.logged = s.silent
		text := "Valkey does not answer: "
		if errors.As(err, new(refusedError)) {
			text = "Valkey answers, and cannot be used: "
		}
		s.config.Log.Error(text+s.consequence(), "replicas", s.config.Replicas(), "error", err)
	}
}

// look learns whether Valkey answers, and what it remembers. It is told what it does not know before it is
// asked again.
func (s *Shared) look(ctx context.Context) {
	s.untold.prune(s.local.clock())
	err := s.meet(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.away.Store(true)
		if said, ok := refusal(err); ok {
			err = refusedError{said}
		}
		s.silence(err)
	default:
		s.away.Store(false)
		if !s.silent.IsZero() {
			s.config.Log.Info("Valkey answers again", "away", time.Since(s.silent).Round(time.Millisecond).String())
			s.silent = time.Time{}
		}
	}
}

func (s *Shared) consequence() string {
	if s.config.Strict {
		return "requests with a rate limit are answered with 503 until it does"
	}
	return "each replica admits its share of every rate limit until it does"
}

// meet asks Valkey for its identity and tells it what was admitted without it.
func (s *Shared) meet(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, 2*s.config.Timeout)
	defer cancel()
	name, age, err := s.config.Valkey.Identity(asking)
	if err != nil {
		return err
	}
	if s.away.Load() {
		if err := s.usable(asking); err != nil {
			return err
		}
	}
	if old := s.identity.Load(); old == nil || *old != name {
		if policy, err := s.config.Valkey.evicts(asking); err == nil && policy != "" {
			s.config.Log.Warn(evictionWarning(policy))
		}
		s.since.Store(int64(s.local.clock() - age))
		s.identity.Store(&name)
		if old != nil {
			s.config.Log.Warn("Valkey has started anew and may have forgotten: each replica admits its share of every rate limit for one window")
		}
	}
	return s.tell(ctx)
}

// tell tells Valkey of all that was admitted without it, and then of what was admitted meanwhile. What was told is not
// told again, whatever becomes of the rest.
func (s *Shared) tell(ctx context.Context) error {
	for range 2 {
		for all := s.untold.take(); len(all) > 0; {
			some := few(all, toldAtOnce)
			if err := s.add(ctx, some); err != nil {
				s.untold.giveBack(all)
				s.untold.giveBack(some)
				return err
			}
		}
	}
	return nil
}

func (s *Shared) add(ctx context.Context, some map[string][]admission) error {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	return s.config.Valkey.Add(ctx, s.local.clock(), some)
}
