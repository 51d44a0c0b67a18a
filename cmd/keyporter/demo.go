package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "demo", Short: "Run a real Envoy, a small upstream and the service, and show what they answer",
		Long: `Run a real Envoy, a small upstream and the service on a throw-away SQLite database, and walk
through the decisions with real requests. A wrong answer ends it with status 1. On a terminal it
stays up afterwards. Needs the program envoy: see ENVOY, or run "make demo".`,
		Example: "  keyporter demo",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			outliveOutput()
			return demo.Run(cmd.Context(), demo.Config{
				Settings: c, Command: run, Out: a.stdout, Stay: isTerminal(os.Stdin) && isTerminal(os.Stdout),
			})
		},
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && !os.SameFile(info, null)
}
