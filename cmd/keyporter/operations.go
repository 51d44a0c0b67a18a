package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/demo"
	"github.com/keyporter/keyporter/internal/service"
	"github.com/keyporter/keyporter/store"
)

func (a *app) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the service",
		Long: `Run the service: the gRPC listener for Envoy's checks, the users' page, and the operators'
listener with /metrics, /healthz and /readyz. SIGTERM, SIGINT and SIGQUIT stop it in good order.
Logs go to standard error.

The route table (routes, cors, upstreams) and the token files are reloaded when they change, and on
SIGHUP. A mistake in them is logged, and the previous ones stay.`,
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
var ofService = []string{"database-connections", "listen-grpc", "listen-http", "listen-ops", "pprof", "grpc-token-file",
	"listen-settle", "settle-token-file", "check-timeout", "codec", "drain-delay", "upstream-preflights", "cache-size", "lease", "advertise", "migrate",
	"redis", "rate-limit-strict", "rate-limit-share", "unreported", "key-prefix", "accept-untagged", "insecure-cookies", "login-url",
	"jwt-keys", "jwt-issuer", "jwt-audience", "jwt-algorithms", "jwt-types", "jwt-keys-max-age", "jwt-claim", "jwt-cookie",
	"seal-key-file", "new-keys-per-hour", "request-log-retention", "page-path", "page-name", "page-logo-file", "page-color", "page-links", "log-level", "log-format"}

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

func (a *app) envoyCommand() *cobra.Command {
	var b bootstrap.Config
	var names []string
	cmd := &cobra.Command{
		Use: "envoy", Short: "Print the Envoy configuration that fits the route table",
		Long: `Print a complete, commented Envoy bootstrap that fits the route table. With --part, print only the parts
that your own Envoy needs, each with the place where it goes. With --grpc-token-file the output contains
the token, so keep it as secret as the token.`,
		Example: "  keyporter envoy --authz keyporter:9001 --upstream api:8000 --page keyporter:8081 > envoy.yaml\n" +
			"  keyporter envoy --upstream https://api.example.com > envoy.yaml\n" +
			"  keyporter envoy --authz keyporter:9001 --part filter,cluster,access-log",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			if b.Token, err = c.GRPCToken(); err != nil {
				return err
			}
			b.ConfigFile, b.Routes, b.Upstreams = c.File, c.Routes, c.Upstreams
			var printed []byte
			if cmd.Flags().Changed("part") {
				printed, err = bootstrap.Parts(b, names...)
			} else {
				printed, err = bootstrap.YAML(b)
			}
			if err != nil {
				return usageError{err}
			}
			return a.printYAML(c, printed)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&b.Authz, "authz", bootstrap.DefaultAuthz, "where Keyporter answers checks: HOST:PORT or unix:///PATH")
	flags.StringVar(&b.Upstream, "upstream", "", "the API (default "+bootstrap.DefaultUpstream+", or the upstream called default of the file): HOST:PORT, http://HOST[:PORT], https://HOST[:PORT], h2c://HOST:PORT (gRPC) or unix:///PATH")
	flags.StringVar(&b.UpstreamCAFile, "upstream-ca-file", "", "`PATH` where Envoy finds the authorities that may sign an https upstream's certificate; the system's if empty")
	flags.BoolVar(&b.UpstreamInsecure, "upstream-insecure", false, "do not verify an https upstream: whoever is on the way can pose as it")
	flags.StringVar(&b.Page, "page", bootstrap.DefaultPage, "Keyporter's page: HOST:PORT")
	flags.StringVar(&b.Listen, "listen", bootstrap.DefaultListen, "where Envoy takes requests: IP:PORT")
	flags.StringVar(&b.Admin, "admin", bootstrap.DefaultAdmin, "Envoy's admin interface: IP:PORT")
	flags.StringSliceVar(&names, "part", nil, "print only `PARTS` for an Envoy of your own, in this order: "+strings.Join(bootstrap.PartNames(), ","))
	config.AddFlags(flags, "grpc-token-file", "page-path")
	cmd.AddCommand(a.envoyCheckCommand())
	return cmd
}

// printYAML prints one YAML document, or, with JSON output, the same without its comments. Envoy
// reads both.
func (a *app) printYAML(c config.Config, document []byte) error {
	if c.Output != "json" {
		return a.print(c, nil, string(document))
	}
	var value any
	if err := yaml.Unmarshal(document, &value); err != nil {
		return fmt.Errorf("as JSON: %w", err)
	}
	return a.print(c, value, "")
}

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

func (a *app) healthcheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "healthcheck", Short: "Ask a running service whether it is ready, for a container's health check", Args: exactly(0),
		Example: "  keyporter healthcheck --listen-ops 127.0.0.1:9013",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			answer, err := service.AskReady(cmd.Context(), c.ListenOps)
			if err != nil {
				return fmt.Errorf("the service at %s is not ready: %w", c.ListenOps, err)
			}
			return a.print(c, map[string]bool{"ready": true}, answer)
		},
	}
	config.AddFlags(cmd.Flags(), "listen-ops")
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
