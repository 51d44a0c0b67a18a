package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/store"
)

func (a *app) userShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show what the user's page shows, without the key",
		Long: `Show what the user's page shows, without the key: whose plan it is, the key, this month's credits, the
last 30 days and the recent requests. Only the running replicas know how much of the rate limit is in use.`,
		Example: "  keyporter user show ada",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				shown, err := showUser(ctx, db, args[0])
				if err != nil {
					return err
				}
				return a.print(c, shown, shown.text())
			})
		},
	}
}

// shownUser is a user with all that is known about them.
type shownUser struct {
	store.User
	Plan       string         `json:"plan"`
	APIAccess  bool           `json:"api_access"` // the key opens the API
	RateLimit  store.Limit    `json:"rate_limit"`
	RateWindow string         `json:"rate_window"`
	Key        *shownKey      `json:"key"`
	OldKeys    shownTries     `json:"old_keys"`
	Credits    store.Balance  `json:"credits"`
	Days       []shownDay     `json:"days"`
	Requests   []shownRequest `json:"requests"`
}

type shownKey struct {
	ID         string     `json:"id"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	CanBeShown bool       `json:"can_be_shown"` // a sealed copy exists
	LastHour   int64      `json:"requests_last_hour"`
	LastDay    int64      `json:"requests_last_day"`
}

type shownTries struct {
	Count   int64      `json:"count"`
	LastAt  *time.Time `json:"last_at"`
	Address string     `json:"address"`
	Agent   string     `json:"user_agent"`
}

type shownDay struct {
	Date     string `json:"date"`
	Used     int64  `json:"used"`
	Refunded int64  `json:"refunded"`
}

type shownRequest struct {
	At       time.Time `json:"at"`
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Status   int       `json:"status"`
	Reason   string    `json:"reason"`
	Credits  int64     `json:"credits"`
	Refunded bool      `json:"refunded"`
}

// shownRequests is the number of requests shown.
const shownRequests = 20

func showUser(ctx context.Context, db *store.DB, name string) (*shownUser, error) {
	u, plan, active, err := db.UserPlan(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &shownUser{
		User: u, Plan: plan.Name, APIAccess: plan.APIAccess && active && u.Status == "active",
		RateLimit: plan.RateLimit, RateWindow: plan.RateWindow.String(),
	}
	if s.Credits, err = db.Credits(ctx, name); err != nil {
		return nil, err
	}
	if err := s.key(ctx, db); err != nil {
		return nil, err
	}
	days, err := db.CreditDays(ctx, name, daysOnPage)
	if err != nil {
		return nil, err
	}
	s.Days = []shownDay{}
	for _, d := range days {
		s.Days = append(s.Days, shownDay{d.Date.Format(time.DateOnly), d.Used, d.Refunded})
	}
	records, _, err := db.Requests(ctx, name, "", shownRequests)
	s.Requests = []shownRequest{}
	for _, r := range records {
		s.Requests = append(s.Requests, shownRequest{r.At, r.Method, r.Path, r.Status, r.Reason, r.Credits, r.Refunded})
	}
	return s, err
}

// key fills in the live key, if there is one, and the earlier keys.
func (s *shownUser) key(ctx context.Context, db *store.DB) error {
	key, sealed, err := db.SealedKey(ctx, s.Name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	usage, err := db.KeyUsage(ctx, s.Name, key.ID)
	if err != nil {
		return err
	}
	tries, err := db.EndedKeyUsage(ctx, s.Name, key.CreatedAt)
	if err != nil {
		return err
	}
	s.Key = &shownKey{key.ID, key.CreatedAt, orNil(usage.Last), sealed != nil, usage.LastHour, usage.LastDay}
	s.OldKeys = shownTries{tries.All, orNil(tries.Last), tries.Address, tries.Agent}
	return nil
}

// orNil returns nil for the zero time.
func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (s *shownUser) text() string {
	var b strings.Builder
	rows := [][]string{
		{"user", s.Name + " (" + s.Kind + ", " + s.Status + ")"}, {"account", s.Account}, {"plan", s.Plan},
		{"api access", fmt.Sprint(s.APIAccess)}, {"rate limit", s.RateLimit.String() + " per " + s.RateWindow},
		{"credits", fmt.Sprintf("%d of %v used, from the pool of the %s", s.Credits.Used, s.Credits.Limit, s.Credits.Pool)},
	}
	if s.Subject != "" {
		rows = append(rows, []string{"subject", s.Subject})
	}
	if s.Key == nil {
		rows = append(rows, []string{"key", "none"})
	} else {
		rows = append(rows, []string{"key", s.Key.ID + ", created " + s.Key.CreatedAt.Format(time.RFC3339) + ", used " + ago(s.Key.LastUsedAt)},
			[]string{"requests", fmt.Sprintf("%d in the last hour, %d in the last day", s.Key.LastHour, s.Key.LastDay)})
	}
	if s.OldKeys.Count > 0 {
		rows = append(rows, []string{"old keys", fmt.Sprintf("tried %d times, last %s from %s by %q", s.OldKeys.Count, ago(s.OldKeys.LastAt), s.OldKeys.Address, s.OldKeys.Agent)})
	}
	b.WriteString(table(rows))
	if len(s.Requests) > 0 {
		rows := [][]string{{"TIME", "METHOD", "PATH", "STATUS", "REASON", "CREDITS", "REFUNDED"}}
		for _, r := range s.Requests {
			rows = append(rows, []string{r.At.Format(time.RFC3339), r.Method, fmt.Sprintf("%q", r.Path), fmt.Sprint(r.Status), r.Reason, fmt.Sprint(r.Credits), fmt.Sprint(r.Refunded)})
		}
		b.WriteString("\n" + table(rows))
	}
	return b.String()
}

func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.Format(time.RFC3339)
}
