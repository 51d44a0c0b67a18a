package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/envoy/inspect"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/routes"
)

func (a *app) envoyCheckCommand() *cobra.Command {
	var ignored []string
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "check FILE|URL", Short: "Find settings in an Envoy configuration that break a promise of Keyporter",
		Long: `Find settings in an Envoy configuration that break a promise of Keyporter, with the place, the reason and
the text to paste.

FILE is a bootstrap (YAML or JSON) or a config_dump, and - is standard input. URL is the admin interface
of a running Envoy (http://HOST:PORT), which also has the configuration from a control plane, such as
Envoy Gateway or Istio, and Envoy's version. Every ext_authz filter is taken for Keyporter's. With
--config, the names of rules that routes ask for are compared with those of the route table.

Errors let a request pass without a decision, leak a credential, or prevent every decision. Warnings
concern missing refunds and missing hardening. The exit status is 1 if there are errors, else 0. --ignore
accepts a finding.`,
		Example: `  keyporter envoy check envoy.yaml
  keyporter envoy check http://127.0.0.1:9901 --output sarif > envoy.sarif
  keyporter envoy check envoy.yaml --ignore 'ext-authz-missing@static_resources.listeners[1]'`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, c, err := a.reportFormat(cmd)
			if err != nil {
				return err
			}
			leaveOut, err := parseIgnored(ignored)
			if err != nil {
				return usageError{err}
			}
			document, err := config.UnlessEnded(cmd.Context(), func() (*envoyDocument, error) {
				return readEnvoy(cmd.Context(), args[0], os.Stdin, patience)
			})
			if err != nil {
				return err
			}
			findings, err := inspect.Config(document.json, inspect.Known{Version: document.version, Names: ruleNames(c)})
			if err != nil {
				return fmt.Errorf("%s: %w", document.source, document.readable(err))
			}
			r := newEnvoyReport(document, slices.DeleteFunc(findings, leaveOut))
			if err := r.write(a.stdout, format); err != nil {
				return writeError{err}
			}
			if r.Errors > 0 {
				return errRefused
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&ignored, "ignore", nil, "leave out the findings of this `ID`, or ID@PATH for those at and below a path; may be repeated")
	flags.DurationVar(&patience, "timeout", 10*time.Second, "how much `time` the admin interface has to answer")
	flags.String("output", "text", "output `format`: text, json or sarif (KEYPORTER_OUTPUT)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "sarif"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// reportFormat returns the output format, and the configuration. Only this command also knows
// sarif.
func (a *app) reportFormat(cmd *cobra.Command) (string, config.Config, error) {
	flag := cmd.Flags().Lookup("output")
	sarif := flag.Changed && flag.Value.String() == "sarif"
	if sarif {
		flag.Changed = false // the setting does not accept this value
	}
	c, err := a.load(cmd)
	if err != nil || !sarif {
		return c.Output, c, err
	}
	return "sarif", c, nil
}

// ruleNames returns the names of rules in a configuration file. Without a file they are not known:
// nobody serves the shipped table behind an Envoy of other routes.
func ruleNames(c config.Config) []string {
	if c.File == "" {
		return nil
	}
	names := []string{}
	for _, rule := range c.Routes.Rules() {
		if rule.Name != "" {
			names = append(names, rule.Name)
		}
	}
	return names
}

// parseIgnored returns a function that reports whether a finding is to be ignored.
func parseIgnored(texts []string) (func(inspect.Finding) bool, error) {
	var known []string
	for _, rule := range inspect.Rules() {
		known = append(known, rule.ID)
	}
	for _, text := range texts {
		if id, _, _ := strings.Cut(text, "@"); !slices.Contains(known, id) {
			return nil, fmt.Errorf("--ignore: there is no finding %q%s", id, routes.Nearest(id, known))
		}
	}
	return func(f inspect.Finding) bool {
		return slices.ContainsFunc(texts, func(text string) bool {
			id, at, _ := strings.Cut(text, "@")
			below, ok := strings.CutPrefix(string(f.Path), at)
			return id == f.ID && ok && (at == "" || below == "" || below[0] == '.' || below[0] == '[')
		})
	}, nil
}

// maxEnvoyConfig bounds a configuration, in bytes. Large meshes have about ten million.
const maxEnvoyConfig = 64 << 20

// envoyDocument is a configuration of Envoy from any source.
type envoyDocument struct {
	source  string // file, or URL of an admin interface
	isFile  bool
	json    []byte
	version string // version of the running Envoy, or ""
	text    []byte // content of a file as written
}

func readEnvoy(ctx context.Context, source string, stdin io.Reader, patience time.Duration) (*envoyDocument, error) {
	if strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://") {
		return askEnvoy(ctx, source, patience)
	}
	from := stdin
	d := &envoyDocument{source: "standard input"}
	if source != "-" {
		file, err := os.Open(source)
		if err != nil {
			return nil, fmt.Errorf("reading a configuration of Envoy: %w", err)
		}
		defer file.Close()
		d, from = &envoyDocument{source: source, isFile: true}, file
	}
	var err error
	if d.text, err = readBounded(from); err != nil {
		return nil, fmt.Errorf("%s: %w", d.source, err)
	}
	if d.json, err = envoyJSON(d.text); err != nil {
		return nil, routes.SyntaxError(d.source, err)
	}
	return d, nil
}

func readBounded(from io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(from, maxEnvoyConfig+1))
	if err != nil {
		return nil, fmt.Errorf("reading a configuration of Envoy: %w", err)
	}
	if len(text) > maxEnvoyConfig {
		return nil, fmt.Errorf("larger than %d MiB, which no configuration of Envoy should be", maxEnvoyConfig>>20)
	}
	return text, nil
}

// envoyJSON converts YAML to JSON in the same way as Envoy. It leaves JSON unchanged.
func envoyJSON(text []byte) ([]byte, error) {
	if json.Valid(text) {
		return text, nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var value any
	if err := decoder.Decode(&value); errors.Is(err, io.EOF) {
		return nil, errors.New("empty")
	} else if err != nil {
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("a second document begins after ---: Envoy reads one")
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return nil, errors.New("not a configuration of Envoy: a key in it is no text")
	}
	return encoded, nil
}

// jsonPosition matches the position of a mistake in JSON. In JSON converted from YAML it is
// meaningless.
var jsonPosition = regexp.MustCompile(`\(line \d+:\d+\): `)

// readable removes positions that the reader could not look up from an error.
func (d *envoyDocument) readable(err error) error {
	if json.Valid(d.text) {
		return err
	}
	return errors.New(jsonPosition.ReplaceAllLiteralString(err.Error(), ""))
}

// askEnvoy reads the configuration from an admin interface. The version is optional, because the
// configuration also contains it, in a less exact form.
func askEnvoy(ctx context.Context, address string, patience time.Duration) (*envoyDocument, error) {
	base, err := url.Parse(address)
	if err != nil || base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		return nil, usageError{errors.New("the URL of an admin interface is http://HOST:PORT")}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d := &envoyDocument{source: base.Redacted()}
	if d.json, err = getAdmin(ctx, base, "config_dump?include_eds"); err != nil {
		return nil, err
	}
	if info, err := getAdmin(ctx, base, "server_info"); err == nil {
		var told struct{ Version string }
		if json.Unmarshal(info, &told) == nil {
			d.version = told.Version
		}
	}
	return d, nil
}

func getAdmin(ctx context.Context, base *url.URL, what string) ([]byte, error) {
	target := strings.TrimRight(base.String(), "/") + "/" + what
	shown := strings.TrimRight(base.Redacted(), "/") + "/" + what
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, usageError{errors.New("the URL of an admin interface is http://HOST:PORT")}
	}
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request) // no proxy, no redirects
	if err != nil {
		return nil, unanswered(ctx, shown, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: is this the admin interface of an Envoy?", shown, response.Status)
	}
	text, err := readBounded(response.Body)
	if err != nil {
		return nil, unanswered(ctx, shown, err)
	}
	if !json.Valid(text) {
		return nil, fmt.Errorf("%s: the answer is no JSON: is this the admin interface of an Envoy?", shown)
	}
	return text, nil
}

func unanswered(ctx context.Context, target string, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s: no answer in time: see --timeout", target)
	}
	return fmt.Errorf("%s: %w", target, err)
}
