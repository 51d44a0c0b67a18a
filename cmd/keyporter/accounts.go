package main

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// waits is part of the help of every command that takes something away.
const waits = `

Returns once every replica enforces the change: usually within milliseconds, at most 1.05 × --lease
(3s by default) if one is unreachable.`

// optional returns the value of a flag if it was given, else nil.
func optional[T any](flags *pflag.FlagSet, name string, parse func(string) (T, error)) (*T, error) {
	flag := flags.Lookup(name)
	if !flag.Changed {
		return nil, nil
	}
	value, err := parse(flag.Value.String())
	if err != nil {
		return nil, usageError{fmt.Errorf("--%s: %w", name, err)}
	}
	return &value, nil
}

func parseText(s string) (string, error) { return s, nil }

// enumFlag adds a flag whose values the shell completes.
func enumFlag(cmd *cobra.Command, name, help string, values ...string) {
	cmd.Flags().String(name, "", fmt.Sprintf("%s: %s", help, strings.Join(values, ", ")))
	// The only error is a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// lister lists everything of one kind.
type lister[T any] interface {
	Each(context.Context) iter.Seq2[T, error]
}

// listCommand is a command that prints all things of one kind.
func listCommand[T any, L lister[T]](a *app, what string, of func(operator) L, header []string, row func(T) []string) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List " + what, Args: exactly(0),
		Example: fmt.Sprintf("  keyporter %s list\n  keyporter %[1]s list --output json", strings.TrimSuffix(what, "s")),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				return printAll(a, c, of(by).Each(ctx), header, row)
			})
		},
	}
}

// deleter deletes one of a kind.
type deleter interface {
	Delete(ctx context.Context, name string, once feed.IdempotencyKey) (operations.Committed[operations.Deleted], error)
}

// deleteCommand is a command that deletes one thing by its name.
func deleteCommand[D deleter](a *app, kind, detail string, of func(operator) D) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete " + strings.ToUpper(kind), Short: fmt.Sprintf("Delete %s", detail), Long: fmt.Sprintf("Delete %s.", detail) + waits,
		Example: fmt.Sprintf("  keyporter %s delete NAME", kind),
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				done, err := of(by).Delete(ctx, args[0], once(cmd))
				if err != nil {
					return err
				}
				return printChange(a, c, done, fmt.Sprintf("%s %s deleted\n", kind, args[0]))
			})
		},
	}
	onceFlag(cmd)
	return cmd
}

func (a *app) planCommand() *cobra.Command {
	set := &cobra.Command{
		Use: "set NAME", Short: "Create a plan, or change what the flags name",
		Long: `Create a plan, or change what the flags name. By default a new plan includes API access, 60 requests
per minute and user, and 20000 credits per month and user.` + waits,
		Example: "  keyporter plan set pro\n  keyporter plan set free --api-access=false\n  keyporter plan set pro --rate-limit 120 --credits unlimited",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := planChange(cmd.Flags())
			if err != nil {
				return err
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				done, err := by.plans.Set(ctx, args[0], change, once(cmd))
				if err != nil {
					return err
				}
				return printChange(a, c, done, fmt.Sprintf("plan %s set\n", args[0]))
			})
		},
	}
	onceFlag(set)
	flags := set.Flags()
	flags.Bool("api-access", true, "whether the plan includes API access")
	flags.String("rate-limit", "", fmt.Sprintf("requests per window and user: 0 to %d, or unlimited", directory.MaxRateLimit))
	flags.String("rate-window", "", "the window of the rate limit, such as 60s")
	flags.String("credits", "", fmt.Sprintf("credits per month: 0 to %d, or unlimited", int64(directory.MaxCredits)))
	enumFlag(set, "pool", "whose the credits are", "user", "account")
	return group("plan", "Manage plans: API access, rate limit, credits", set,
		listCommand(a, "plans", func(by operator) plans { return by.plans },
			[]string{"NAME", "API ACCESS", "RATE LIMIT", "WINDOW", "CREDITS", "POOL"}, func(p operations.Plan) []string {
				return []string{p.Name, fmt.Sprint(p.APIAccess), p.RateLimit.String(), p.RateWindow, p.Credits.String(), p.Pool}
			}),
		deleteCommand(a, "plan", "a plan that no account has", func(by operator) plans { return by.plans }))
}

func planChange(flags *pflag.FlagSet) (c directory.PlanChange, err error) {
	if c.APIAccess, err = optional(flags, "api-access", routes.ParseBool); err != nil {
		return c, err
	}
	if c.RateLimit, err = optional(flags, "rate-limit", usage.ParseLimit); err != nil {
		return c, err
	}
	if c.RateWindow, err = optional(flags, "rate-window", time.ParseDuration); err != nil {
		return c, err
	}
	if c.Credits, err = optional(flags, "credits", usage.ParseLimit); err != nil {
		return c, err
	}
	c.Pool, err = optional(flags, "pool", parseText)
	return c, err
}

func (a *app) accountCommand() *cobra.Command {
	kinds, statuses := []string{"person", "organization"}, []string{"active", "suspended", "cancelled"}
	set := &cobra.Command{
		Use: "set NAME", Short: "Create an account, or change what the flags name",
		Long:    "Create an account, or change what the flags name. A new account needs --plan." + waits,
		Example: "  keyporter account set acme --plan pro --kind organization\n  keyporter account set acme --status suspended",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var change directory.AccountChange
			for name, field := range map[string]**string{"plan": &change.Plan, "kind": &change.Kind, "status": &change.Status} {
				*field, _ = optional(cmd.Flags(), name, parseText) // any text is valid
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				done, err := by.accounts.Set(ctx, args[0], change, once(cmd))
				if err != nil {
					return err
				}
				return printChange(a, c, done, fmt.Sprintf("account %s set\n", args[0]))
			})
		},
	}
	onceFlag(set)
	set.Flags().String("plan", "", "the account's plan")
	enumFlag(set, "kind", "what the account is", kinds...)
	enumFlag(set, "status", "keys of an account open the API while it is active", statuses...)
	return group("account", "Manage accounts: a person or an organization on a plan", set,
		listCommand(a, "accounts", func(by operator) accounts { return by.accounts },
			[]string{"NAME", "KIND", "PLAN", "STATUS"}, func(s directory.Account) []string { return []string{s.Name, s.Kind, s.Plan, s.Status} }),
		deleteCommand(a, "account", "an account without users", func(by operator) accounts { return by.accounts }))
}

func (a *app) userCommand() *cobra.Command {
	set := &cobra.Command{
		Use: "set NAME", Short: "Create a user, or change what the flags name",
		Long:    "Create a user, or change what the flags name. A new user needs --account." + waits,
		Example: "  keyporter user set ada --account acme\n  keyporter user set ada --status disabled",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var change directory.UserChange
			for name, field := range map[string]**string{"account": &change.Account, "kind": &change.Kind, "status": &change.Status, "subject": &change.Subject} {
				*field, _ = optional(cmd.Flags(), name, parseText) // any text is valid
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				done, err := by.users.Set(ctx, args[0], change, once(cmd))
				if err != nil {
					return err
				}
				return printChange(a, c, done, fmt.Sprintf("user %s set\n", args[0]))
			})
		},
	}
	onceFlag(set)
	set.Flags().String("account", "", "the user's account")
	enumFlag(set, "kind", "who the user is", "person", "service")
	enumFlag(set, "status", "a disabled user's key and sessions open nothing", "active", "disabled")
	set.Flags().String("subject", "", "what your web app calls the user in its tokens (see --jwt-keys); '' for none")
	set.Flags().Lookup("subject").Annotations = map[string][]string{config.MayBeEmpty: {}}
	return group("user", "Manage users: a person or a service of an account, with one key", set, a.userShowCommand(),
		listCommand(a, "users", func(by operator) users { return by.users },
			[]string{"NAME", "KIND", "ACCOUNT", "STATUS"}, func(u directory.User) []string { return []string{u.Name, u.Kind, u.Account, u.Status} }),
		deleteCommand(a, "user", "a user with their keys and sessions", func(by operator) users { return by.users }))
}
