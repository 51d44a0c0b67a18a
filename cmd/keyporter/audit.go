package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
)

// commandActor names the operator who runs a command, for the audit.
func commandActor() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return "command:" + u.Username
	}
	// for example in a container without a user database
	return fmt.Sprintf("command:uid-%d", os.Getuid())
}

func (a *app) auditCommand() *cobra.Command {
	var f operations.AuditFilter
	cmd := &cobra.Command{
		Use: "audit", Short: "List changes: who, what and when, on the page, by command or by plain SQL",
		Long: `List who changed what and when, newest first. The actor is page:USER, command:USER, api:NAME, service,
or for plain SQL "sql" and the user of the database. An entry has the old and the new value, but no key, digest
or other secret. The database refuses to change or delete entries.`,
		Example: "  keyporter audit --name ada --since 24h\n  keyporter audit --limit 1000 --output json",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.Check(); err != nil {
				return usageError{fmt.Errorf("--%w", err)}
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				return printAll(a, c, by.audit.Each(ctx, f), []string{"TIME", "ACTOR", "ACTION", "KIND", "NAME", "DETAIL"},
					func(e directory.AuditEntry) []string {
						return []string{e.At.Format(time.RFC3339), e.Actor, e.Action, e.Kind, e.Name, string(e.Detail)}
					})
			})
		},
	}
	cmd.Flags().StringVar(&f.Name, "name", "", "only what concerns the plan, account or user of this name, and what touched many at once")
	cmd.Flags().DurationVar(&f.Since, "since", 0, "only the last time, such as 24h")
	cmd.Flags().IntVar(&f.Limit, "limit", 100, "at most so many")
	return cmd
}
