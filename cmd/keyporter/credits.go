package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/usage"
)

func (a *app) creditsCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show USER", Short: "Show a user's credits of this month",
		Long: `Show a user's credits of this month (UTC, by the clock of the database). OUTSTANDING credits are held by
running replicas, or used and not yet reported, which takes a second. LOST credits were held by replicas
that were killed; they count as used. UNREPORTED credits were charged for requests whose outcome no access
log has reported (see --unreported of serve).`,
		Example: "  keyporter credits show ada\n  keyporter credits show ada --output json",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				b, err := by.credits.Balance(ctx, args[0])
				if err != nil {
					return err
				}
				return a.printBalance(c, b)
			})
		},
	}
	grant := &cobra.Command{
		Use: "grant USER N", Short: "Grant a user extra credits for this month",
		Long: `Grant extra credits for this month. They go to the pool that the user's plan takes credits from: the
user's own, or the one that all users of the account share.

Returns once every replica knows of them.`,
		Example: "  keyporter credits grant ada 500 --idempotency-key invoice-1234",
		Args:    exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			credits, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("%q is not a number of credits from 1 on", args[1])}
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				done, err := by.credits.Grant(ctx, args[0], credits, once(cmd))
				if err != nil {
					return err
				}
				return printChange(a, c, done, fmt.Sprintf("user %s has %d credits more this month\n", args[0], credits))
			})
		},
	}
	onceFlag(grant)
	return group("credits", "Show, grant and list credits", show, grant, a.statementCommand())
}

func (a *app) printBalance(c config.Config, b operations.Balance) error {
	return a.print(c, b, table([][]string{
		{"USER", "POOL", "MONTH", "LIMIT", "USED", "REMAINING", "REFUNDED", "OUTSTANDING", "LOST", "UNREPORTED", "RESETS"},
		{b.User, b.Pool, b.Month, b.Limit.String(), fmt.Sprint(b.Used), b.Remaining.String(), fmt.Sprint(b.Refunded),
			fmt.Sprint(b.Outstanding), fmt.Sprint(b.Lost), fmt.Sprint(b.Unreported), b.Resets.Format(time.DateOnly)},
	}))
}

func (a *app) statementCommand() *cobra.Command {
	account := ""
	cmd := &cobra.Command{
		Use: "statement [USER]", Short: "Print what happened to the credits of a user or an account in a month, as CSV",
		Long: `Print a month of the credits of a user, or of all users of an account, as CSV: the sum of what was used,
as a negative number, and every grant and every refund with its cause. A user has a sum for each account,
an account one for each user. Of grants an account has those to the pool that its users share.`,
		Example: "  keyporter credits statement ada --month 2026-11 > ada.csv\n  keyporter credits statement --account acme",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (account != "") {
				return usageError{fmt.Errorf("whose statement? Give a user or --account\nusage: %s", cmd.UseLine())}
			}
			month, err := optional(cmd.Flags(), "month", usage.ParseMonth)
			if err != nil {
				return err
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				list, name := by.credits.AccountStatement, account
				if len(args) == 1 {
					list, name = by.credits.Statement, args[0]
				}
				postings, month, err := list(ctx, name, month)
				if err != nil {
					return err
				}
				return printRows(a, c, postings, &csvRows{}, []string{"account", "user", "month", "time", "entry", "credits", "detail"}, func(p operations.Posting) []string {
					at := ""
					if p.At != nil {
						at = p.At.Format(time.RFC3339Nano)
					}
					return []string{p.Account, p.User, month.String(), at, p.Entry, strconv.FormatInt(p.Credits, 10), p.Detail}
				})
			})
		},
	}
	cmd.Flags().String("month", "", "the `month`, such as 2026-11; by default this one")
	cmd.Flags().StringVar(&account, "account", "", "of all users of the account of this `name`")
	return cmd
}

func (a *app) ledgerCommand() *cobra.Command {
	verify := &cobra.Command{
		Use: "verify", Short: "Check that the ledger of credits adds up",
		Long: `Check every pool of every month: granted = used - refunded + leased + free, no part negative, and each
figure is the sum of its parts. Names the pools that fail; then the exit status is 1. It reads one
snapshot and locks nothing, so it is safe at any time.`,
		Example: "  keyporter ledger verify",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				v, err := by.credits.Verify(ctx)
				if err != nil {
					return err
				}
				return a.printLedger(c, v)
			})
		},
	}
	return group("ledger", "Check the ledger of credits", verify)
}

func (a *app) printLedger(c config.Config, v operations.Verification) error {
	text := fmt.Sprintf("the ledger adds up: %d pools checked\n", v.Checked)
	if len(v.Wrong) > 0 {
		var b strings.Builder
		for _, d := range v.Wrong {
			fmt.Fprintln(&b, d)
		}
		text = fmt.Sprintf("%s%d of %d pools do not add up\n", b.String(), len(v.Wrong), v.Checked)
	}
	if err := a.print(c, v, text); err != nil {
		return err
	}
	if len(v.Wrong) > 0 {
		return errRefused
	}
	return nil
}
