package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// When `key regenerate` returns, no replica admits the old key any more, and all admit the new one.
// Many users regenerate concurrently, in processes of their own, while both replicas are asked for
// the old key all the time, so that it is always cached.
func TestARegeneratedKeyIsDeadWhenTheCommandReturns(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			replicas := 2
			if name == "SQLite" {
				replicas = 1
			}
			s := start(t, stackConfig{database: database(t), replicas: replicas, noEnvoy: true, flags: patient})
			var asked, cached atomic.Int64
			var wg sync.WaitGroup
			s.run("plan", "set", "pro", "--rate-limit", "unlimited")
			s.run("account", "set", "acme", "--plan", "pro")
			users, rounds := either(10, 30), either(5, 10)
			for i := range users {
				wg.Go(func() {
					r := &revoker{t: t, s: s, user: fmt.Sprintf("user%d", i), asked: &asked, cached: &cached}
					for _, replica := range s.replicas {
						r.checkers = append(r.checkers, newChecker(t, replica))
					}
					r.run(rounds)
				})
			}
			wg.Wait()
			t.Logf("%d regenerations, %d requests with an old key after the command returned, 0 allowed; %d while it ran were still allowed",
				users*rounds, asked.Load(), cached.Load())
			if cached.Load() == 0 {
				t.Error("the old key was never admitted while a command ran, so nothing was cached and the test proves nothing")
			}
		})
	}
}

// revoker regenerates the key of one user repeatedly.
type revoker struct {
	t             *testing.T
	s             *stack
	user          string
	checkers      []*checker // one per replica
	asked, cached *atomic.Int64
}

func (r *revoker) run(rounds int) {
	if _, problems, status := r.s.try("user", "set", r.user, "--account", "acme"); status != 0 {
		r.t.Error(problems)
		return
	}
	key := r.s.key("create", r.user)
	for range rounds {
		old := key
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			r.keepCached(old, stop)
		}()
		key = r.s.key("regenerate", r.user)
		r.mustBeDead(old)
		close(stop)
		<-stopped
		r.mustBeDead(old)
		r.mustWork(key)
	}
}

// keepCached asks all replicas for a key until stop is closed.
func (r *revoker) keepCached(key string, stop <-chan struct{}) {
	for {
		for _, c := range r.checkers {
			if status, err := c.key(key); err == nil && status == 200 {
				r.cached.Add(1)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}
}

func (r *revoker) mustBeDead(key string) {
	for range 10 {
		for i, c := range r.checkers {
			r.asked.Add(1)
			if status, err := c.key(key); err != nil || status != 401 && status != 503 {
				r.t.Errorf("%s: replica %d answers %d, %v to the old key, want 401", r.user, i, status, err)
			}
		}
	}
}

// mustWork asks for a key that no replica has cached. On a busy machine the look-up may exceed the
// time for a decision, which is a 503; a 401 would be wrong.
func (r *revoker) mustWork(key string) {
	for i, c := range r.checkers {
		partstest.EventuallyNil(r.t, "the new key is read", func() error {
			status, err := c.key(key)
			if status == 503 {
				return errors.New("503")
			}
			if err != nil || status != 200 {
				r.t.Errorf("%s: replica %d answers %d, %v to the new key, want 200", r.user, i, status, err)
			}
			return nil
		})
	}
}

// All other commands that take something away also do so before they return.
func TestWhatIsTakenAwayIsGoneWhenTheCommandReturns(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			s := start(t, stackConfig{database: database(t), replicas: 2, noEnvoy: true, flags: patient})
			s.run("plan", "set", "free", "--api-access=false")
			var wg sync.WaitGroup
			for i, row := range takings {
				wg.Go(func() { row.hold(t, s, fmt.Sprintf("u%d", i)) })
			}
			wg.Wait()
		})
	}
}

// taking is a command that takes something away; {} stands for the name of the row's user, account
// and plan.
type taking struct {
	command string
	session bool   // the command ends the user's session, not the key
	want    int    // expected status afterwards
	undo    string // command that undoes it
}

var takings = []taking{
	{"plan set {} --api-access=false", false, 403, "plan set {} --api-access=true"},
	{"account set {} --plan free", false, 403, "account set {} --plan {}"},
	{"account set {} --status suspended", false, 403, "account set {} --status active"},
	{"account set {} --status cancelled", false, 403, ""},
	{"user set {} --status disabled", false, 403, "user set {} --status active"},
	{"user set {} --status disabled", true, 401, "user set {} --status active"},
	{"key revoke {}", false, 401, ""},
	{"user delete {}", false, 401, ""},
	{"user delete {}", true, 401, ""},
	{"session revoke {}", true, 401, ""},
}

func (row taking) hold(t *testing.T, s *stack, user string) {
	var checkers []*checker
	for _, replica := range s.replicas {
		checkers = append(checkers, newChecker(t, replica))
	}
	key, cookie := s.user(user, user), s.session(user)
	expectFrom := func(c *checker, when string, want int) {
		partstest.EventuallyNil(t, row.command, func() error {
			status, err := c.key(key)
			if row.session {
				status, err = c.status("/api/other", "cookie", cookie)
			}
			if status == 503 {
				return errors.New("503") // on a busy machine
			}
			if err != nil || status != want {
				t.Errorf("%s: %s: %d, %v, want %d", row.command, when, status, err, want)
			}
			return nil
		})
	}
	expect := func(when string, want int) {
		for _, c := range checkers {
			expectFrom(c, when, want)
		}
	}
	run := func(command string) {
		s.run(strings.Fields(strings.ReplaceAll(command, "{}", user))...)
	}
	expect("before", 200) // caches the key from here on
	run(row.command)
	expect("after", row.want)
	if row.undo != "" {
		run(row.undo)
		expect("given back", 200)
	}
}
