package jwt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// ErrClosed is returned after [Verifier.Close] for a token whose keys would have to be read.
var ErrClosed = errors.New("no keys are read any more")

// rhythm sets when keys are read. The first token after age triggers a read, and watch is the
// interval of reads without tokens, so that failures are logged. An unknown key triggers a read
// too, but at most one per pause, so that forged key IDs cause no flood of requests.
type rhythm struct{ age, pause, watch time.Duration }

var (
	ofURL  = rhythm{age: 5 * time.Minute, pause: 30 * time.Second, watch: 5 * time.Minute}
	ofFile = rhythm{age: time.Second, pause: time.Second, watch: 10 * time.Second}
)

// keySet is a set of public keys that is maintained elsewhere.
type keySet struct {
	source string
	fetch  func(context.Context) ([]jose.JSONWebKey, error)
	rhythm
	maxAge time.Duration // limit of the trust in keys that cannot be read again; 0: none
	log    *slog.Logger

	ctx     context.Context // of all reads; ended by close
	end     func()
	running sync.WaitGroup // the pending reads

	mu      sync.Mutex
	keys    []jose.JSONWebKey // guarded by mu; kept while the source cannot be read
	read    time.Time         // last successful read, or creation of the set; guarded by mu
	known   bool              // the keys were read at least once; guarded by mu
	tried   time.Time         // last attempt; guarded by mu
	failed  error             // of the last attempt; guarded by mu
	stale   bool              // the log has the error that the keys are too old; guarded by mu
	reading *reading          // guarded by mu; nil: no read is pending
}

// reading is one attempt to read the keys. Several callers may wait for it.
type reading struct {
	done chan struct{}
	err  error // valid after done is closed
}

func newKeySet(c Config) *keySet {
	k := &keySet{source: c.Keys, rhythm: ofFile, maxAge: c.MaxAge, log: c.Log, read: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	k.ctx, k.end = ctx, cancel
	transport := newTransport() // its own, so that close can close its connections
	fetch := fetcher(c.Keys, transport)
	k.fetch = func(ctx context.Context) ([]jose.JSONWebKey, error) { return c.readKeys(ctx, fetch) }
	if !isURL(c.Keys) {
		return k
	}
	k.end = func() { cancel(); transport.CloseIdleConnections() }
	if k.rhythm = ofURL; k.maxAge > 0 { // in time for two attempts
		k.age, k.watch = min(k.age, k.maxAge/2), min(k.watch, k.maxAge/2)
	}
	return k
}

// run reads the keys periodically until ctx ends.
func (k *keySet) run(ctx context.Context) {
	for {
		wait := k.watch
		if k.refresh(ctx) != nil {
			wait = min(wait, k.pause)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (k *keySet) close() {
	k.mu.Lock()
	k.end() // under the lock, so that no read begins afterwards
	k.mu.Unlock()
	k.running.Wait()
	k.end() // closes connections that were in use before
}

func (k *keySet) ageNow() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Since(k.read)
}

// match holds the keys that may have signed a token. The field named reports whether a key has the
// token's key ID.
type match struct {
	found []jose.JSONWebKey
	named bool
	read  time.Time // when the keys were read
}

// find returns the keys that may have signed a token. An unknown key gives [ErrInvalid]. Any other
// error means that the keys could not be read.
func (k *keySet) find(ctx context.Context, id, algorithm string) (match, error) {
	m, due, err := k.look(id, algorithm)
	switch {
	case due && len(m.found) == 0:
		if err := k.refresh(ctx); err != nil {
			return match{}, err
		}
		m, _, err = k.look(id, algorithm)
	case due:
		k.begin() // the old keys are used meanwhile
	}
	if len(m.found) == 0 {
		return match{}, err
	}
	return m, nil
}

// readAgain reads the keys again for a token that none of the old ones has signed. It returns no
// keys if it is too early to read again, and an error if the keys cannot be read.
func (k *keySet) readAgain(ctx context.Context, old match, id, algorithm string) (match, error) {
	k.mu.Lock()
	newer := k.read.After(old.read)
	early, failed := k.reading == nil && time.Since(k.tried) < k.pause, k.failed
	k.mu.Unlock()
	if early && !newer {
		return match{}, failed
	}
	if !newer {
		if err := k.refresh(ctx); err != nil {
			return match{}, err
		}
	}
	m, _, _ := k.look(id, algorithm)
	return m, nil
}

// firstPause is the pause until the first successful read, because nobody can log in before that.
const firstPause = time.Second

// look returns the known keys for a key ID, and reports whether a read is due: because the known
// keys have reached their age, or because none matches. The error applies if none matches.
func (k *keySet) look(id, algorithm string) (m match, due bool, _ error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, pause := time.Now(), k.pause
	if !k.known {
		pause = min(pause, firstPause)
	}
	old := k.tooOld(now)
	if !old {
		m = k.match(id, algorithm)
	}
	due = now.Sub(k.tried) >= pause && (len(m.found) == 0 || now.Sub(k.read) >= k.age)
	switch {
	case k.failed != nil:
		return m, due, k.failed // the key may be in the set that could not be read
	case old:
		return m, due, errTooOld
	}
	return m, due, refuse(UnknownKey, "its header kid names no key that is known and fits")
}

var errTooOld = errors.New("the keys of tokens are older than they may be, and could not be read again")

// tooOld reports whether the keys have exceeded their maximum age. The caller holds mu.
func (k *keySet) tooOld(now time.Time) bool { return k.maxAge > 0 && now.Sub(k.read) > k.maxAge }

// match returns the keys with a token's key ID; if no key has it, the keys without an ID; for a
// token without an ID, all keys. Keys that do not fit the algorithm are left out. The caller holds
// mu.
func (k *keySet) match(id, algorithm string) match {
	m := match{read: k.read}
	for _, key := range k.keys {
		m.named = m.named || id != "" && key.KeyID == id
	}
	for _, key := range k.keys {
		meant := key.KeyID == id || !m.named && (id == "" || key.KeyID == "")
		if meant && fits(&key, algorithm) {
			m.found = append(m.found, key)
		}
	}
	return m
}

// refresh reads the keys again, once for all concurrent callers. If it fails, the known keys stay.
func (k *keySet) refresh(ctx context.Context) error {
	r := k.begin()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the keys of tokens: %w", ctx.Err())
	}
}

// begin starts a read of the keys, or returns the pending one.
func (k *keySet) begin() *reading {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.reading
	switch {
	case r != nil:
	case k.ctx.Err() != nil:
		r = &reading{done: make(chan struct{}), err: ErrClosed}
		close(r.done)
	default:
		r = &reading{done: make(chan struct{})}
		k.reading, k.tried = r, time.Now()
		k.running.Go(func() { k.load(r) })
	}
	return r
}

func (k *keySet) load(r *reading) {
	ctx, cancel := context.WithTimeout(k.ctx, fetchTimeout)
	defer cancel()
	keys, err := k.fetch(ctx)
	if err != nil {
		r.err = fmt.Errorf("reading the keys of tokens: %w", err)
	}
	if said := k.keep(keys, r.err); k.ctx.Err() == nil {
		said.log(k.log)
	}
	close(r.done)
}

// keep stores the keys if err is nil, and returns the notice to log.
func (k *keySet) keep(keys []jose.JSONWebKey, err error) notice {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.keys, k.read, k.known = keys, time.Now(), true
	}
	said := k.report(err)
	k.reading, k.failed = nil, err
	return said
}

// notice is a line for the log; an empty text means none. It is written without the lock.
type notice struct {
	level slog.Level
	text  string
	attrs []any
}

func (n notice) log(log *slog.Logger) {
	if n.text != "" {
		log.Log(context.Background(), n.level, n.text, n.attrs...)
	}
}

// report returns a notice if the keys become unreadable, become too old, or can be read again; each
// is logged once. The caller holds mu.
func (k *keySet) report(err error) notice {
	age := time.Since(k.read).Round(time.Second).String() // JSON would have nanoseconds
	attrs := []any{"keys", k.source, "age", age, "error", err}
	switch {
	case err == nil && k.failed != nil:
		k.stale = false
		return notice{slog.LevelInfo, "the keys of tokens can be read again", attrs[:2]}
	case err != nil && k.tooOld(time.Now()) && !k.stale:
		k.stale = true
		return notice{slog.LevelError, "the keys of tokens are older than --jwt-keys-max-age permits: who logs in with a token is answered with 503", attrs}
	case err != nil && k.failed == nil && k.known:
		return notice{slog.LevelWarn, "the keys of tokens cannot be read; those that are known stay in force", attrs}
	case err != nil && k.failed == nil && isURL(k.source): // New has already read a file, or failed
		return notice{slog.LevelWarn, "the keys of tokens cannot be read: nobody can log in with a token", attrs}
	}
	return notice{}
}
