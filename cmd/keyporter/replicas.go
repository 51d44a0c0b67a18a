package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
)

func (a *app) replicasCommand() *cobra.Command {
	accept := &cobra.Command{
		Use: "accept-history", Short: "Let replicas resume after the database was restored or lost its last changes",
		Long: `Let replicas resume after the database lost changes: a backup was restored, or a standby took over
without the last ones. Running replicas notice this and answer 503 to everything, since keys that were
revoked after that moment are live again. Check the keys first (` + "`keyporter key list`" + `), revoke those that
must not be live, then run this command.`,
		Example: "  keyporter replicas accept-history",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.operateHere(cmd, func(ctx context.Context, c config.Config, by operations.Operator) error {
				done, err := by.Replicas().AcceptHistory(ctx)
				if err != nil {
					return err
				}
				return printChange(a, c, done, "the history of the database is accepted\n")
			})
		},
	}
	cmd := &cobra.Command{
		Use: "replicas", Short: "List the running replicas: state, last change applied, lease",
		Long: `List the running replicas. EPOCH is the last change that a replica has applied, LAG how many it has
not, LEASE LEFT how long it may answer from memory by the database's clock. SQLite does not record
renewals, so there the command makes an empty change and sees which replicas follow it.

The last line says how replicas count rate limits, according to the --redis of this command: run it with
the configuration of the replicas.`,
		Example: "  keyporter replicas\n  keyporter replicas --output json",
		Args:    usageArgs(knownCommand),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				list, err := by.replicas.List(ctx, c.Redis != "")
				if err != nil {
					return err
				}
				return a.print(c, list, replicasText(list))
			})
		},
	}
	config.AddFlags(cmd.Flags(), "redis")
	cmd.AddCommand(accept)
	return cmd
}

// replicasText returns a list of replicas as text.
func replicasText(list operations.ReplicaList) string {
	rows := [][]string{{"ID", "NAME", "ADDRESS", "VERSION", "ROUTES", "STARTED", "EPOCH", "LAG", "LEASE", "LEASE LEFT", "STATE"}}
	for _, r := range list.Replicas {
		left := "-"
		if r.LeaseLeftMS != nil {
			left = milliseconds(*r.LeaseLeftMS)
		}
		rows = append(rows, []string{r.ID, r.Name, r.Address, r.Version, cmp.Or(r.Routes, "-"), r.StartedAt.Format(time.RFC3339),
			strconv.FormatInt(int64(r.Epoch), 10), strconv.FormatInt(r.Lag, 10), milliseconds(r.LeaseMS), left, r.State})
	}
	return fmt.Sprintf("%sthe database is at epoch %d\n%s", table(rows), list.Epoch, limitsText(list.RateLimits))
}

func milliseconds(n int64) string { return (time.Duration(n) * time.Millisecond).String() }

// limitsText returns one line, or "" if there is nothing to report.
func limitsText(l operations.RateLimits) string {
	switch {
	case l.Valkey:
		return "rate limits are counted in Valkey, for all replicas together\n"
	case l.DividedBy > 1:
		return fmt.Sprintf("rate limits are divided: without --redis each of the %d replicas admits its share\n", l.DividedBy)
	}
	return ""
}
