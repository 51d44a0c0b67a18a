package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/config"
)

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
	addTLSFlags(flags, &b.TLS)
	flags.StringVar(&b.TLS.AuthzName, "authz-tls-name", "", "`NAME` in the certificate of Keyporter's gRPC port: a DNS name, an IP address or a SPIFFE ID (default the host of --authz)")
	flags.BoolVar(&b.TLS.Page, "page-tls", false, "Keyporter's page has TLS too, by the same authorities")
	flags.StringVar(&b.TLS.PageName, "page-tls-name", "", "`NAME` in the certificate of the page (default the host of --page)")
	flags.StringVar(&b.TLS.SecretsDir, "tls-secrets", "", "`FOLDER` where Envoy finds the output of envoy secret, as keyporter-ca.yaml and keyporter-client.yaml: it then reads certificates again when they change")
	flags.StringVar(&b.Listen, "listen", bootstrap.DefaultListen, "where Envoy takes requests: IP:PORT")
	flags.StringVar(&b.Admin, "admin", bootstrap.DefaultAdmin, "Envoy's admin interface: IP:PORT")
	flags.StringSliceVar(&names, "part", nil, "print only `PARTS` for an Envoy of your own, in this order: "+strings.Join(bootstrap.PartNames(), ","))
	config.AddFlags(flags, "grpc-token-file", "page-path")
	cmd.AddCommand(a.envoyCheckCommand(), a.envoySecretCommand())
	return cmd
}

// addTLSFlags adds the flags with the files by which Envoy and Keyporter know each other.
func addTLSFlags(flags *pflag.FlagSet, t *bootstrap.TLS) {
	flags.StringVar(&t.CAFile, "authz-tls-ca", "", "`PATH` where Envoy finds the authorities that sign Keyporter's certificates; none: no TLS")
	flags.StringVar(&t.CertFile, "authz-tls-cert", "", "`PATH` where Envoy finds its own certificate, which Keyporter asks for with --grpc-tls-client-ca")
	flags.StringVar(&t.KeyFile, "authz-tls-key", "", "`PATH` where Envoy finds the key of this certificate")
}

func (a *app) envoySecretCommand() *cobra.Command {
	var t bootstrap.TLS
	cmd := &cobra.Command{
		Use: "secret ca|client", Short: "Print a file by which Envoy reads certificates again when they change",
		Long: `Print a file for the folder of envoy --tls-secrets. Envoy then reads the certificates that it names again
when they change. It holds no secret itself.`,
		Example: "  keyporter envoy secret ca --authz-tls-ca /etc/envoy/tls/ca.crt > keyporter-ca.yaml\n" +
			"  keyporter envoy secret client --authz-tls-cert /etc/envoy/tls/tls.crt --authz-tls-key /etc/envoy/tls/tls.key > keyporter-client.yaml",
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load(cmd)
			if err != nil {
				return err
			}
			printed, err := bootstrap.Secret(t, args[0])
			if err != nil {
				return usageError{err}
			}
			return a.printYAML(c, printed)
		},
	}
	addTLSFlags(cmd.Flags(), &t)
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
