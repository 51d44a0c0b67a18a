package lease_test

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store/cache"
	"github.com/keyporter/keyporter/store/lease"
)

// dice gives an actor its own random numbers. They depend neither on other actors nor on the order
// in which runnable goroutines are scheduled.
type dice uint64

// of returns dice for a part of the actor's work.
func (d dice) of(parts ...int64) dice {
	for _, p := range parts {
		d = dice(mix(uint64(d) ^ mix(uint64(p))))
	}
	return d
}

// now returns the numbers of this moment.
func (d dice) now() *rand.Rand {
	return rand.New(rand.NewPCG(uint64(d), mix(uint64(time.Now().UnixNano()))))
}

// mix is splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// upTo draws a duration, to the nanosecond.
func upTo(r *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(most)))
}

// about draws a duration with the given mean.
func about(r *rand.Rand, mean time.Duration) time.Duration {
	return time.Duration(r.ExpFloat64() * float64(mean))
}

// latency draws the travel time of a message.
func (f faults) latency(r *rand.Rand) time.Duration {
	d := 200*time.Microsecond + about(r, time.Millisecond)
	switch x := r.Float64(); {
	case x < f.spikes/5:
		d += upTo(r, time.Second)
	case x < f.spikes:
		d += upTo(r, 150*time.Millisecond)
	}
	return d
}

// link is the network between a host and the database. A message is lost if its direction is cut
// when it is sent or when it arrives.
type link struct {
	mu           sync.Mutex
	there, back  time.Time // cut until then
	leases, read time.Time // a failover goes unnoticed until then, by renewals and by look-ups
}

// cut cuts the link, in one direction or both.
func (l *link) cut(r *rand.Rand, longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	until := time.Now().Add(upTo(r, longest))
	which := r.IntN(3)
	if which != 0 {
		l.there = until
	}
	if which != 1 {
		l.back = until
	}
}

func (l *link) open(direction *time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !time.Now().Before(*direction)
}

// process is a running replica: the product's lease and cache, on a host.
type process struct {
	world *world
	link  *link
	dice  dice
	rate  float64 // of its clock
	lease *lease.Lease
	cache *cache.Cache[apikey.Digest, answer]
	ctx   context.Context // ends with a crash
	crash context.CancelFunc
	gone  sync.WaitGroup

	mu     sync.Mutex
	paused time.Time // until then
}

func (w *world) start(host int, l *link, number int64) (p *process, leave func()) {
	d := w.dice.of(actorProcess, int64(host), number)
	p = &process{world: w, link: l, dice: d, rate: 1 + drift*(2*d.now().Float64()-1)}
	p.ctx, p.crash = context.WithCancel(w.ctx)
	quiet := slog.New(slog.DiscardHandler)
	p.lease = lease.New(lease.Config{Registry: registry{p}, Life: life, Clock: p.clock, Log: quiet})
	p.cache = cache.New(cache.Config[apikey.Digest, answer]{
		Find: p.find, Lease: p.lease, Size: 1000, NegativeSize: 1000, Fills: 1000,
		Negative: func(err error) bool { return errors.Is(err, errUnknown) || errors.Is(err, errRevoked) },
	})
	ctx, leave := context.WithCancel(p.ctx)
	p.gone.Go(func() { p.lease.Run(ctx) })
	return p, leave
}

func (p *process) pause(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = time.Now().Add(d)
}

// gate stops goroutines while the process is paused, and lets them continue one by one. It stands
// at every input and output: messages, and readings of the clock.
func (p *process) gate() {
	for {
		p.mu.Lock()
		rest := time.Until(p.paused)
		p.mu.Unlock()
		if rest <= 0 || p.ctx.Err() != nil {
			return
		}
		time.Sleep(rest + upTo(p.dice.of(actorGate).now(), 100*time.Microsecond))
	}
}

// clock is the clock of the host. Now and then a goroutine is preempted just before or just after
// it reads the clock.
func (p *process) clock() time.Duration {
	p.gate()
	read := func() time.Duration { return time.Duration(p.rate * float64(time.Since(p.world.began))) }
	seen := read()
	roll := mix(uint64(p.dice.of(actorClock, time.Now().UnixNano())))
	if float64(roll%1024) >= 1024*p.world.faults.preempted {
		return seen
	}
	longest := uint64(100 * time.Millisecond)
	if roll>>10%4 == 0 {
		longest = uint64(time.Second)
	}
	time.Sleep(time.Duration(mix(roll) % longest))
	p.gate()
	if roll>>12%2 == 0 {
		return seen
	}
	return read()
}

// errLost is the error of a lost message, after a while.
var errLost = errors.New("no reply")

type reply[T any] struct {
	value T
	err   error
}

// call sends a request to the database and waits for the reply. A request that arrives is served,
// even if the caller no longer waits. Sometimes the network breaks just after a call of the lease.
func call[T any](ctx context.Context, p *process, kind int64, patience time.Duration, serve func(r *rand.Rand) (T, error)) (none T, _ error) {
	p.gate()
	r := p.dice.of(kind).now()
	f := p.world.faults
	there, back := f.latency(r), f.latency(r)
	sent := p.link.open(&p.link.there)
	replied := make(chan reply[T], 1)
	p.world.all.Go(func() {
		time.Sleep(there)
		if !sent || !p.link.open(&p.link.there) {
			return
		}
		value, err := serve(r)
		sent := p.link.open(&p.link.back)
		unlucky := kind < actorFind && r.Float64() < f.unlucky
		if unlucky {
			p.link.cut(r, 3*life)
			back += upTo(r, patience)
		}
		time.Sleep(back)
		if sent && (p.link.open(&p.link.back) || unlucky && r.IntN(2) == 0) {
			replied <- reply[T]{value, err}
		}
	})
	late := time.NewTimer(patience)
	defer late.Stop()
	defer p.gate()
	select {
	case got := <-replied:
		return got.value, got.err
	case <-late.C:
		return none, errLost
	case <-ctx.Done():
		return none, ctx.Err()
	case <-p.ctx.Done():
		return none, p.ctx.Err()
	}
}

// registry is the lease.Registry of a process, with the timeout of the one in package store.
type registry struct{ *process }

const silence = life / 2

// stuck is the fate of a write to an old primary: it is never committed.
func (r registry) stuck() error {
	if r.link.open(&r.link.leases) {
		return nil
	}
	time.Sleep(silence)
	return errLost
}

func (r registry) Register(ctx context.Context) (string, error) {
	return call(ctx, r.process, actorRegister, silence, func(*rand.Rand) (string, error) {
		if err := r.stuck(); err != nil {
			return "", err
		}
		return r.world.db.register(), nil
	})
}

func (r registry) Renew(ctx context.Context, id string, at lease.Position) (lease.Updates, error) {
	return call(ctx, r.process, actorRenew, silence, func(d *rand.Rand) (lease.Updates, error) {
		if err := r.stuck(); err != nil {
			return lease.Updates{}, err
		}
		updates := r.world.db.updates(at)
		time.Sleep(about(d, time.Millisecond)) // a row lock, or the disk
		return updates, r.world.db.seen(id, at)
	})
}

func (r registry) Updates(ctx context.Context, at lease.Position) (lease.Updates, error) {
	return call(ctx, r.process, actorNews, silence, func(*rand.Rand) (lease.Updates, error) {
		if !r.link.open(&r.link.leases) {
			return lease.Updates{}, errLost // the old primary knows less, and its answer changes nothing
		}
		return r.world.db.updates(at), nil
	})
}

func (r registry) Ack(ctx context.Context, id string, at lease.Position, durably bool) error {
	_, err := call(ctx, r.process, actorAck, silence, func(d *rand.Rand) (none struct{}, _ error) {
		if err := r.stuck(); err != nil {
			return none, err
		}
		if d.Float64() < r.world.faults.busy {
			return none, errLost
		}
		err := r.world.db.ack(id, at, durably)
		if d.Float64() < r.world.faults.crashes {
			r.world.db.crash()
			r.world.all.Go(func() {
				time.Sleep(20 * time.Millisecond) // the reply arrives before that
				r.link.cut(d, 3*life)
			})
		}
		return none, err
	})
	return err
}

func (r registry) Leave(ctx context.Context, id string) error {
	_, err := call(ctx, r.process, actorLeave, silence, func(*rand.Rand) (none struct{}, _ error) {
		if err := r.stuck(); err != nil {
			return none, err
		}
		r.world.db.leave(id)
		return none, nil
	})
	return err
}

// find is the look-up of the cache.
func (p *process) find(ctx context.Context, d apikey.Digest) (cache.Found[answer], error) {
	k := keyOf(d)
	which := int64(k.user+1)<<32 | int64(k.generation+2)<<8 | actorFind // higher than any other
	return call(ctx, p, which, time.Minute, func(*rand.Rand) (cache.Found[answer], error) {
		return p.world.db.find(k, !p.link.open(&p.link.read))
	})
}
