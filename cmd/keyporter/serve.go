package main

import (
	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/service"
)

func (a *app) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the service",
		Long: `Run the service: the gRPC listener for Envoy's checks, the users' page, the listener with /metrics,
/healthz and /readyz, and with --listen-admin the operators' API. SIGTERM, SIGINT and SIGQUIT stop it in
good order. Logs go to standard error.

The route table (routes, cors, upstreams) and the token files are reloaded when they change, and on
SIGHUP; the webhooks when their files change. A mistake in them is logged, and the previous ones stay.`,
		Example: "  keyporter serve --database postgres://keyporter:secret@db:5432/keyporter?sslmode=verify-full",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd, (*config.Config).CheckPage)
			if err != nil {
				return service.EndedEarly(cmd.Context(), err, service.NewLogger(c, a.stderr))
			}
			s := service.Config{
				Settings: c, Logs: a.stderr,
				Reload: func() (config.Config, error) { return a.loadAgain(cmd, (*config.Config).CheckPage) },
			}
			if a.signals != nil {
				s.Hangups = a.signals.hangups
			}
			outliveOutput()
			return service.EndedEarly(cmd.Context(), service.Run(cmd.Context(), s), service.NewLogger(c, a.stderr))
		},
	}
	config.AddFlags(cmd.Flags(), ofService...)
	return cmd
}

// ofService are settings of serve that config check and config show also accept.
var ofService = []string{"database-connections", "listen-grpc", "grpc-socket-mode", "grpc-socket-users", "listen-http", "listen-ops", "pprof", "grpc-token-file",
	"listen-settle", "settle-token-file", "listen-admin", "admin-tokens-file", "webhooks-file", "webhook-allow", "check-timeout", "upstream-headers", "metadata", "codec", "transport", "drain-delay", "upstream-preflights", "cache-size", "lease", "advertise", "migrate",
	"redis", "rate-limit-strict", "rate-limit-share", "unreported", "key-prefix", "insecure-cookies", "login-url",
	"jwt-keys", "jwt-issuer", "jwt-audience", "jwt-algorithms", "jwt-types", "jwt-keys-max-age", "jwt-claim", "jwt-cookie",
	"seal-key-file", "new-keys-per-hour", "request-log-retention", "page-path", "page-url", "page-name", "page-logo-file", "page-color", "page-links", "log-level", "log-format",
	"grpc-tls-cert", "grpc-tls-key", "grpc-tls-client-ca", "grpc-tls-client-names",
	"http-tls-cert", "http-tls-key", "http-tls-client-ca", "http-tls-client-names",
	"ops-tls-cert", "ops-tls-key", "ops-tls-client-ca", "ops-tls-client-names",
	"settle-tls-cert", "settle-tls-key", "settle-tls-client-ca", "settle-tls-client-names",
	"admin-tls-cert", "admin-tls-key", "admin-tls-client-ca", "admin-tls-client-names",
	"tls-min-version"}
