package events_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/keyporter/keyporter/events"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/outbox"
)

// clocked is a real outbox whose clock a test moves.
type clocked struct {
	db *store.DB
	by atomic.Int64
}

func (c *clocked) now() *outbox.Outbox {
	moved := *c.db
	storetest.SetClock(&moved, time.Duration(c.by.Load()))
	return outbox.New(&moved)
}

func (c *clocked) Acquire(ctx context.Context, holder string, life time.Duration) (int64, bool, error) {
	return c.now().Acquire(ctx, holder, life)
}
func (c *clocked) Release(ctx context.Context, fence int64) error { return c.now().Release(ctx, fence) }
func (c *clocked) SetEndpoints(ctx context.Context, fence int64, all []outbox.Endpoint) error {
	return c.now().SetEndpoints(ctx, fence, all)
}
func (c *clocked) Ready(ctx context.Context, endpoint string, n int) ([]outbox.Event, error) {
	return c.now().Ready(ctx, endpoint, n)
}
func (c *clocked) Record(ctx context.Context, fence int64, outcomes []outbox.Outcome) error {
	return c.now().Record(ctx, fence, outcomes)
}
func (c *clocked) AddRevokedUses(ctx context.Context, fence int64) error {
	return c.now().AddRevokedUses(ctx, fence)
}
func (c *clocked) Status(ctx context.Context) ([]outbox.Status, error) { return c.now().Status(ctx) }

// receiver is a receiver that fails in a way that a test chooses. It verifies what it takes.
type receiver struct {
	*testing.T
	url  string
	mode atomic.Value // up, failing, moved, hanging, reset, gone

	mu    sync.Mutex
	tries int
	taken map[string]int // webhook-id → how often
	order map[string][]taken
}

type taken struct {
	id         string
	number     int // of the event among those of its account
	outOfOrder bool
}

func newReceiver(t *testing.T, mode string) *receiver {
	r := &receiver{T: t, taken: map[string]int{}, order: map[string][]taken{}}
	r.mode.Store(mode)
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.tries++
	r.mu.Unlock()
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return
	}
	switch r.mode.Load() {
	case "failing":
		w.WriteHeader(http.StatusInternalServerError)
	case "moved":
		http.Redirect(w, q, "/elsewhere", http.StatusPermanentRedirect)
	case "hanging":
		<-q.Context().Done()
	case "reset":
		panic(http.ErrAbortHandler)
	case "gone":
		w.WriteHeader(http.StatusGone)
	default:
		r.take(q, body)
	}
}

func (r *receiver) take(q *http.Request, body []byte) {
	hook, err := standardwebhooks.NewWebhook(oldSecret)
	if err == nil {
		err = hook.Verify(body, q.Header)
	}
	var e events.Envelope
	var data struct{ Account, Plan string }
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err == nil {
		err = json.Unmarshal(e.Data, &data)
	}
	if err != nil || q.URL.Path != "/" {
		r.Errorf("%s %s: %v", q.URL.Path, body, err)
		return
	}
	number := 0
	fmt.Sscanf(data.Plan, "p%d", &number)
	r.mu.Lock()
	defer r.mu.Unlock()
	id := q.Header.Get("webhook-id")
	if r.taken[id]++; r.taken[id] == 1 {
		r.order[data.Account] = append(r.order[data.Account], taken{id, number, e.OutOfOrder})
	}
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.taken)
}

// check fails unless all events of all accounts arrived, and each that is not in order says so.
func (r *receiver) check(what string, accounts, rounds int) {
	r.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for a := range accounts {
		got := r.order[fmt.Sprint("a", a)]
		if len(got) != rounds {
			r.Errorf("%s: account a%d: %d events, want %d: %v", what, a, len(got), rounds, got)
			continue
		}
		for i, e := range got {
			if e.number != i+1 && !e.outOfOrder {
				r.Errorf("%s: account a%d: event %d is the %dth, and does not say so: %v", what, a, e.number, i+1, got)
			}
		}
	}
}

// Receivers fail, redirect, hang, break the connection and are away for an hour: no event is lost,
// none has two ids, each account's arrive in order or say that they do not, and a receiver that is
// up waits for none of the others. One that answers 410 gets nothing until a retry.
func TestReceiversThatFail(t *testing.T) {
	partstest.Slow(t)
	storetest.OnEach(t, func(t *testing.T, url string) {
		const accounts, rounds = 8, 6
		db := storetest.Open(t, store.Config{URL: url})
		f, c := storetest.SQL{T: t, DB: db.Changes}, &clocked{db: db}
		for i := range rounds + 1 {
			f.Exec(fmt.Sprintf(`INSERT INTO plans (name, api_access, rate_limit, rate_window, credits, pool) VALUES ('p%d', TRUE, 60, 60000, 20000, 'user')`, i))
		}
		for a := range accounts {
			f.Exec(fmt.Sprintf(`INSERT INTO accounts (name, kind, plan, status) VALUES ('a%d', 'person', 'p0', 'active')`, a))
		}
		receivers, all := map[string]*receiver{}, []events.Endpoint{}
		for _, name := range []string{"up", "failing", "moved", "hanging", "reset", "gone"} {
			receivers[name] = newReceiver(t, name)
			e := endpoint(t, name, receivers[name].url)
			e.Types = []string{"account.plan_changed"}
			all = append(all, e)
		}
		d := deliverer(t, c, t.Output(), "127.0.0.0/8")
		d.Wait(300 * time.Millisecond)
		d.Set(all)
		defer run(d)()
		eventually(t, "the endpoints are subscribed", func() bool { return storetest.RowsOf(t, db, "event_subscriptions") == len(all) })

		for i := range rounds {
			f.Exec(fmt.Sprintf(`UPDATE accounts SET plan = 'p%d'`, i+1))
			eventually(t, "the receiver that is up has all", func() bool { return receivers["up"].count() == accounts*(i+1) })
			c.by.Add(int64(11 * time.Minute)) // six rounds are an hour
			time.Sleep(200 * time.Millisecond)
		}
		receivers["up"].check("up", accounts, rounds)
		receivers["up"].mu.Lock()
		for id, n := range receivers["up"].taken {
			if n != 1 {
				t.Errorf("up: %s arrived %d times", id, n)
			}
		}
		receivers["up"].mu.Unlock()
		for _, name := range []string{"failing", "moved", "hanging", "reset"} {
			receivers[name].mode.Store("up")
		}
		eventually(t, "the others have all", func() bool {
			c.by.Add(int64(time.Minute))
			time.Sleep(100 * time.Millisecond)
			for _, name := range []string{"failing", "moved", "hanging", "reset"} {
				if receivers[name].count() < accounts*rounds {
					return false
				}
			}
			return true
		})
		for _, name := range []string{"failing", "moved", "hanging", "reset"} {
			receivers[name].check(name, accounts, rounds)
		}

		gone := receivers["gone"]
		gone.mu.Lock()
		if gone.tries > accounts {
			t.Errorf("an endpoint that answered 410 was tried %d times, want the %d that were under way", gone.tries, accounts)
		}
		gone.mu.Unlock()
		gone.mode.Store("up")
		if _, _, err := c.now().RetryEndpoint(t.Context(), "gone", ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the endpoint that was disabled has all", func() bool {
			c.by.Add(int64(time.Minute))
			return gone.count() == accounts*rounds
		})
		gone.check("gone", accounts, rounds)
	})
}
