package operations

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

// Users are the users, each with one key.
type Users struct {
	db *store.DB
	in *directory.Directory
}

// Users returns the operations on users.
func (o Operator) Users() Users { return Users{o.db, o.directory()} }

// Provided returns the same operations, with a precondition for each change.
func (u Users) Provided(c directory.Condition) Users { return Users{u.db, u.in.Provided(c)} }

// Set creates a user, if the change names an account, or changes what it names.
func (u Users) Set(ctx context.Context, name string, change directory.UserChange, once feed.IdempotencyKey) (Committed[directory.User], error) {
	return committed(u.in.SetUser(ctx, name, change, once))
}

// Delete deletes a user with their keys and sessions.
func (u Users) Delete(ctx context.Context, name string, once feed.IdempotencyKey) (Committed[Deleted], error) {
	done, err := u.in.DeleteUser(ctx, name, once)
	return committed(Deleted{"user", name}, done, err)
}

// Each lists all users by name.
func (u Users) Each(ctx context.Context) iter.Seq2[directory.User, error] { return u.in.EachUser(ctx) }

// Find returns a user.
func (u Users) Find(ctx context.Context, name string) (directory.User, error) {
	return u.in.User(ctx, name)
}

// Page lists at most n users of an account and with a subject, by name after a cursor. An empty
// account or subject is any.
func (u Users) Page(ctx context.Context, account, subject, cursor string, n int) (Page[directory.User], error) {
	return pageOf(ctx, u.db, directory.UsersOf(account, subject), cursor, n)
}

// User is a user with all that is known about them.
type User struct {
	directory.User
	Plan       string         `json:"plan"`
	APIAccess  bool           `json:"api_access"` // the key opens the API
	RateLimit  usage.Limit    `json:"rate_limit"`
	RateWindow string         `json:"rate_window"`
	Key        *Key           `json:"key"`
	OldKeys    OldKeys        `json:"old_keys"`
	Credits    ledger.Balance `json:"credits"`
	Days       []Day          `json:"days"`
	Requests   []Request      `json:"requests"`
}

// Key is a live key, and how it is used.
type Key struct {
	ID         string     `json:"id"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	CanBeShown bool       `json:"can_be_shown"` // a sealed copy exists
	LastHour   int64      `json:"requests_last_hour"`
	LastDay    int64      `json:"requests_last_day"`
}

// OldKeys is how often keys that are no longer live were tried.
type OldKeys struct {
	Count   int64      `json:"count"`
	LastAt  *time.Time `json:"last_at"`
	Address string     `json:"address"`
	Agent   string     `json:"user_agent"`
}

// Day is the credits of one day.
type Day struct {
	Date     string `json:"date"`
	Used     int64  `json:"used"`
	Refunded int64  `json:"refunded"`
}

// Request is one request as the page lists it.
type Request struct {
	At       time.Time `json:"at"`
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Status   int       `json:"status"`
	Reason   string    `json:"reason"`
	Credits  int64     `json:"credits"`
	Refunded bool      `json:"refunded"`
}

// What is shown of a user, as on the page: the last days, and the last requests.
const (
	daysShown     = 30
	requestsShown = 20
)

// Show returns a user with all that is known about them.
func (u Users) Show(ctx context.Context, name string) (*User, error) {
	user, plan, active, err := u.in.UserPlan(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &User{
		User: user, Plan: plan.Name, APIAccess: plan.APIAccess && active && user.Status == "active",
		RateLimit: plan.RateLimit, RateWindow: plan.RateWindow.String(), Days: []Day{}, Requests: []Request{},
	}
	if err := s.addCredits(ctx, ledger.New(u.db)); err != nil {
		return nil, err
	}
	if err := s.addKeys(ctx, directory.NewKeys(u.db), requests.New(u.db)); err != nil {
		return nil, err
	}
	records, _, err := requests.New(u.db).List(ctx, name, "", requestsShown)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		s.Requests = append(s.Requests, Request{r.At, r.Method, r.Path, r.Status, r.Reason, r.Credits, r.Refunded})
	}
	return s, nil
}

// addCredits fills in the balance and the last days.
func (s *User) addCredits(ctx context.Context, credits *ledger.Ledger) (err error) {
	if s.Credits, err = credits.Balance(ctx, s.Name); err != nil {
		return err
	}
	days, err := credits.Days(ctx, s.Name, daysShown)
	for _, d := range days {
		s.Days = append(s.Days, Day{d.Date.Format(time.DateOnly), d.Used, d.Refunded})
	}
	return err
}

// addKeys fills in the live key, if there is one, and the earlier keys.
func (s *User) addKeys(ctx context.Context, keys *directory.Keys, log *requests.Log) error {
	key, sealed, err := keys.SealedKey(ctx, s.Name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	usage, err := log.KeyUsage(ctx, s.Name, key.ID)
	if err != nil {
		return err
	}
	tries, err := log.EndedKeyUsage(ctx, s.Name, key.CreatedAt)
	if err != nil {
		return err
	}
	s.Key = &Key{key.ID, key.CreatedAt, orNil(usage.Last), sealed != nil, usage.LastHour, usage.LastDay}
	s.OldKeys = OldKeys{tries.All, orNil(tries.Last), tries.Address, tries.Agent}
	return nil
}
