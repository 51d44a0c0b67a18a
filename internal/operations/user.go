package operations

import (
	"context"
	"errors"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
	"github.com/keyporter/keyporter/usage"
)

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

// ShowUser returns a user with all that is known about them.
func ShowUser(ctx context.Context, db *store.DB, name string) (*User, error) {
	u, plan, active, err := directory.New(db).UserPlan(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &User{
		User: u, Plan: plan.Name, APIAccess: plan.APIAccess && active && u.Status == "active",
		RateLimit: plan.RateLimit, RateWindow: plan.RateWindow.String(),
	}
	if s.Credits, err = ledger.New(db).Balance(ctx, name); err != nil {
		return nil, err
	}
	if err := s.addKeys(ctx, db); err != nil {
		return nil, err
	}
	days, err := ledger.New(db).Days(ctx, name, daysShown)
	if err != nil {
		return nil, err
	}
	s.Days = []Day{}
	for _, d := range days {
		s.Days = append(s.Days, Day{d.Date.Format(time.DateOnly), d.Used, d.Refunded})
	}
	records, _, err := requests.New(db).List(ctx, name, "", requestsShown)
	s.Requests = []Request{}
	for _, r := range records {
		s.Requests = append(s.Requests, Request{r.At, r.Method, r.Path, r.Status, r.Reason, r.Credits, r.Refunded})
	}
	return s, err
}

// addKeys fills in the live key, if there is one, and the earlier keys.
func (s *User) addKeys(ctx context.Context, db *store.DB) error {
	key, sealed, err := directory.NewKeys(db).SealedKey(ctx, s.Name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	usage, err := requests.New(db).KeyUsage(ctx, s.Name, key.ID)
	if err != nil {
		return err
	}
	tries, err := requests.New(db).EndedKeyUsage(ctx, s.Name, key.CreatedAt)
	if err != nil {
		return err
	}
	s.Key = &Key{key.ID, key.CreatedAt, orNil(usage.Last), sealed != nil, usage.LastHour, usage.LastDay}
	s.OldKeys = OldKeys{tries.All, orNil(tries.Last), tries.Address, tries.Agent}
	return nil
}

// orNil returns nil for the zero time.
func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
