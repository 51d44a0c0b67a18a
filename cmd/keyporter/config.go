package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Print the effective configuration and the source of each value", Args: exactly(0),
		Example: "  keyporter config show\n  keyporter config show --config keyporter.yaml --output json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			value, err := c.JSON()
			if err != nil {
				return err
			}
			return a.print(c, value, c.YAML())
		},
	}
	config.AddFlags(show.Flags(), ofService...)
	return group("config", "Check or print the configuration", a.configCheckCommand(), show)
}

func (a *app) configCheckCommand() *cobra.Command {
	var connect bool
	cmd := &cobra.Command{
		Use: "check", Short: "Check the configuration, and print every mistake with file, line and column", Args: exactly(0),
		Long: `Check the configuration, and print every mistake with file, line and column. It also reads the files
that the configuration names: tokens, keys and the logo.

With --connect it also connects to the database, to Valkey and to the URL of --jwt-keys, and reports
missing rights and a wrong schema. It changes nothing.

If neither --redis nor --rate-limit-share is set and the database is reachable, several live replicas in
its list are a mistake, since they would divide every rate limit among them. Before the first replica
runs this cannot be seen; the log of each replica says it later.`,
		Example: "  keyporter config check --config keyporter.yaml\n  keyporter config check --config keyporter.yaml --connect",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd, (*config.Config).CheckPage, (*config.Config).CheckFiles)
			if usage := (usageError{}); errors.As(err, &usage) {
				return usage.err // the command line itself was valid
			}
			if err != nil {
				return err
			}
			if connect {
				err = c.Connect(cmd.Context())
			}
			if err := errors.Join(err, c.CheckShares(cmd.Context())); err != nil {
				return err
			}
			c.Warnings = append(c.Warnings, c.LooseFiles(config.OthersRead|config.OthersWrite)...)
			for _, warning := range c.Warnings {
				fmt.Fprintln(a.stderr, "warning:", warning)
			}
			return a.print(c, struct {
				OK       bool     `json:"ok"`
				Warnings []string `json:"warnings"`
			}{true, append([]string{}, c.Warnings...)}, "ok\n")
		},
	}
	cmd.Flags().BoolVar(&connect, "connect", false, "connect to the database, to Valkey and to the URL of --jwt-keys")
	config.AddFlags(cmd.Flags(), ofService...)
	return cmd
}
