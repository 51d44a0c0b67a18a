package main

import (
	"bytes"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

var update = flag.Bool("update", false, "rewrite docs/commands.md and the tables in docs/configuration.md")

// docs/commands.md contains the help of every command, as the program prints it.
func TestDocumentsListAllCommands(t *testing.T) {
	compareGenerated(t, "../../docs/commands.md", commandsTable())
}

// docs/configuration.md lists every setting, with its flag, variable, default and meaning.
func TestDocumentsListAllSettings(t *testing.T) {
	compareGenerated(t, "../../docs/configuration.md", settingsTables(t))
}

// compareGenerated compares the generated part of a document with the program's output; with
// -update it writes it.
func compareGenerated(t *testing.T, file, want string) {
	t.Helper()
	partstest.Generated(t, file, "go test ./cmd/keyporter -run Documents", want, *update)
}

// commandsTable returns the list of commands, followed by the help of each.
func commandsTable() string {
	var list, helps strings.Builder
	list.WriteString("| command | purpose |\n|---|---|\n")
	eachCommand((&app{}).root(), func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		fmt.Fprintf(&list, "| [`%s`](#%s) | %s |\n", strings.TrimPrefix(path, "keyporter "), strings.ReplaceAll(path, " ", "-"), cell(cmd.Short))
		fmt.Fprintf(&helps, "\n## %s\n\n```text\n%s```\n", path, helpOf(cmd))
	})
	return list.String() + helps.String()
}

// eachCommand calls f for every command that is not a group, in the order of the help.
func eachCommand(cmd *cobra.Command, f func(*cobra.Command)) {
	for _, sub := range cmd.Commands() {
		if sub.Name() == "help" || sub.Name() == "completion" {
			continue
		}
		if sub.Example != "" { // groups have no example
			f(sub)
		}
		eachCommand(sub, f)
	}
}

// helpOf returns the output of COMMAND --help without the flags that all commands share, and
// without those of serve, which are all settings.
func helpOf(cmd *cobra.Command) string {
	var out bytes.Buffer
	cmd.InitDefaultHelpFlag()
	cmd.SetOut(&out)
	if err := cmd.Help(); err != nil {
		panic(err) // a buffer accepts all writes
	}
	help, _, _ := strings.Cut(out.String(), "\nGlobal Flags:")
	if cmd.Flags().Lookup("drain-delay") != nil {
		var own pflag.FlagSet
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !isSetting(f.Name) {
				own.AddFlag(f)
			}
		})
		help, _, _ = strings.Cut(help, "\nFlags:\n")
		help += "\nFlags:\n" + own.FlagUsages() + "  and every setting of configuration.md\n"
	}
	return strings.TrimRight(help, "\n") + "\n"
}

func isSetting(name string) bool {
	return slices.ContainsFunc(config.Settings(), func(s config.Setting) bool { return s.Name == name })
}

// settingGroups are the sections of the document. Each setting is in exactly one.
var settingGroups = []struct {
	heading string
	names   []string
}{
	{"Commands on a running service", []string{"server", "token-file", "ca-file", "insecure"}},
	{"Database", []string{"database", "database-file", "database-connections", "migrate"}},
	{"Addresses", []string{"listen-grpc", "grpc-socket-mode", "grpc-socket-users", "listen-http", "listen-ops", "listen-settle", "listen-admin", "advertise"}},
	{"Tokens of the ports", []string{"grpc-token-file", "settle-token-file", "admin-tokens-file"}},
	{"TLS", []string{
		"grpc-tls-cert", "grpc-tls-key", "grpc-tls-client-ca", "grpc-tls-client-names",
		"http-tls-cert", "http-tls-key", "http-tls-client-ca", "http-tls-client-names",
		"ops-tls-cert", "ops-tls-key", "ops-tls-client-ca", "ops-tls-client-names",
		"settle-tls-cert", "settle-tls-key", "settle-tls-client-ca", "settle-tls-client-names",
		"admin-tls-cert", "admin-tls-key", "admin-tls-client-ca", "admin-tls-client-names",
		"tls-min-version",
	}},
	{"Decisions", []string{"check-timeout", "upstream-headers", "metadata", "codec", "transport", "cache-size", "lease", "drain-delay", "upstream-preflights"}},
	{"Webhooks", []string{"webhooks-file", "webhook-allow"}},
	{"Rate limits and credits", []string{"redis", "redis-file", "rate-limit-strict", "rate-limit-share", "unreported"}},
	{"Keys", []string{"key-prefix", "seal-key-file", "new-keys-per-hour"}},
	{"Sessions", []string{"login-url", "insecure-cookies", "jwt-keys", "jwt-issuer", "jwt-audience", "jwt-algorithms", "jwt-types", "jwt-keys-max-age", "jwt-claim", "jwt-cookie"}},
	{"The users' page", []string{"page-path", "page-url", "page-name", "page-logo-file", "page-color", "page-links", "request-log-retention"}},
	{"Output and log", []string{"output", "log-level", "log-format", "pprof"}},
}

func settingsTables(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	listed := map[string]bool{}
	for _, group := range settingGroups {
		fmt.Fprintf(&out, "### %s\n\n| flag | environment variable | default | meaning |\n|---|---|---|---|\n", group.heading)
		for _, name := range group.names {
			i := slices.IndexFunc(config.Settings(), func(s config.Setting) bool { return s.Name == name })
			if i < 0 || listed[name] {
				t.Fatalf("settingGroups: %q is no setting, or listed twice", name)
			}
			s := config.Settings()[i]
			listed[name] = true
			value := "–"
			if s.Default != "" {
				value = "`" + s.Default + "`"
			}
			kind, meaning := pflag.UnquoteUsage(&pflag.Flag{Usage: s.Help, Value: textValue{}})
			if kind = " " + kind; s.Toggle {
				kind = ""
			}
			fmt.Fprintf(&out, "| `--%s%s` | `%s` | %s | %s |\n", s.Name, kind, s.Variable(), value, cell(meaning))
		}
		out.WriteString("\n")
	}
	for _, s := range config.Settings() {
		if !listed[s.Name] {
			t.Errorf("settingGroups: %s is in no group", s.Name)
		}
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// textValue represents the value of any flag that is not a toggle.
type textValue struct{}

func (textValue) String() string   { return "" }
func (textValue) Set(string) error { return nil }
func (textValue) Type() string     { return "string" }

// cell escapes a text for a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "<", "&lt;", "*", "\\*").Replace(text)
}
