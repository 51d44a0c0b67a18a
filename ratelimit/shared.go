package ratelimit

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/nowait"
	"github.com/keyporter/keyporter/usage"
)

// SharedConfig configures a [Shared]. The zero value is for a single replica.
type SharedConfig struct {
	// Valkey keeps the logs of all replicas; Close closes it. Nil: each replica admits its share of
	// each limit.
	Valkey *Valkey
	// Replicas returns the number of replicas that share a limit without Valkey, or while it is
	// unreachable. It must be quick. Nil: one.
	Replicas func() int
	// Strict returns an error instead of deciding while Valkey is unreachable. Users without a
	// limit are still admitted.
	Strict bool
	// Timeout bounds one question to Valkey, and separately the wait before it; [DefaultTimeout] if
	// 0. Both are part of the time for a Check.
	Timeout time.Duration

	Clock   func() time.Duration  // as in [NewMemory]
	Log     *slog.Logger          // nil: slog.Default()
	Metrics prometheus.Registerer // nil: none
}

// Shared is the log of one or several replicas. While its Valkey answers, it is exact. While Valkey
// does not answer, each replica decides by its own log and its share of the limit, max(1,
// ⌊limit / replicas⌋), and replays its admissions to Valkey afterwards.
//
// If Valkey returns without its memory, Valkey and the replica's share must both agree for one
// window. So no window ever has more than twice the limit, however often anything fails: at most
// the limit by a Valkey that remembers the whole window, and at most its share by each replica.
type Shared struct {
	config  SharedConfig
	local   *Memory // all admissions of this replica, whoever decided them
	backlog backlog
	metrics *metrics

	down      atomic.Bool            // Valkey does not answer, or has forgotten
	noticed   chan error             // wakes watch after down was set, with the reason
	identity  atomic.Pointer[string] // of Valkey's memory when last looked at
	since     atomic.Int64           // when that memory was empty, on the clock of local
	longest   atomic.Int64           // longest window seen
	downSince time.Time              // Valkey silent since then; zero: it answers; owned by watch
	denied    atomic.Pointer[denial] // the last one
	logged    time.Time              // time of the last log entry about it; owned by watch
}

// DefaultTimeout is the default maximum time of a question to Valkey.
const DefaultTimeout = 50 * time.Millisecond

// NewShared returns a Shared. It needs [Shared.Run].
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
	s.down.Store(c.Valkey != nil)
	var up func() bool
	if c.Valkey != nil {
		up = func() bool { return !s.down.Load() }
	}
	s.metrics = newMetrics(c.Metrics, s.Divided, up)
	return s
}

// Local returns the log of all admissions of this replica, whoever decided them.
func (s *Shared) Local() *Memory { return s.local }

// ErrDown is returned by a strict [Shared] while Valkey does not answer.
var ErrDown = errors.New("the shared rate log does not answer, and --rate-limit-strict is set")

// errUncertain says that Valkey may have admitted a repeated Check.
var errUncertain = errors.New("the shared rate log does not answer, so it cannot be told whether the request was repeated")

// Named reports whether charges are remembered by name: replicas do not know one another's numbers.
func (s *Shared) Named() bool { return s.config.Valkey != nil }

// Admit is [Memory.Admit] over all replicas. An error means that it could not decide, or that it
// would have to ask Valkey and ctx is of [nowait.Context].
func (s *Shared) Admit(ctx context.Context, a Attempt) (Verdict, error) {
	unlimited := a.Limit == usage.Unlimited
	if s.config.Valkey == nil || unlimited && a.Charge.Name == "" {
		return s.local.Admit(ctx, s.share(a))
	}
	if w := int64(a.Window); w > s.longest.Load() && !unlimited {
		s.longest.Store(w)
	}
	if a.ID == "" {
		a.ID = "-" + rand.Text() // no other request has this ID
	}
	if !s.down.Load() {
		if err := nowait.Err(ctx); err != nil {
			return Verdict{}, err
		}
		v, err := s.ask(ctx, a)
		if err == nil {
			return v, nil
		}
		s.markDown(err)
		a.asked = !errors.Is(err, errNotAsked) && !errors.Is(err, errNotConnected) && !errors.Is(err, errForgotten)
	}
	if s.config.Strict && !unlimited {
		return Verdict{}, ErrDown
	}
	v, err := s.local.Admit(ctx, s.share(a))
	if v.Admitted && !v.Duplicate && !unlimited {
		s.backlog.add(a, s.local.clock())
	}
	return v, err
}

// Peek returns what Admit would, without counting anything. While Valkey is unreachable it answers
// by this replica's log alone.
func (s *Shared) Peek(ctx context.Context, a Attempt) (Verdict, error) {
	local, _ := s.local.Peek(ctx, s.share(a)) // never fails
	if s.config.Valkey == nil || s.down.Load() || a.Limit == usage.Unlimited {
		return local, nil
	}
	asking, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	v, err := s.config.Valkey.Peek(asking, a)
	if err != nil {
		return local, nil
	}
	if s.partialHistory(a.Window) { // both must agree
		v.Admitted, v.Remaining = v.Admitted && local.Admitted, min(v.Remaining, local.Remaining)
		v.Used = max(v.Used, local.Used)
	}
	return v, nil
}

// share returns the attempt with this replica's share of the limit.
func (s *Shared) share(a Attempt) Attempt {
	if n := s.config.Replicas(); n > 1 && a.Limit > 0 {
		a.Limit = max(1, a.Limit/usage.Limit(n))
	}
	return a
}

// ask asks Valkey. It does not stop when ctx ends.
func (s *Shared) ask(ctx context.Context, a Attempt) (Verdict, error) {
	began := time.Now()
	v, err := s.config.Valkey.Admit(s.config.Timeout, *s.identity.Load(), a)
	s.metrics.asked(time.Since(began), err)
	if err != nil || !v.Admitted || v.Duplicate {
		return v, err
	}
	a.asked = true
	mine := v
	if s.partialHistory(a.Window) && a.Limit != usage.Unlimited {
		mine, _ = s.local.Admit(ctx, s.share(a)) // never fails
	} else if charge, again := s.local.count(a); again {
		mine.Duplicate, mine.Charge = true, charge
	}
	if !mine.Admitted || mine.Duplicate {
		// If the release fails, the request counts for a window, which is safe.
		_, _ = s.release(ctx, s.config.Timeout-time.Since(began), a.User, a.ID)
	}
	mine.Remaining = min(mine.Remaining, v.Remaining)
	return mine, nil
}

// partialHistory reports whether Valkey may lack requests admitted in this window.
func (s *Shared) partialHistory(window time.Duration) bool {
	return s.local.clock()-time.Duration(s.since.Load()) < window
}

// markDown goes on without Valkey until watch finds that it answers.
func (s *Shared) markDown(err error) {
	if said, ok := refusal(err); ok {
		s.refuse(said)
	}
	s.down.Store(true)
	select {
	case s.noticed <- err:
	default: // watch is already notified
	}
}

// Release is [Memory.Release] over all replicas.
func (s *Shared) Release(ctx context.Context, user, id string) (bool, error) {
	asked := s.local.asked(user, id)
	if asked && s.down.Load() {
		return false, errUncertain
	}
	if released, _ := s.local.Release(ctx, user, id); !released {
		return false, nil
	}
	if s.backlog.remove(user, id); !asked {
		return true, nil
	}
	stands, err := s.release(ctx, s.config.Timeout, user, id)
	return err == nil && !stands, err
}

// release takes a request back in Valkey. It does not stop when ctx ends.
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

// Divided returns the divisor of limits: 1 while they hold over all replicas.
func (s *Shared) Divided() int {
	if s.config.Valkey != nil && !s.down.Load() && !s.partialHistory(time.Duration(s.longest.Load())) {
		return 1
	}
	return max(1, s.config.Replicas())
}

// The intervals at which watch looks at Valkey while it is unreachable and while it answers.
const (
	downInterval = 100 * time.Millisecond
	upInterval   = time.Second
	// logInterval is the minimum time between two log entries about single lost questions.
	logInterval = 10 * time.Second
	// maxReplay is the maximum number of admissions in one replay to Valkey. It blocks Valkey for
	// some 3 ms.
	maxReplay = 250
	// replayTimeout bounds one such replay.
	replayTimeout = time.Second
)

// Run forgets idle users and watches Valkey until ctx ends.
func (s *Shared) Run(ctx context.Context) {
	var running sync.WaitGroup
	if s.config.Valkey != nil {
		running.Go(func() { s.watch(ctx) })
	}
	s.local.Run(ctx)
	running.Wait()
}

// Connect looks at Valkey once before [Shared.Run], so that the first requests find it. An
// unreachable Valkey is no error: Run keeps looking.
func (s *Shared) Connect(ctx context.Context) {
	if s.config.Valkey != nil {
		s.check(ctx)
	}
}

// denial is the refusal of a Valkey that answers the probe and yet refuses to count requests, for
// want of a right on some keys, or because others keep different data under these names. It is
// asked again after the pause, which grows each time, so that its state does not alternate with
// each request.
type denial struct {
	said  string
	at    time.Time
	pause time.Duration
}

// The bounds of a denial's pause.
const (
	minPause = 10 * time.Second
	maxPause = 5 * time.Minute
)

// refuse notes a refusal. Simultaneous refusals count as one.
func (s *Shared) refuse(said string) {
	old, now := s.denied.Load(), time.Now()
	next := &denial{said, now, minPause}
	if old != nil && now.Sub(old.at) < old.pause {
		return
	}
	if old != nil && now.Sub(old.at) < 3*old.pause {
		next.pause = min(2*old.pause, maxPause)
	}
	s.denied.CompareAndSwap(old, next)
}

// usable returns an error if Valkey answers but cannot count.
func (s *Shared) usable(ctx context.Context) error {
	if r := s.denied.Load(); r != nil && time.Since(r.at) < r.pause {
		return refusedError{r.said}
	}
	return s.config.Valkey.probe(ctx)
}

// watch looks at Valkey regularly, and at once after a failed question.
func (s *Shared) watch(ctx context.Context) {
	for ctx.Err() == nil {
		s.check(ctx)
		wait := upInterval
		if s.down.Load() {
			wait = downInterval
		}
		select {
		case <-time.After(wait):
		case err := <-s.noticed:
			// Limits are divided for a moment even if the next check finds all well. Repeated
			// failures are not logged each time.
			if time.Since(s.logged) > logInterval {
				s.noteDown(err)
			}
		case <-ctx.Done():
		}
	}
}

// noteDown notes that Valkey does not answer, and logs it once.
func (s *Shared) noteDown(err error) {
	if s.downSince.IsZero() {
		s.downSince = time.Now()
		s.logged = s.downSince
		text := "Valkey does not answer: "
		if errors.As(err, new(refusedError)) {
			text = "Valkey answers, and cannot be used: "
		}
		s.config.Log.Error(text+s.consequence(), "replicas", s.config.Replicas(), "error", err)
	}
}

// check finds out whether Valkey answers, and which memory it has. It replays the backlog before
// Valkey is asked again.
func (s *Shared) check(ctx context.Context) {
	s.backlog.prune(s.local.clock())
	err := s.resync(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.down.Store(true)
		if said, ok := refusal(err); ok {
			err = refusedError{said}
		}
		s.noteDown(err)
	default:
		s.down.Store(false)
		if !s.downSince.IsZero() {
			s.config.Log.Info("Valkey answers again", "away", time.Since(s.downSince).Round(time.Millisecond).String())
			s.downSince = time.Time{}
		}
	}
}

func (s *Shared) consequence() string {
	if s.config.Strict {
		return "requests with a rate limit are answered with 503 until it does"
	}
	return "each replica admits its share of every rate limit until it does"
}

// resync asks Valkey for its identity and replays the backlog.
func (s *Shared) resync(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, 2*s.config.Timeout)
	defer cancel()
	name, age, err := s.config.Valkey.Identity(asking)
	if err != nil {
		return err
	}
	if s.down.Load() {
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
	return s.replay(ctx)
}

// replay replays the backlog to Valkey, and then the admissions made meanwhile. Replayed admissions
// stay out of the backlog, even if the rest fails.
func (s *Shared) replay(ctx context.Context) error {
	for range 2 {
		for all := s.backlog.take(); len(all) > 0; {
			some := takeN(all, maxReplay)
			if err := s.add(ctx, some); err != nil {
				s.backlog.requeue(all)
				s.backlog.requeue(some)
				return err
			}
		}
	}
	return nil
}

func (s *Shared) add(ctx context.Context, some map[string][]admission) error {
	ctx, cancel := context.WithTimeout(ctx, replayTimeout)
	defer cancel()
	return s.config.Valkey.Add(ctx, s.local.clock(), some)
}
