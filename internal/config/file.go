package config

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/internal/terminal"
	"github.com/keyporter/keyporter/store"
)

// maxConfigFile bounds the configuration file, in bytes. 10,000 route rules fit.
const maxConfigFile = 4 << 20

// loadFile applies the settings of a file to c and returns its mistakes, each with file, line and
// column. A missing file name is no mistake.
func loadFile(c *Config, file string) []error {
	if file == "" {
		return nil
	}
	text, err := readConfigFile(file)
	if err != nil {
		return []error{err}
	}
	d, node := routes.Read(file, text)
	if node != nil {
		readSettings(d, c, node)
	}
	return d.Problems
}

// readConfigFile does not check the size first: the reported size of a pipe or a device means
// nothing.
func readConfigFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	if len(text) > maxConfigFile {
		return nil, fmt.Errorf("%s: the file is larger than %d bytes", file, maxConfigFile)
	}
	return text, nil
}

// readSettings reads the settings of a file, including the route table.
func readSettings(d *routes.Document, c *Config, node *yaml.Node) {
	byKey := map[string]Setting{}
	keys := []string{"routes", "cors", "key_formats", "upstreams"}
	for _, s := range settings {
		byKey[s.key()] = s
		keys = append(keys, s.key())
	}
	keys = append(keys, slices.Sorted(maps.Keys(gone))...)
	d.Mapping(node, keys, func(name string, key, value *yaml.Node) {
		switch name {
		case "routes":
			c.Rules, c.places = d.Rules(value)
			c.sources["routes"] = fmt.Sprintf("%s:%d", d.File, value.Line)
			return
		case "cors":
			c.CORS, c.sources["cors"] = d.CORS(value), fmt.Sprintf("%s:%d", d.File, value.Line)
			return
		case "key_formats":
			c.KeyFormats, c.formatPlaces = d.KeyFormats(value)
			c.sources["key_formats"] = fmt.Sprintf("%s:%d", d.File, value.Line)
			return
		case "upstreams":
			readUpstreams(d, c, value)
			return
		}
		if instead, was := gone[name]; was {
			d.Complain(key, "%s: %s", name, instead)
			return
		}
		text, ok := d.Scalar(name, value)
		if !ok {
			return
		}
		if err := byKey[name].apply(c, text, fmt.Sprintf("%s:%d", d.File, key.Line)); err != nil {
			d.Complain(value, "%s: %w", name, err)
		}
	})
}

// readUpstreams reads the named upstreams: each a URL, or a URL with the settings that verify its
// certificate.
func readUpstreams(d *routes.Document, c *Config, node *yaml.Node) {
	if node.Kind != yaml.MappingNode || len(node.Content) == 0 {
		d.Complain(node, "upstreams: want lines of the form `name: URL`, at least one")
		return
	}
	upstreams := map[string]bootstrap.Upstream{}
	var names []string
	for i := 0; i < len(node.Content); i += 2 {
		names = append(names, node.Content[i].Value)
	}
	d.Mapping(node, names, func(name string, key, value *yaml.Node) {
		// The old name of the default upstream is not accepted, because rules with that name lead
		// to the default.
		if to, err := authz.ParseDestination(name); err != nil || to == authz.ToPage || to.String() != name {
			d.Complain(key, "upstreams: %.80q cannot be the name of an upstream: want lower-case letters, digits, - and _; page is Keyporter's own, and upstream another name of default", name)
			return
		}
		before := len(d.Problems)
		u := readUpstream(d, name, value)
		if err := u.Problem(); err != nil && len(d.Problems) == before {
			d.Complain(value, "upstreams: %s: %w", name, err)
		}
		upstreams[name] = u
	})
	c.Upstreams, c.sources["upstreams"] = upstreams, fmt.Sprintf("%s:%d", d.File, node.Line)
}

func readUpstream(d *routes.Document, name string, node *yaml.Node) (u bootstrap.Upstream) {
	if node.Kind != yaml.MappingNode {
		u.URL, _ = d.Scalar(name, node)
		return u
	}
	d.Mapping(node, []string{"url", "ca_file", "insecure"}, func(name string, _, value *yaml.Node) {
		switch name {
		case "url":
			u.URL, _ = d.Scalar(name, value)
		case "ca_file":
			u.CAFile, _ = d.Scalar(name, value)
		case "insecure":
			d.Parsed(name, value, func(s string) error { return setBool(&u.Insecure, s) })
		}
	})
	return u
}

// plainValue matches values that YAML reads unquoted and unchanged.
var plainValue = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9_./:@-]*$`)

func quoted(value string) string {
	if plainValue.MatchString(value) {
		return value
	}
	return strconv.Quote(value)
}

// YAML returns the effective configuration as a file, each line with the source of its value. For
// a value from a file of its own, the line names that file, since only one of the two can be set.
func (c *Config) YAML() string {
	var b strings.Builder
	for _, s := range settings {
		if c.values[s.Name+"-file"] != "" {
			continue
		}
		line := s.key() + ": " + quoted(c.shown(s))
		source := c.sources[s.Name]
		if s.of != "" && c.values[s.Name] != "" {
			source += ", which says " + terminal.Visible(c.shown(*s.twin()))
		}
		fmt.Fprintf(&b, "%-40s # %s\n", line, source)
		if s.Name == "database-connections" {
			fmt.Fprintf(&b, "# with PostgreSQL: %s\n", store.DivideConnections(c.DatabaseConnections))
		}
	}
	b.WriteString(upstreamsOf(*c) + routes.FormatCORS(c.CORS, " # "+c.sources["cors"]) + routes.FormatKeyFormats(c.KeyFormats, " # "+c.sources["key_formats"]))
	fmt.Fprintf(&b, "routes: # %s\n", c.sources["routes"])
	b.WriteString(routes.Format(c.Rules))
	return b.String()
}

// shown returns the value of a setting with its secrets masked.
func (c *Config) shown(s Setting) string {
	if s.show != nil {
		return s.show(c.values[s.Name])
	}
	return c.values[s.Name]
}

// JSON is YAML for programs: the configuration as in a file, and the source of each value.
func (c *Config) JSON() (any, error) {
	var shown map[string]any
	if err := yaml.Unmarshal([]byte(c.YAML()), &shown); err != nil {
		return nil, err
	}
	sources := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(shown)) {
		sources[name] = cmp.Or(c.sources[name], c.sources[strings.ReplaceAll(name, "_", "-")])
	}
	return struct {
		Config  map[string]any    `json:"config"`
		Sources map[string]string `json:"sources"`
	}{shown, sources}, nil
}

// upstreamsOf returns the named upstreams, if there are any.
func upstreamsOf(c Config) string {
	if len(c.Upstreams) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "upstreams: # %s\n", c.sources["upstreams"])
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		u := c.Upstreams[name]
		switch {
		case u.Insecure:
			fmt.Fprintf(&b, "  %s: {url: %q, insecure: true}\n", name, u.URL)
		case u.CAFile != "":
			fmt.Fprintf(&b, "  %s: {url: %q, ca_file: %q}\n", name, u.URL, u.CAFile)
		default:
			fmt.Fprintf(&b, "  %s: %q\n", name, u.URL)
		}
	}
	return b.String()
}
