package portal

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// What the functions of a [Config] return for what is no failure.
var (
	// ErrNoKey: the user has no live key.
	ErrNoKey = errors.New("the user has no live key")
	// ErrIdempotencyKey: the idempotency key cannot be used.
	ErrIdempotencyKey = errors.New("the idempotency key cannot be used")
	// ErrCursor: the place in a list to go on from is none that an earlier answer has named.
	ErrCursor = errors.New("there is no such place in the list")
	// ErrLink: the login link is unknown, used or late, or its user disabled.
	ErrLink = errors.New("the login link is not good, or not any more")
)

// TooOftenError is returned by [Config.Regenerate] and [Config.Revealed] for who has done that as often as
// they may for now.
type TooOftenError struct{ Until time.Time }

func (e TooOftenError) Error() string { return "too often, until " + e.Until.String() }

// ReplacedError is returned by [Config.Regenerate] where another key is live than the one that is
// to be replaced.
type ReplacedError struct{ At time.Time } // when that one was made

func (e ReplacedError) Error() string { return "the key was replaced at " + e.At.String() }

// Regeneration is what a user asks for who wants a new key.
type Regeneration struct {
	User string
	// Replaces is the id of the key that is to be replaced, and no other; "": whichever is live.
	Replaces string
	// IdempotencyKey names the call: one that is repeated with it replaces nothing and confirms
	// again. "": none.
	IdempotencyKey string
}

// Key is a live key, without the key.
type Key struct {
	ID        string
	CreatedAt time.Time
	Sealed    []byte // the copy that a seal key opens; nil where none is kept
}

// Regenerated is the result of a regeneration.
type Regenerated struct {
	KeyID string
	// Key is the new key; zero where an earlier call with the same idempotency key has returned it.
	Key apikey.Token
	// Confirmed says that the old key is dead on every replica.
	Confirmed bool
	Replicas  Replicas
}

// Replicas counts the replicas on which the old key is dead: those that have said so, and those that
// were silent until they may not answer from memory any more.
type Replicas struct {
	Total        int `json:"total"`
	Acknowledged int `json:"acknowledged"`
	Expired      int `json:"expired"`
}

// Usage is what was done with a key, or with several.
type Usage struct {
	LastHour, LastDay int64     // requests
	Addresses, Agents int64     // in the last day, different ones
	All               int64     // requests, as far as they are remembered
	Last              time.Time // zero: never
	Address, Agent    string    // of the last one
}

// Meters is where a user stands. What is not known has a zero Credits or Rate.
type Meters struct {
	Credits authz.Credits
	Rate    authz.Rate
}

// Day is what a user was charged on one day, in UTC.
type Day struct {
	Date     time.Time
	Used     int64 // credits, with what came back
	Refunded int64
}

// Request is a request of the user.
type Request struct {
	At           time.Time
	Method, Path string // without the query
	Status       int    // what the client got; 0: nothing
	Credits      int64
	Refunded     bool
}

// Config says where the page's facts come from. The functions are called from many goroutines and must
// respect their context. Those of the optional parts may fail: the page then says that a part is not
// available, and the rest stands.
type Config struct {
	// Path is where the page is: see [authz.CheckPagePath]. "": [authz.DefaultPagePath].
	Path string

	// Sessions asks the store itself, not a cache: the page is where a user looks right after a change.
	Sessions *authz.Sessions

	// LiveKey returns the live key of a user, and whether there is one.
	LiveKey func(ctx context.Context, user string) (Key, bool, error)
	// Unseal opens a sealed copy. Nil: no key can be shown again.
	Unseal func(sealed []byte, id string) (apikey.Token, error)
	// Revealed notes durably that a user is about to be shown their key, before they are. It may return a
	// [TooOftenError].
	Revealed func(ctx context.Context, user, keyID string) error
	// Regenerate replaces the live key of a user, or returns [ErrNoKey], a [ReplacedError], a
	// [TooOftenError], or [ErrIdempotencyKey] for an idempotency key that cannot be used.
	Regenerate func(ctx context.Context, r Regeneration) (Regenerated, error)

	// KeyUsage returns what was done with a key.
	KeyUsage func(ctx context.Context, user, keyID string) (Usage, error)
	// DeadKeys returns how often ended keys of a user were tried since a moment.
	DeadKeys func(ctx context.Context, user string, since time.Time) (Usage, error)
	// Meters returns where a user stands, in the limiter's own numbers.
	Meters func(ctx context.Context, who authz.Principal) (Meters, error)
	// Days returns what a user was charged on the last 30 days, oldest first.
	Days func(ctx context.Context, user string) ([]Day, error)
	// Requests returns at most n requests of a user that came before a cursor, newest first, and
	// the cursor of those before them, "" if there are none. The empty cursor is the newest; for
	// one that is none of ours it returns [ErrCursor].
	Requests func(ctx context.Context, user, before string, n int) (list []Request, next string, err error)

	// Links is the form of login links. FindLink returns whose link it is, and may be asked again and
	// again. UseLink spends it, and ends the session before, if that is not the zero digest: both or
	// neither. It returns when that one opens nothing any more. Both return [ErrLink].
	Links    *apikey.Format
	FindLink func(ctx context.Context, d apikey.Digest) (user string, err error)
	UseLink  func(ctx context.Context, d, before apikey.Digest) (session apikey.Token, expires time.Time, err error)
	// Logout ends a session. It returns when it opens nothing any more.
	Logout func(ctx context.Context, session apikey.Digest) error

	KeyPrefix string // of keys, for one that is masked; "": wh_
	Example   string // the path of the API in calls to paste; "": /api/v1/brands
	LoginURL  string // where a browser without a session is sent; "": the page's own
	Brand     Brand
	Log       *slog.Logger          // nil: slog.Default()
	Metrics   prometheus.Registerer // nil: not registered
}

// Brand is whose page it is. The zero Brand is Keyporter's.
type Brand struct {
	Name     string
	Logo     []byte // an SVG or PNG image; nil: none
	LogoType string // its media type
	Color    string // of buttons and bars: #rrggbb
	Links    []Link
}

// Link is a link at the foot of the page.
type Link struct{ Text, URL string }
