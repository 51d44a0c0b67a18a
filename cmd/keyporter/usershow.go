package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
)

func (a *app) userShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show what the user's page shows, without the key",
		Long: `Show what the user's page shows, without the key: whose plan it is, the key, this month's credits, the
last 30 days and the recent requests. Only the running replicas know how much of the rate limit is in use.`,
		Example: "  keyporter user show ada",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				shown, err := by.users.Show(ctx, args[0])
				if err != nil {
					return err
				}
				return a.print(c, shown, userText(shown))
			})
		},
	}
}

// userText returns a user as text.
func userText(s *operations.User) string {
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
