package e2e_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// Duration of a regeneration compared with a bare commit and its notification, on the same server
// at the same time. The test only logs it, because times depend on the machine.
func TestHowLongARegenerationTakes(t *testing.T) {
	if !long {
		t.Skip("compares nothing: run `make revocation` for the times")
	}
	const lease = 3 * time.Second
	server := partstest.StartPostgres(t, parts.PostgresConfig{Durable: true})
	for _, replicas := range []int{1, 3, 10} {
		name := fmt.Sprint("keys", replicas)
		if err := server.CreateDatabase(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		s := start(t, stackConfig{database: server.URL(name), noEnvoy: true, replicas: replicas, flags: []string{"--lease", lease.String(), "--log-level", "warn"}})
		s.user("ann", "pro")
		cookie := s.session("ann")
		bare := startBare(t, s.database)
		var whole, confirming, commits times
		for range 500 {
			commits = append(commits, bare.commit())
			before := s.barriers()
			began := time.Now()
			made := regenerated(t, s.replicas[0].page, cookie)
			whole = append(whole, time.Since(began))
			confirming = append(confirming, time.Duration((s.barriers()-before)*float64(time.Second)))
			if made.Replicas.Acknowledged != replicas {
				t.Logf("%d replicas: %+v", replicas, made)
			}
		}
		t.Logf("%2d replicas: regenerate %v, the confirmation in it %v; commit and notification %v; ratio of the p50 %.1f, of the p99 %.1f (goal for 1 and 3 replicas: p50 3)",
			replicas, whole, confirming, commits, ratio(whole, commits, 50), ratio(whole, commits, 99))
		for _, r := range s.replicas {
			r.process.Stop()
		}
	}
}

// A regeneration returns once the leases of all unreachable replicas have ended, regardless of
// their number. The test only logs the duration: the tests of package lease check the bound.
func TestReplicasThatAreCutOffDelayARegenerationByALease(t *testing.T) {
	partstest.Slow(t)
	lease := either(time.Second, 3*time.Second)
	c := startCampaign(t, keyporter(t), partstest.Postgres(t, 18), partstest.Database(t, 18), 3, lease)
	c.s.user("ann", "pro")
	cookie := c.s.session("ann")
	for cut := 1; cut <= len(c.links); cut++ {
		for _, l := range c.links[:cut] {
			l.cut()
		}
		began := time.Now()
		made := regenerated(t, c.page, cookie)
		took := time.Since(began)
		t.Logf("lease %v, %d of %d replicas cut off: %v (goal %v), %+v", lease, cut, len(c.links)+1, took.Round(time.Millisecond), lease*105/100, made)
		// On a busy machine, other replicas may have renewed their leases too late.
		if r := made.Replicas; r.Expired < cut || r.Acknowledged+r.Expired != len(c.links)+1 {
			t.Errorf("%d cut off: %+v", cut, made)
		}
		for _, l := range c.links {
			l.heal()
			l.Break()
		}
		partstest.EventuallyNil(t, "all replicas are back", func() error {
			if made := regenerated(t, c.page, cookie); made.Replicas.Acknowledged != len(c.links)+1 {
				return fmt.Errorf("%+v", made)
			}
			return nil
		})
	}
}

// answered is the page's answer to a regeneration, without the key.
type answered struct {
	Confirmed bool
	Replicas  struct{ Total, Acknowledged, Expired int }
	TookMS    int64 `json:"took_ms"`
}

func regenerated(t testing.TB, page, cookie string) (made answered) {
	t.Helper()
	status, body, err := postRegenerate(page, cookie)
	if err == nil {
		err = json.Unmarshal([]byte(body), &made)
	}
	if err != nil || status != http.StatusOK || !made.Confirmed {
		t.Fatalf("regenerating: %d, %v", status, err)
	}
	return made
}

// barriers returns the total time, in seconds, that changes of the first replica have waited for
// confirmation.
func (s *stack) barriers() (sum float64) {
	_, metrics, err := get("http://" + s.replicas[0].ops + "/metrics")
	_, rest, ok := strings.Cut(metrics, "\nkeyporter_barrier_seconds_sum ")
	if err == nil {
		_, err = fmt.Sscan(rest, &sum)
	}
	if err != nil || !ok {
		s.t.Fatal("no keyporter_barrier_seconds: ", err)
	}
	return sum
}

// bare changes a row and waits for the notification.
type bare struct {
	t        testing.TB
	db       *sql.DB
	listener *pq.Listener
}

func startBare(t testing.TB, database string) *bare {
	t.Helper()
	db, err := sql.Open("postgres", database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Exec(`CREATE TABLE bare (v BIGINT NOT NULL); INSERT INTO bare VALUES (0)`); err != nil {
		t.Fatal(err)
	}
	b := &bare{t, db, pq.NewListener(database, time.Second, time.Second, nil)}
	t.Cleanup(func() { b.listener.Close() })
	if err := b.listener.Listen("bare"); err != nil {
		t.Fatal(err)
	}
	return b
}

// commit returns the time from a change to its notification.
func (b *bare) commit() time.Duration {
	began := time.Now()
	tx, err := b.db.Begin()
	if err != nil {
		b.t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err = tx.Exec(`UPDATE bare SET v = v + 1`); err == nil {
		_, err = tx.Exec(`SELECT pg_notify('bare', '')`)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	<-b.listener.Notify
	return time.Since(began)
}

// times are durations of one kind of event.
type times []time.Duration

// at returns a percentile.
func (all times) at(percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)].Round(10 * time.Microsecond)
}

func (all times) String() string {
	return fmt.Sprintf("p50 %v p99 %v max %v", all.at(50), all.at(99), all.at(100))
}

func ratio(a, b times, percent int) float64 { return float64(a.at(percent)) / float64(b.at(percent)) }
