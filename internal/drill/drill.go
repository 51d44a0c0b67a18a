// Package drill measures a promise on the running service: no replica accepts an old key once the
// regeneration of that key has returned. It uses a user of its own, and prints nothing.
package drill

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

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// drill is one run of `keyporter drill revoke`.
type drill struct {
	db       *store.DB
	format   *apikey.Format
	name     string // of the drill's plan, account and user
	replicas []*Replica
	question envoy.Question // a request that an API key opens

	returned []time.Duration // duration of each regeneration
	dead     []time.Duration // time after which the old key was last allowed
}

// Config is what a drill runs with.
type Config struct {
	Settings  config.Config // those of the service
	DB        *store.DB
	Rounds    int      // how often the key is regenerated, at least once
	Addresses []string // gRPC listeners of the replicas; none: those on the replicas' own list
}

// Report has the measurements of a drill.
type Report struct {
	Rounds               int
	Replicas             []*Replica    // by address
	Median, P99, Slowest time.Duration // duration of the regenerations
	// WorstDead is the longest time after which an old key was allowed for the last time, counted
	// from the begin of its regeneration.
	WorstDead time.Duration
	// AskedAfter counts the requests with an old key after its regeneration had returned, and
	// AllowedAfter those of them that a replica allowed: the promise is that there are none.
	AskedAfter, AllowedAfter int64
}

// Revoke regenerates a key of its own again and again while it asks every replica for the old one.
// It deletes what it has made; if only that fails, it returns the report and the error.
func Revoke(ctx context.Context, c Config) (report *Report, err error) {
	d := &drill{db: c.DB, name: "drill-" + strings.ToLower(rand.Text()[:10])}
	formats, err := operations.ReadFormats(ctx, d.db, apikey.FormatConfig{Prefix: c.Settings.KeyPrefix})
	if err != nil {
		return nil, err
	}
	d.format = formats.Keys
	if err := d.chooseRoute(c.Settings.Rules); err != nil {
		return nil, err
	}
	if err := d.reach(ctx, c.Settings, c.Addresses); err != nil {
		return nil, err
	}
	defer d.hangUp()
	defer func() { err = errors.Join(err, d.cleanUp(ctx)) }()
	key, err := d.setUp(ctx)
	for round := 0; err == nil && round < c.Rounds; round++ {
		key, err = d.round(ctx, key)
	}
	if err != nil {
		return nil, fmt.Errorf("after %d rounds: %w", len(d.returned), err)
	}
	return d.report(), nil
}

func (d *drill) report() *Report {
	slices.Sort(d.returned)
	slices.SortFunc(d.replicas, func(a, b *Replica) int { return cmp.Compare(a.Address, b.Address) })
	n := len(d.returned)
	r := &Report{
		Rounds: n, Replicas: d.replicas, WorstDead: slices.Max(d.dead),
		Median: d.returned[n/2], P99: d.returned[n*99/100], Slowest: d.returned[n-1],
	}
	for _, one := range d.replicas {
		r.AskedAfter, r.AllowedAfter = r.AskedAfter+one.After, r.AllowedAfter+one.Allowed
	}
	return r
}

// Replica holds the results of one replica.
type Replica struct {
	Address string `json:"address"`
	Before  int64  `json:"old_key_allowed_before_return"` // harmless
	After   int64  `json:"old_key_asked_after_return"`
	Allowed int64  `json:"old_key_allowed_after_return"` // breaks the promise
	client  *envoy.Client
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
func (d *drill) reach(ctx context.Context, c config.Config, addresses []string) error {
	token, err := c.GRPCToken()
	if err != nil {
		return err
	}
	if len(addresses) == 0 {
		all, _, err := feed.New(d.db).Replicas(ctx)
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
		d.replicas = append(d.replicas, &Replica{Address: address, client: client})
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
	access, unlimited := true, usage.Unlimited
	_, _, err := directory.New(d.db).SetPlan(ctx, d.name, directory.PlanChange{APIAccess: &access, RateLimit: &unlimited, Credits: &unlimited}, "")
	if err != nil {
		return apikey.Token{}, err
	}
	if _, _, err := directory.New(d.db).SetAccount(ctx, d.name, directory.AccountChange{Plan: &d.name}, ""); err != nil {
		return apikey.Token{}, err
	}
	if _, _, err := directory.New(d.db).SetUser(ctx, d.name, directory.UserChange{Account: &d.name}, ""); err != nil {
		return apikey.Token{}, err
	}
	_, key, err := directory.NewKeys(d.db).CreateKey(ctx, d.name, d.format)
	return key, err
}

// cleanUp deletes what setUp created, also after an interrupted drill.
func (d *drill) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	var failed error
	in := directory.New(d.db)
	for _, del := range []func(context.Context, string, feed.IdempotencyKey) (feed.Confirmation, error){in.DeleteUser, in.DeleteAccount, in.DeletePlan} {
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
	_, fresh, _, err := directory.NewKeys(d.db).RegenerateKey(ctx, d.name, d.format, directory.Rate{}, "")
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
func (d *drill) ask(ctx context.Context, r *Replica, old apikey.Token, began time.Time, returned, last *atomic.Int64) error {
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
