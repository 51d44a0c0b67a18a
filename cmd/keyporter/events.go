package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
)

func (a *app) eventsCommand() *cobra.Command {
	return group("events", "List events for webhooks, and send them again", a.eventsListCommand(), a.eventsRetryCommand(), a.eventsEndpointsCommand())
}

func (a *app) eventsListCommand() *cobra.Command {
	var f operations.EventFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List events for webhooks and what became of them",
		Long: `List events for webhooks, oldest first. Delivered events are kept for three days, all others for seven.
An event that was put aside was refused for a day.`,
		Example: "  keyporter events list --state aside\n  keyporter events list --endpoint billing --output json",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.Check(); err != nil {
				return usageError{fmt.Errorf("--%w", err)}
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				return printAll(a, c, by.events.Each(ctx, f), []string{"ID", "TIME", "ENDPOINT", "TYPE", "STATE", "ATTEMPTS", "PROBLEM", "DATA"},
					func(e operations.Event) []string {
						return []string{e.ID, e.At.Format(time.RFC3339), e.Endpoint, e.Type, e.State, strconv.FormatInt(e.Attempts, 10), e.Problem, string(e.Data)}
					})
			})
		},
	}
	cmd.Flags().StringVar(&f.Endpoint, "endpoint", "", "only events for the endpoint of this name")
	cmd.Flags().StringVar(&f.State, "state", "", "only events in this state: pending, delivered or aside")
	return cmd
}

func (a *app) eventsRetryCommand() *cobra.Command {
	var endpoint string
	cmd := &cobra.Command{
		Use: "retry [ID]", Short: "Send an event again, or all of an endpoint that were not delivered",
		Long: `Send an event again at once, also a delivered one, with the same id. With --endpoint, enable the endpoint
and send all its events again that were put aside or wait after a failure.`,
		Example: "  keyporter events retry evt_17_5d41402abc4b2a765d41402abc4b2a76\n  keyporter events retry --endpoint billing",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (endpoint != "") {
				return usageError{errors.New("name an event or, with --endpoint, an endpoint")}
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) (err error) {
				var done operations.Committed[operations.Retried]
				if endpoint != "" {
					done, err = by.events.RetryEndpoint(ctx, endpoint, once(cmd))
				} else {
					done, err = by.events.Retry(ctx, args[0], once(cmd))
				}
				if err != nil {
					return err
				}
				return a.print(c, done, fmt.Sprintf("%d sent again\n", done.Result.Events))
			})
		},
	}
	onceFlag(cmd)
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "the endpoint whose events are sent again")
	return cmd
}

func (a *app) eventsEndpointsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "endpoints", Short: "List the webhooks and what waits for them",
		Long: `List the webhooks that the replicas have: enabled, disabled since it answered 410 Gone, or removed from
the configuration while events for it are kept. LAG is the age of the oldest event that waits.`,
		Example: "  keyporter events endpoints",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				list, err := by.events.Endpoints(ctx)
				if err != nil {
					return err
				}
				rows := [][]string{{"NAME", "STATE", "PENDING", "ASIDE", "LAG"}}
				for _, w := range list.Webhooks {
					lag := time.Duration(w.LagSeconds * float64(time.Second)).Round(time.Second)
					rows = append(rows, []string{w.Name, w.State, strconv.FormatInt(w.Pending, 10), strconv.FormatInt(w.Aside, 10), lag.String()})
				}
				return a.print(c, list, table(rows))
			})
		},
	}
}
