package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
)

func (a *app) usageCommand() *cobra.Command {
	var q operations.UsageQuery
	asCSV := false
	cmd := &cobra.Command{
		Use: "usage", Short: "List the credits that accounts and users have used, by month or by day",
		Long: `List the credits that were used, by account or by user for each month, or for each day: for invoices.

Months (UTC) are exact: the sum over all users is the sum over all accounts, and the ledger's own. CHARGED
is what was used less what was refunded. UNREPORTED is the part of it without a reported outcome. LOST
credits were held by killed replicas, used or not; OUTSTANDING ones are held by running replicas, or used
and not yet reported (a second). A row without a user has the lost and outstanding credits of a pool that
the users of the account share.

Days, of the last 100, are by the time of the report: a use counts on the day on which its replica has
reported it, up to one report (a second) later, and a refund on the day on which it was made. What is
reported after the month of its charge counts on the last day of that month, so that the days of a month
add up to it. REQUESTS_BEST_EFFORT counts requests by the reason of the decision, of a user or of all: from
Envoy's access log, so some may be missing.`,
		Example: "  keyporter usage --from 2026-11 --to 2026-11 --csv > november.csv\n  keyporter usage --group-by user --account acme\n" +
			"  keyporter usage --group-by day --user ada --from 2026-11-20 --output json",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q.GroupBy = cmd.Flags().Lookup("group-by").Value.String()
			if q.User != "" && q.GroupBy == "" {
				q.GroupBy = operations.ByUser
			}
			if err := q.Check(); err != nil {
				return usageFlag(err)
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				return usageFlag(a.printUsage(c, by.usage.Each(ctx, q), q.GroupBy, asCSV))
			})
		},
	}
	cmd.Flags().StringVar(&q.From, "from", "", "the first `month`, such as 2026-11, or day; by default the month of --to")
	cmd.Flags().StringVar(&q.To, "to", "", "the last `month` or day; by default now")
	enumFlag(cmd, "group-by", "the rows, by default account, or user with --user", operations.UsageGroups...)
	cmd.Flags().StringVar(&q.Account, "account", "", "only of the account of this `name`")
	cmd.Flags().StringVar(&q.User, "user", "", "only of the user of this `name`")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "print CSV instead of a table")
	return cmd
}

// printUsage prints usage as it arrives.
func (a *app) printUsage(c config.Config, rows iter.Seq2[operations.UsageRow, error], by string, asCSV bool) error {
	header := operations.UsageColumns(by)
	if asCSV {
		return printRows(a, c, rows, &csvRows{}, header, func(r operations.UsageRow) []string { return r.Cells(by, "") })
	}
	for i, name := range header {
		header[i] = strings.ToUpper(name)
	}
	return printAll(a, c, rows, header, func(r operations.UsageRow) []string { return r.Cells(by, "-") })
}

// usageFlag names the flag of a field that is wrong.
func usageFlag(err error) error {
	if wrong := (operations.FieldError{}); errors.As(err, &wrong) {
		return usageError{fmt.Errorf("--%s: %s", strings.ReplaceAll(wrong.Field, "_", "-"), wrong.Why)}
	}
	return err
}
