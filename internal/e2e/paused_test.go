package e2e_test

import (
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// A replica that was paused during a regeneration, as a virtual machine may be, does not admit the
// old key when it continues, whether it is asked afterwards or was asked during the pause.
func TestAStoppedReplicaDoesNotGoOnWithAnOldKey(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	pauses := []time.Duration{
		100 * time.Millisecond, shortLease / 2, shortLease - 20*time.Millisecond, shortLease, shortLease + 20*time.Millisecond,
		2 * shortLease, time.Second, 2 * time.Second,
	}
	if long {
		pauses = append(pauses, pauses...)
		pauses = append(pauses, time.Minute)
	}
	c := startCampaign(t, keyporter(t), partstest.Postgres(t, 18), partstest.Database(t, 18), 1, shortLease)
	stopped, checker := c.s.replicas[1], c.checkers[0]
	var atStop, inSocket, after, live answers
	users := c.enrol(len(pauses))
	for i, pause := range pauses {
		u := users[i]
		first, ok := u.regenerate(false)
		if !ok {
			t.Fatal("no key")
		}
		partstest.Eventually(t, "the key is cached", func() bool {
			live.add(checker.key(first))
			return live.n[allowed].Load() > int64(i)
		})
		var asked sync.WaitGroup
		ask := func(into *answers) {
			for range 50 {
				asked.Go(func() { into.add(checker.key(first)) })
			}
		}
		ask(&atStop) // some are in flight at the pause: admitted before the return
		stopped.process.Pause()
		began := time.Now()
		returned := make(chan time.Duration, 1)
		go func() {
			if _, ok := u.regenerate(false); ok {
				ask(&inSocket)
			}
			returned <- time.Since(began)
		}()
		time.Sleep(pause)
		stopped.process.Resume()
		t.Logf("stopped for %v: regenerating took %v", pause, (<-returned).Round(time.Millisecond))
		for range 10 {
			ask(&after)
			time.Sleep(shortLease / 10)
		}
		asked.Wait()
	}
	t.Logf("%d stops; live keys: %v; asked when it was stopped: %v; asked after the return: %v; asked later: %v",
		len(pauses), &live, &atStop, &inSocket, &after)
	if n := inSocket.n[allowed].Load() + after.n[allowed].Load(); n > 0 {
		t.Errorf("%d old keys admitted, want none", n)
	}
	if n := inSocket.n[other].Load() + after.n[other].Load(); n > 0 {
		t.Errorf("%d requests not answered, want none", n)
	}
	if live.n[allowed].Load() < int64(len(pauses)) || inSocket.total() == 0 {
		t.Error("keys were not cached, or nobody asked, so the test proves nothing")
	}
	justReady(t, stopped)
}

// justReady waits until a replica's /readyz reports no problem: on a busy machine its lease may be
// lost for a moment.
func justReady(t testing.TB, r *replica) {
	t.Helper()
	partstest.EventuallyNil(t, "/readyz says nothing but ready", func() error {
		if text := readyz(t, r); text != "ready\n" {
			return errors.New(text)
		}
		return nil
	})
}

// readyz returns the text of a replica's /readyz. The replica must be ready.
func readyz(t testing.TB, r *replica) string {
	t.Helper()
	status, body, err := get("http://" + r.ops + "/readyz")
	if err != nil || status != http.StatusOK {
		t.Errorf("/readyz: %d, %v, want 200", status, err)
	}
	return body
}

func get(url string) (status int, body string, err error) {
	response, err := pages.Get(url)
	if err != nil {
		return 0, "", err
	}
	return read(response)
}
