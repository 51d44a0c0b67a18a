package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/store"
)

func (a *app) drillCommand() *cobra.Command {
	var rounds int
	var addresses []string
	revoke := &cobra.Command{
		Use: "revoke", Short: "Measure how fast every replica refuses a regenerated key",
		Long: `Measure how fast every running replica refuses a regenerated key. Makes a plan, an account, a user and
a key of its own, regenerates the key again and again while it asks every replica for the old one, as
Envoy would, and deletes all of it at the end. It is safe in production: it touches nobody else's keys.
Exit status 1 if a replica allowed an old key in a request that was sent after the regeneration had
returned, or refused a new one.

It asks replicas at the addresses on their list (` + "`keyporter replicas`" + `). If those are not reachable from
here, set --advertise of serve, or name them with --replica.`,
		Example: "  keyporter drill revoke\n  keyporter drill revoke --rounds 1000 --replica 10.0.0.7:9001 --replica 10.0.0.8:9001",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rounds < 1 {
				return usageError{errors.New("--rounds: want at least 1")}
			}
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				return a.drillRevoke(ctx, c, db, rounds, addresses)
			})
		},
	}
	revoke.Flags().IntVar(&rounds, "rounds", 100, "how often the key is regenerated")
	revoke.Flags().StringArrayVar(&addresses, "replica", nil, "`address` of a replica's gRPC listener; may be repeated; by default those on the list")
	addFlags(revoke.Flags(), "key-prefix", "grpc-token-file")
	return group("drill", "Measure a promise on the running service", revoke)
}

// drill is one run of `keyporter drill revoke`.
type drill struct {
	db       *store.DB
	format   *apikey.Format
	name     string // of the drill's plan, account and user
	replicas []*drilled
	question envoy.Question // a request that an API key opens

	returned []time.Duration // duration of each regeneration
	dead     []time.Duration // time after which the old key was last allowed
}

// drilled holds the results of one replica.
type drilled struct {
	Address string `json:"address"`
	Before  int64  `json:"old_key_allowed_before_return"` // harmless
	After   int64  `json:"old_key_asked_after_return"`
	Allowed int64  `json:"old_key_allowed_after_return"` // breaks the promise
	client  *envoy.Client
}

func (a *app) drillRevoke(ctx context.Context, c config, db *store.DB, rounds int, addresses []string) (err error) {
	d := &drill{db: db, name: "drill-" + strings.ToLower(rand.Text()[:10])}
	if d.format, _, err = formats(ctx, c, db); err != nil {
		return err
	}
	if err := d.chooseRoute(c.Rules); err != nil {
		return err
	}
	if err := d.reach(ctx, c, addresses); err != nil {
		return err
	}
	defer d.hangUp()
	defer func() { err = errors.Join(err, d.cleanUp(ctx)) }()
	key, err := d.setUp(ctx)
	for round := 0; err == nil && round < rounds; round++ {
		key, err = d.round(ctx, key)
	}
	if err != nil {
		return fmt.Errorf("after %d rounds: %w", len(d.returned), err)
	}
	return a.reportDrill(c, d)
}

// chooseRoute finds a request that an API key opens.
func (d *drill) chooseRoute(rules []authz.Rule) error {
	for _, rule := range rules {
		if rule.Kind != authz.KindAPIKey {
			continue
		}
		d.question = envoy.Question{Method: "GET", Path: cmp.Or(strings.TrimSuffix(rule.Path, "*"), "/"), Rule: rule.Name}
		if len(rule.Methods) > 0 {
			d.question.Method = rule.Methods[0]
		}
		if len(rule.Hosts) > 0 {
			d.question.Host = strings.Replace(rule.Hosts[0], "*", "drill", 1)
		}
		return nil
	}
	return errors.New("the route table of this configuration has no route for API keys, so there is nothing to ask: name the configuration of the service with --config")
}

// reach prepares a client for every replica.
func (d *drill) reach(ctx context.Context, c config, addresses []string) error {
	token, err := c.grpcToken()
	if err != nil {
		return err
	}
	if len(addresses) == 0 {
		all, _, err := d.db.Replicas(ctx)
		if err != nil {
			return err
		}
		for _, r := range all {
			addresses = append(addresses, r.Address)
		}
	}
	if len(addresses) == 0 {
		return errors.New("no replica is running: start one with `keyporter serve`, or name it with --replica")
	}
	for _, address := range addresses {
		client, err := envoy.NewClient(address, token)
		if err != nil {
			return err
		}
		d.replicas = append(d.replicas, &drilled{Address: address, client: client})
	}
	return nil
}

func (d *drill) hangUp() {
	for _, r := range d.replicas {
		r.client.Close()
	}
}

// setUp creates a user whose key opens the drill's request.
func (d *drill) setUp(ctx context.Context) (apikey.Token, error) {
	access, unlimited := true, store.Unlimited
	_, _, err := d.db.SetPlan(ctx, d.name, store.PlanChange{APIAccess: &access, RateLimit: &unlimited, Credits: &unlimited}, "")
	if err != nil {
		return apikey.Token{}, err
	}
	if _, _, err := d.db.SetAccount(ctx, d.name, store.AccountChange{Plan: &d.name}, ""); err != nil {
		return apikey.Token{}, err
	}
	if _, _, err := d.db.SetUser(ctx, d.name, store.UserChange{Account: &d.name}, ""); err != nil {
		return apikey.Token{}, err
	}
	_, key, err := d.db.CreateKey(ctx, d.name, d.format)
	return key, err
}

// cleanUp deletes what setUp created, also after an interrupted drill.
func (d *drill) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	var failed error
	for _, del := range []func(context.Context, string, store.Once) (store.Confirmation, error){d.db.DeleteUser, d.db.DeleteAccount, d.db.DeletePlan} {
		if _, err := del(ctx, d.name, ""); err != nil && !errors.Is(err, store.ErrNotFound) && failed == nil {
			failed = fmt.Errorf("cleaning up after the drill: %w", err)
		}
	}
	return failed
}

// askAfter is how many times each replica is asked for the old key after the regeneration has
// returned. askPause is the time between two requests, so that a drill adds no noticeable load.
const (
	askAfter = 20
	askPause = time.Millisecond
)

// round regenerates the key once while it asks every replica for the old one.
func (d *drill) round(ctx context.Context, old apikey.Token) (apikey.Token, error) {
	if err := d.mustOpen(ctx, old); err != nil { // caches the key from here on
		return apikey.Token{}, err
	}
	// time since began; returned is 0 until the regeneration returns
	var returned, last atomic.Int64
	began := time.Now()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	failed := make(chan error, len(d.replicas))
	for _, r := range d.replicas {
		all.Go(func() { failed <- d.ask(asking, r, old, began, &returned, &last) })
	}
	_, fresh, _, err := d.db.RegenerateKey(ctx, d.name, d.format, store.Pace{}, "")
	took := time.Since(began)
	returned.Store(int64(took))
	if err != nil {
		stop()
	}
	all.Wait()
	if err != nil {
		return apikey.Token{}, err
	}
	for range d.replicas {
		if err := <-failed; err != nil {
			return apikey.Token{}, err
		}
	}
	d.returned, d.dead = append(d.returned, took), append(d.dead, time.Duration(last.Load()))
	return fresh, d.mustOpen(ctx, fresh)
}

// ask asks one replica for the old key until it has asked often enough after the return.
func (d *drill) ask(ctx context.Context, r *drilled, old apikey.Token, began time.Time, returned, last *atomic.Int64) error {
	for after := 0; after < askAfter; {
		sent := time.Since(began)
		done := returned.Load()
		status, err := r.client.Ask(ctx, d.question, old.Reveal())
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("asking the replica at %s: %w", r.Address, err)
		}
		allowed := status == 200
		switch {
		case done == 0 && allowed:
			r.Before++
		case done != 0:
			after++
			r.After++
			if allowed {
				r.Allowed++
			}
		}
		time.Sleep(askPause)
		if allowed {
			for seen := last.Load(); int64(sent) > seen && !last.CompareAndSwap(seen, int64(sent)); seen = last.Load() {
			}
		}
	}
	return nil
}

// openTime bounds how long a busy replica may answer 503 before the drill fails.
const openTime = 10 * time.Second

// mustOpen asks every replica for the live key. It fails on a 401 and retries on a 503.
func (d *drill) mustOpen(ctx context.Context, key apikey.Token) error {
	for _, r := range d.replicas {
		ctx, cancel := context.WithTimeout(ctx, openTime)
		defer cancel()
		for status := 0; status != 200; {
			var err error
			status, err = r.client.Ask(ctx, d.question, key.Reveal())
			switch {
			case err != nil:
				return fmt.Errorf("asking the replica at %s: %w: if it has died, `keyporter replicas` shows it as silent for a minute; if it listens elsewhere, name the addresses with --replica", r.Address, err)
			case status == 503:
				time.Sleep(10 * time.Millisecond)
			case status != 200:
				return fmt.Errorf("the replica at %s answers %d to the live key: its database or its route table is not the one of this configuration", r.Address, status)
			}
		}
	}
	return nil
}

// reportDrill prints the measurements, and fails if the promise was broken.
func (a *app) reportDrill(c config, d *drill) error {
	slices.Sort(d.returned)
	worst := slices.Max(d.dead)
	var asked, allowed int64
	slices.SortFunc(d.replicas, func(a, b *drilled) int { return cmp.Compare(a.Address, b.Address) })
	rows := [][]string{{"REPLICA", "OLD KEY ALLOWED WHILE IT RAN", "ASKED AFTER IT RETURNED", "ALLOWED AFTER IT RETURNED"}}
	for _, r := range d.replicas {
		asked, allowed = asked+r.After, allowed+r.Allowed
		rows = append(rows, []string{r.Address, fmt.Sprint(r.Before), fmt.Sprint(r.After), fmt.Sprint(r.Allowed)})
	}
	p50, p99, longest := d.returned[len(d.returned)/2], d.returned[len(d.returned)*99/100], d.returned[len(d.returned)-1]
	result := struct {
		Rounds       int        `json:"rounds"`
		Replicas     []*drilled `json:"replicas"`
		ReturnedUS   [3]int64   `json:"returned_us"` // p50, p99, max
		WorstDeadUS  int64      `json:"worst_time_to_dead_us"`
		AskedAfter   int64      `json:"old_key_asked_after_return"`
		AllowedAfter int64      `json:"old_key_allowed_after_return"`
	}{len(d.returned), d.replicas, [3]int64{p50.Microseconds(), p99.Microseconds(), longest.Microseconds()}, worst.Microseconds(), asked, allowed}
	text := fmt.Sprintf("%s\nregenerated %d times: returned after %v (median), %v (99 %%), %v (worst)\nworst time to dead: %v after a call began an old key was allowed for the last time\n"+
		"old keys after the return: %d requests, %d allowed\n",
		table(rows), result.Rounds, round(p50), round(p99), round(longest), round(worst), asked, allowed)
	if err := a.print(c, result, text); err != nil {
		return err
	}
	if allowed > 0 {
		return fmt.Errorf("the promise was broken: %d of %d requests with an old key were allowed after the regeneration had returned", allowed, asked)
	}
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
