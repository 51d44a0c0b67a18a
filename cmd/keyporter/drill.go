package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/drill"
	"github.com/keyporter/keyporter/store"
)

func (a *app) drillCommand() *cobra.Command {
	var rounds int
	var addresses []string
	revoke := &cobra.Command{
		Use: "revoke", Short: "Measure how fast every replica refuses a regenerated key",
		Long: `Measure how fast every running replica refuses a regenerated key. Makes a plan, an account, a user and
a key of its own, regenerates the key again and again while it asks every replica for the old one, as
Envoy would, and deletes all of it at the end. It is safe in production: it touches nobody else's keys.
Exit status 1 if a replica allowed an old key in a request that was sent after the regeneration had
returned, or refused a new one.

It asks replicas at the addresses on their list (` + "`keyporter replicas`" + `). If those are not reachable from
here, set --advertise of serve, or name them with --replica.`,
		Example: "  keyporter drill revoke\n  keyporter drill revoke --rounds 1000 --replica 10.0.0.7:9001 --replica 10.0.0.8:9001",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rounds < 1 {
				return usageError{errors.New("--rounds: want at least 1")}
			}
			return a.withStore(cmd, func(ctx context.Context, c config.Config, db *store.DB) error {
				report, err := drill.Revoke(ctx, drill.Config{Settings: c, DB: db.As(commandActor()), Rounds: rounds, Addresses: addresses})
				if report != nil {
					err = errors.Join(a.reportDrill(c, report), err)
				}
				return err
			})
		},
	}
	revoke.Flags().IntVar(&rounds, "rounds", 100, "how often the key is regenerated")
	revoke.Flags().StringArrayVar(&addresses, "replica", nil, "`address` of a replica's gRPC listener; may be repeated; by default those on the list")
	config.AddFlags(revoke.Flags(), "key-prefix", "grpc-token-file")
	return group("drill", "Measure a promise on the running service", revoke)
}

// reportDrill prints the measurements, and fails if the promise was broken.
func (a *app) reportDrill(c config.Config, r *drill.Report) error {
	rows := [][]string{{"REPLICA", "OLD KEY ALLOWED WHILE IT RAN", "ASKED AFTER IT RETURNED", "ALLOWED AFTER IT RETURNED"}}
	for _, one := range r.Replicas {
		rows = append(rows, []string{one.Address, fmt.Sprint(one.Before), fmt.Sprint(one.After), fmt.Sprint(one.Allowed)})
	}
	result := struct {
		Rounds       int              `json:"rounds"`
		Replicas     []*drill.Replica `json:"replicas"`
		ReturnedUS   [3]int64         `json:"returned_us"` // p50, p99, max
		WorstDeadUS  int64            `json:"worst_time_to_dead_us"`
		AskedAfter   int64            `json:"old_key_asked_after_return"`
		AllowedAfter int64            `json:"old_key_allowed_after_return"`
	}{r.Rounds, r.Replicas, [3]int64{r.Median.Microseconds(), r.P99.Microseconds(), r.Slowest.Microseconds()}, r.WorstDead.Microseconds(), r.AskedAfter, r.AllowedAfter}
	text := fmt.Sprintf("%s\nregenerated %d times: returned after %v (median), %v (99 %%), %v (worst)\nworst time to dead: %v after a call began an old key was allowed for the last time\n"+
		"old keys after the return: %d requests, %d allowed\n",
		table(rows), result.Rounds, round(r.Median), round(r.P99), round(r.Slowest), round(r.WorstDead), r.AskedAfter, r.AllowedAfter)
	if err := a.print(c, result, text); err != nil {
		return err
	}
	if r.AllowedAfter > 0 {
		return fmt.Errorf("the promise was broken: %d of %d requests with an old key were allowed after the regeneration had returned", r.AllowedAfter, r.AskedAfter)
	}
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
