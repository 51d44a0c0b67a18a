package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
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
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				done, err := db.AcceptHistory(ctx)
				accepted := struct {
					Accepted bool `json:"accepted"`
				}{true}
				return a.changed(c, accepted, "the history of the database is accepted\n", store.Confirmation{Confirmation: done}, err)
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
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				all, newest, err := db.Replicas(ctx)
				if err != nil {
					return err
				}
				return a.printReplicas(c, all, newest)
			})
		},
	}
	addFlags(cmd.Flags(), "redis")
	cmd.AddCommand(accept)
	return cmd
}

// shownReplica is a replica as it is printed.
type shownReplica struct {
	store.ReplicaStatus
	State       string `json:"state"`
	LeaseMS     int64  `json:"lease_ms"`
	LeaseLeftMS *int64 `json:"lease_left_ms"` // null if unknown
}

func (a *app) printReplicas(c config, all []store.ReplicaStatus, newest lease.Epoch) error {
	rows := [][]string{{"ID", "NAME", "ADDRESS", "VERSION", "ROUTES", "STARTED", "EPOCH", "LAG", "LEASE", "LEASE LEFT", "STATE"}}
	shown := make([]shownReplica, len(all))
	for i, r := range all {
		one := shownReplica{ReplicaStatus: r, State: "silent", LeaseMS: r.Life.Milliseconds()}
		if r.Live() {
			one.State = "live"
		}
		left := "-"
		if d, ok := r.Left(); ok {
			ms := d.Milliseconds()
			one.LeaseLeftMS, left = &ms, d.Round(time.Millisecond).String()
		}
		shown[i] = one
		rows = append(rows, []string{r.ID, r.Name, r.Address, r.Version, cmp.Or(r.Routes, "-"), r.StartedAt.Format(time.RFC3339),
			strconv.FormatInt(int64(r.Epoch), 10), strconv.FormatInt(r.Lag, 10), r.Life.String(), left, one.State})
	}
	limits := limitsOf(c, all)
	result := struct {
		Epoch      lease.Epoch    `json:"epoch"`
		RateLimits shownLimits    `json:"rate_limits"`
		Replicas   []shownReplica `json:"replicas"`
	}{newest, limits, shown}
	return a.print(c, result, fmt.Sprintf("%sthe database is at epoch %d\n%s", table(rows), newest, limits))
}

// shownLimits describes the scope of rate limits, as it is printed.
type shownLimits struct {
	Valkey    bool `json:"valkey"`
	DividedBy int  `json:"divided_by"` // 1: limits are exact
}

func limitsOf(c config, all []store.ReplicaStatus) shownLimits {
	limits := shownLimits{Valkey: c.Redis != "", DividedBy: 1}
	if limits.Valkey {
		return limits
	}
	live := 0
	for _, r := range all {
		if r.Live() {
			live++
		}
	}
	limits.DividedBy = max(1, live)
	return limits
}

// String returns one line, or "" if there is nothing to report.
func (l shownLimits) String() string {
	switch {
	case l.Valkey:
		return "rate limits are counted in Valkey, for all replicas together\n"
	case l.DividedBy > 1:
		return fmt.Sprintf("rate limits are divided: without --redis each of the %d replicas admits its share\n", l.DividedBy)
	}
	return ""
}
