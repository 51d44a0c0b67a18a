package portal

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// The methods of [Directory] and [Meter] return these errors for expected outcomes.
var (
	// ErrNoKey means that the user has no live key.
	ErrNoKey = errors.New("the user has no live key")
	// ErrIdempotencyKey means that the idempotency key is invalid.
	ErrIdempotencyKey = errors.New("the idempotency key cannot be used")
	// ErrCursor means that the cursor does not come from an earlier answer.
	ErrCursor = errors.New("the cursor does not come from an earlier answer")
	// ErrLink means that the login link is unknown, used or expired, or that its user is disabled.
	ErrLink = errors.New("the login link is unknown, used or expired")
)

// TooOftenError is returned by [Directory.Regenerate] and [Directory.RecordReveal] while the user
// has reached the limit of such calls.
type TooOftenError struct{ Until time.Time }

func (e TooOftenError) Error() string { return "too often, until " + e.Until.String() }

// ReplacedError is returned by [Directory.Regenerate] if the live key is not the one to replace.
type ReplacedError struct{ At time.Time } // when the live key was made

func (e ReplacedError) Error() string { return "the key was replaced at " + e.At.String() }

// Directory holds the users' keys, login links and sessions. Its methods must be safe for
// concurrent use and respect their context.
type Directory interface {
	// LiveKey returns the live key of a user, and reports whether there is one.
	LiveKey(ctx context.Context, user string) (Key, bool, error)
	// RecordReveal records durably that a user is about to see their key, before the page shows it.
	// It may return a [TooOftenError].
	RecordReveal(ctx context.Context, user, keyID string) error
	// Regenerate replaces the live key of a user. It may return [ErrNoKey], a [ReplacedError], a
	// [TooOftenError], or [ErrIdempotencyKey] for an invalid idempotency key.
	Regenerate(ctx context.Context, r Regeneration) (Regenerated, error)

	// FindLink returns the user of a login link without using it up. It may return [ErrLink].
	FindLink(ctx context.Context, link apikey.Digest) (user string, err error)
	// UseLink exchanges a login link for a new session and, unless previous is the zero digest,
	// ends that session. It does both or neither, and returns once the previous session is no
	// longer accepted. It may return [ErrLink].
	UseLink(ctx context.Context, link, previous apikey.Digest) (session apikey.Token, expires time.Time, err error)
	// EndSession ends a session and returns once it is no longer accepted.
	EndSession(ctx context.Context, session apikey.Digest) error
}

// Meter knows what users have used. Its methods must be safe for concurrent use and respect their
// context. If one fails, the page says that this part is not available and shows the rest.
type Meter interface {
	// Usage returns a user's usage, with the limiter's own figures. A zero Rate or Credits means
	// unknown.
	Usage(ctx context.Context, user authz.Principal) (usage.Rate, usage.Credits, error)
	// Days returns a user's charges of the last 30 days, oldest first.
	Days(ctx context.Context, user string) ([]usage.Day, error)
	// Requests returns at most n requests of a user before a cursor, newest first. It also returns
	// the cursor for the next older ones, "" if there are none. The empty cursor starts at the
	// newest; an unknown one gives [ErrCursor].
	Requests(ctx context.Context, user, before string, n int) (list []usage.Record, next string, err error)
	// KeyUsage returns the usage of a key.
	KeyUsage(ctx context.Context, user, keyID string) (usage.KeyUsage, error)
	// EndedKeyUsage returns the usage of a user's revoked keys since a moment.
	EndedKeyUsage(ctx context.Context, user string, since time.Time) (usage.KeyUsage, error)
}

// Regeneration is a user's request for a new key.
type Regeneration struct {
	User string
	// Replaces is the ID of the only key to replace; empty: any live key.
	Replaces string
	// IdempotencyKey identifies the call; empty: none. A repeated call replaces nothing and
	// confirms the revocation again.
	IdempotencyKey string
}

// Key describes a live key, without its secret.
type Key struct {
	ID        string
	CreatedAt time.Time
	Sealed    []byte // the encrypted copy; nil if none is kept
	Imported  bool   // another system made it: its form is not ours
}

// Regenerated is the result of a regeneration.
type Regenerated struct {
	KeyID string
	// Key is the new key; zero if an earlier call with the same idempotency key returned it.
	Key apikey.Token
	// Confirmed reports that the old key is revoked on every replica.
	Confirmed bool
	Replicas  Replicas
}

// Replicas counts the replicas on which the old key is revoked: those that acknowledged the change,
// and those that stayed silent until their lease expired.
type Replicas struct {
	Total        int `json:"total"`
	Acknowledged int `json:"acknowledged"`
	Expired      int `json:"expired"`
}

// Config defines the page. Sessions, Links, Directory and Meter are required.
type Config struct {
	// Path is the path of the page: see [authz.CheckPagePath]. Empty means [authz.DefaultPagePath].
	Path string

	// Sessions must read from the store itself, not from a cache: users open the page right after a
	// change.
	Sessions  *authz.Sessions
	Links     *apikey.Format // of login links
	Directory Directory
	Meter     Meter
	// Unseal decrypts a sealed copy. It must be safe for concurrent use. If Unseal is nil, no key
	// can be shown again.
	Unseal func(sealed []byte, id string) (apikey.Token, error)

	KeyPrefix string // shown in masked keys; "": wh_
	Example   string // the API path in the example calls; "": /api/v1/brands
	LoginURL  string // redirect target for browsers without a session; "": the page's own login
	Brand     Brand
	Log       *slog.Logger          // nil: slog.Default()
	Metrics   prometheus.Registerer // nil: not registered
}

// Brand is the page's brand. The zero Brand is Keyporter's.
type Brand struct {
	Name     string
	Logo     []byte // an SVG or PNG image; nil: none
	LogoType string // its media type
	Color    string // of buttons and bars: #rrggbb
	Links    []Link
}

// Link is a link in the footer of the page.
type Link struct{ Text, URL string }
