package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/service"
)

func (a *app) healthcheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "healthcheck", Short: "Ask a running service whether it is ready, for a container's health check", Args: exactly(0),
		Example: "  keyporter healthcheck --listen-ops 127.0.0.1:9013",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			answer, err := service.AskReady(cmd.Context(), c)
			if err != nil {
				return fmt.Errorf("the service at %s is not ready: %w", c.ListenOps, err)
			}
			return a.print(c, map[string]bool{"ready": true}, answer)
		},
	}
	config.AddFlags(cmd.Flags(), "listen-ops", "ops-tls-cert", "ops-tls-key", "ops-tls-client-ca")
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version, the commit and the Go release that built it", Args: exactly(0),
		Example: "  keyporter version --output json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			v := service.BuildVersion()
			return a.print(c, v, v.String()+"\n")
		},
	}
}
