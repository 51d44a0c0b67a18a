package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/store"
)

func (a *app) migrateCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "migrate", Short: "Create the database, or migrate its schema", Args: exactly(0),
		Long: `Create the database, or migrate its schema. Also switches Keyporter's triggers on again where they are
off, as after pg_restore --disable-triggers.`,
		Example: "  keyporter migrate --database sqlite://keyporter.db\n  keyporter migrate --wait 1m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			if wait < 0 {
				return usageError{fmt.Errorf("--wait %v: want a time that is not negative", wait)}
			}
			db, err := store.Open(cmd.Context(), store.Config{URL: c.Database, Create: true, Migrate: true, Patience: wait, Notice: a.notice})
			if err != nil {
				return err
			}
			defer db.Close()
			return a.print(c, map[string]bool{"migrated": true}, "the database is up to date\n")
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "maximum `time` to wait for a database that is not up yet")
	return cmd
}

// notice explains on standard error why a command is waiting.
func (a *app) notice(what string, why error) {
	if why == nil {
		fmt.Fprintf(a.stderr, "keyporter: %s\n", what)
		return
	}
	fmt.Fprintf(a.stderr, "keyporter: %s: %v\n", what, why)
}
