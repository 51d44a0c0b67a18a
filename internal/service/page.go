package service

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/sealfile"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/portal/requestlog"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

const (
	// sessionLife is the life of a session that a login link starts.
	sessionLife = 12 * time.Hour
	// daysOnPage is the number of days in the page's chart.
	daysOnPage = 30
)

// reveals is how often a user may reveal their key.
var reveals = directory.Rate{N: 100, Per: time.Hour}

// pageParts are the objects that the page is made of.
type pageParts struct {
	db       *store.DB
	formats  operations.Formats
	sessions *authz.Sessions // without a cache
	metering *meter.Meter
	log      *slog.Logger
	metrics  prometheus.Registerer
}

// newPageServer returns the server of the page, or nil on a replica that only decides.
func newPageServer(ctx context.Context, c config.Config, p pageParts) (*http.Server, error) {
	if c.ListenHTTP == "off" {
		return nil, nil
	}
	page, err := newPage(ctx, c, p)
	if err != nil {
		return nil, err
	}
	return newHTTPServer(page, p.log), nil
}

// newPage connects the page to the store and the meters.
func newPage(ctx context.Context, c config.Config, p pageParts) (http.Handler, error) {
	brand, err := config.UnlessEnded(ctx, c.Brand)
	if err != nil {
		return nil, err
	}
	page := portal.Config{
		Path: c.PagePath, Sessions: p.sessions, Links: p.formats.Links,
		Directory: &pageDirectory{
			db: p.db, keys: p.formats.Keys, sessions: p.formats.Sessions, newKeys: directory.Rate{N: c.NewKeysPerHour, Per: time.Hour}, log: p.log,
		},
		Meter:     &pageMeter{metering: p.metering, ledger: ledger.New(p.db), saved: requests.New(p.db)},
		KeyPrefix: c.KeyPrefix, Example: examplePath(c.Rules), LoginURL: c.LoginURL, Brand: brand, Log: p.log, Metrics: p.metrics,
	}
	if c.SealKeyFile != "" {
		if err := p.checkSealKey(ctx, c.SealKeyFile); err != nil {
			return nil, err
		}
		page.Unseal = unsealing(c.SealKeyFile)
	}
	return portal.New(page)
}

// unsealing returns what opens sealed copies with the keys of a file; nil without one. It rereads
// the file on each use, so that a rotation takes effect.
func unsealing(file string) func(sealed []byte, id string) (apikey.Token, error) {
	if file == "" {
		return nil
	}
	return func(sealed []byte, id string) (apikey.Token, error) {
		keys, err := sealfile.Read(file)
		if err != nil {
			return apikey.Token{}, err
		}
		return keys.Unseal(sealed, id)
	}
}

// checkSealKey rejects an invalid seal key file at the start. A key of another database only causes
// a warning: the rest of the page works.
func (p *pageParts) checkSealKey(ctx context.Context, file string) error {
	keys, err := sealfile.Read(file)
	if err != nil {
		return fmt.Errorf("--seal-key-file: %w", err)
	}
	public, err := directory.NewKeys(p.db).SealKey(ctx)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	for _, key := range keys {
		if bytes.Equal(key.Public(), public) {
			return nil
		}
	}
	p.log.Error("the private key in --seal-key-file does not belong to the seal key of the database: users cannot be shown their keys", "file", file)
	return nil
}

// pageDirectory implements [portal.Directory] with the store's directory. It reads without an
// actor.
type pageDirectory struct {
	db       *store.DB
	keys     *apikey.Format
	sessions *apikey.Format
	newKeys  directory.Rate // limit on the keys that a user makes
	log      *slog.Logger
}

// as returns the database with the user as the actor, acting on the page.
func (d *pageDirectory) as(user string) *store.DB {
	return d.db.As("page:" + user)
}

// asPage returns the sessions with the page as the actor, before the user is known.
func (d *pageDirectory) asPage() *directory.Sessions { return directory.NewSessions(d.db.As("page")) }

// LiveKey implements [portal.Directory].
func (d *pageDirectory) LiveKey(ctx context.Context, user string) (portal.Key, bool, error) {
	key, sealed, err := directory.NewKeys(d.db).SealedKey(ctx, user)
	if errors.Is(err, store.ErrNotFound) {
		return portal.Key{}, false, nil
	}
	return portal.Key{ID: key.ID, CreatedAt: key.CreatedAt, Sealed: sealed, Imported: key.Imported}, err == nil, err
}

// RecordReveal implements [portal.Directory].
func (d *pageDirectory) RecordReveal(ctx context.Context, user, keyID string) error {
	return pageError(directory.NewAudit(d.as(user)).RecordReveal(ctx, user, keyID, reveals))
}

// Regenerate implements [portal.Directory].
func (d *pageDirectory) Regenerate(ctx context.Context, r portal.Regeneration) (portal.Regenerated, error) {
	once, err := feed.IdempotencyKey(r.IdempotencyKey).Of("page:" + r.User)
	if err != nil {
		return portal.Regenerated{}, fmt.Errorf("%w: %w", portal.ErrIdempotencyKey, err)
	}
	key, token, c, err := directory.NewKeys(d.as(r.User)).ReplaceKey(ctx, r.User, r.Replaces, d.keys, d.newKeys, once)
	confirmed, replaced := !errors.Is(err, lease.ErrUnconfirmed), directory.ReplacedError{}
	switch err = pageError(err); {
	case !confirmed:
		err = nil
	case errors.As(err, &replaced):
		err = portal.ReplacedError{At: replaced.By.CreatedAt}
	case errors.Is(err, store.ErrNotFound):
		err = fmt.Errorf("%w: %w", portal.ErrNoKey, err)
	case errors.Is(err, store.ErrInvalid):
		err = fmt.Errorf("%w: %w", portal.ErrIdempotencyKey, err)
	}
	if err != nil {
		return portal.Regenerated{}, err
	}
	return portal.Regenerated{
		KeyID: key.ID, Key: token, Confirmed: confirmed,
		Replicas: portal.Replicas{Total: c.Total, Acknowledged: c.Acknowledged, Expired: c.Expired},
	}, nil
}

// pageError converts a rate limit error of the store to the page's own.
func pageError(err error) error {
	if tooOften := (directory.TooOftenError{}); errors.As(err, &tooOften) {
		return portal.TooOftenError{Until: tooOften.Until}
	}
	return err
}

// FindLink implements [portal.Directory].
func (d *pageDirectory) FindLink(ctx context.Context, link apikey.Digest) (string, error) {
	found, err := directory.NewSessions(d.db).FindLoginLink(ctx, link)
	return found.User, linkError(err)
}

// UseLink implements [portal.Directory]. Without a confirmation of every replica, the previous
// session ends when the lease has ended.
func (d *pageDirectory) UseLink(ctx context.Context, link, previous apikey.Digest) (apikey.Token, time.Time, error) {
	session, token, err := d.asPage().UseLoginLink(ctx, link, previous, sessionLife, d.sessions)
	return token, session.ExpiresAt, linkError(d.acceptUnconfirmed(err))
}

func linkError(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return portal.ErrLink
	}
	return err
}

// EndSession implements [portal.Directory]. Without a confirmation of every replica, it takes
// effect when the lease has ended.
func (d *pageDirectory) EndSession(ctx context.Context, session apikey.Digest) error {
	_, err := d.asPage().EndSession(ctx, session)
	return d.acceptUnconfirmed(err)
}

// acceptUnconfirmed logs that the end of a session is not yet confirmed by every replica, and
// returns any other error.
func (d *pageDirectory) acceptUnconfirmed(err error) error {
	if errors.Is(err, lease.ErrUnconfirmed) {
		d.log.Warn("a session was ended, but not every replica has confirmed it", "error", err)
		return nil
	}
	return err
}

// pageMeter implements [portal.Meter] with the meter of this process, the ledger and the log of
// requests.
type pageMeter struct {
	metering *meter.Meter
	ledger   *ledger.Ledger
	saved    *requests.Log
}

// Usage implements [portal.Meter]. If this replica holds no credits of the user, the credits come
// from the ledger.
func (m *pageMeter) Usage(ctx context.Context, user authz.Principal) (usage.Rate, usage.Credits, error) {
	rate, credits, err := m.metering.Usage(ctx, &user)
	if err != nil || credits.Counted {
		return rate, credits, err
	}
	balance, err := m.ledger.Balance(ctx, user.User)
	if err != nil {
		return usage.Rate{}, usage.Credits{}, err
	}
	return rate, usage.Credits{Counted: true, Used: balance.Used, Limit: balance.Limit, Reset: time.Until(balance.Month.End())}, nil
}

// Days implements [portal.Meter].
func (m *pageMeter) Days(ctx context.Context, user string) ([]usage.Day, error) {
	return m.ledger.Days(ctx, user, daysOnPage)
}

// Requests implements [portal.Meter].
func (m *pageMeter) Requests(ctx context.Context, user, before string, n int) ([]usage.Record, string, error) {
	records, next, err := m.saved.List(ctx, user, before, n)
	if errors.Is(err, store.ErrInvalid) {
		err = portal.ErrCursor
	}
	return records, next, err
}

// KeyUsage implements [portal.Meter].
func (m *pageMeter) KeyUsage(ctx context.Context, user, keyID string) (usage.KeyUsage, error) {
	return m.saved.KeyUsage(ctx, user, keyID)
}

// EndedKeyUsage implements [portal.Meter].
func (m *pageMeter) EndedKeyUsage(ctx context.Context, user string, since time.Time) (usage.KeyUsage, error) {
	return m.saved.EndedKeyUsage(ctx, user, since)
}

// examplePath returns a path that a key opens, for the sample calls of the page: the example of the
// contract, that of a rule, or a path below that of a rule.
func examplePath(rules []authz.Rule) string {
	// whether the rule matches all paths below its own → the first such path
	found := map[bool]string{}
	for _, r := range rules {
		if r.Kind != authz.KindAPIKey || r.Name != "" || r.Answer != authz.AnswerDestination {
			continue
		}
		if r.Path == "/api/v1/brands" {
			return r.Path
		}
		if _, below := r.Base(); found[below] == "" {
			found[below] = r.Example()
		}
	}
	return cmp.Or(found[false], found[true])
}

// newRequestLog returns the log of the requests that the page shows, or nil with a retention of 0.
func newRequestLog(saved *requests.Log, retention time.Duration, log *slog.Logger, metrics prometheus.Registerer) *requestlog.Log {
	if retention == 0 {
		return nil
	}
	return requestlog.New(requestlog.Config{Retention: retention, Log: log, Metrics: metrics, Save: func(ctx context.Context, b requestlog.Batch) error {
		counts := make([]requests.Count, 0, len(b.Counts))
		for source, count := range b.Counts {
			counts = append(counts, requests.Count{
				User: source.User, KeyID: source.KeyID, Ended: source.Ended, Address: source.Address, Agent: source.Agent,
				At: count.Last, Requests: count.Requests,
			})
		}
		return saved.Save(ctx, b.Records, counts)
	}, SaveOutcomes: func(ctx context.Context, counts map[requestlog.Outcome]int64) error {
		all := make([]requests.Outcome, 0, len(counts))
		for o, n := range counts {
			all = append(all, requests.Outcome{User: o.User, Day: o.Day, Reason: o.Reason, Requests: n})
		}
		return saved.AddOutcomes(ctx, all)
	}})
}

// completed returns the handler of completions, which passes them to the meter and to the page's
// request log. Without a log, requests is nil.
func completed(metering *meter.Meter, requests *requestlog.Log) func(usage.Completion) {
	return func(e usage.Completion) {
		credits, refunded := metering.Complete(e)
		if requests == nil || e.Record.KeyID == "" {
			return
		}
		e.Record.Credits, e.Record.Refunded = credits, refunded
		requests.Add(e.Record)
	}
}
