package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
)

// maxConfigFile is the size of the largest configuration file that is read, in bytes. 10,000 route
// rules fit.
const maxConfigFile = 4 << 20

// document is a configuration file while it is read. All its mistakes are collected.
type document struct {
	file     string
	problems []error
}

// loadFile puts the settings of a file into c and returns its mistakes, each with file, line and
// column. No file is no mistake.
func loadFile(c *config, file string) []error {
	if file == "" {
		return nil
	}
	text, err := readConfigFile(file)
	if err != nil {
		return []error{err}
	}
	var node yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&node); errors.Is(err, io.EOF) {
		return nil // empty, or comments only
	} else if err != nil {
		return []error{syntaxError(file, err)}
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return []error{fmt.Errorf("%s: a second document begins after ---: put everything into one", file)}
	}
	if len(node.Content) == 0 {
		return nil
	}
	d := &document{file: file}
	d.root(c, node.Content[0])
	return d.problems
}

// readConfigFile does not ask for the size first: that of a pipe or a device says nothing.
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

// syntaxError is a mistake that keeps the file from being read as YAML. Bytes that are no text have
// no line.
func syntaxError(file string, err error) error {
	wrong := (*yaml.LoadError)(nil)
	if !errors.As(err, &wrong) || wrong.Mark.Line == 0 {
		return fmt.Errorf("%s: %w", file, err)
	}
	return fmt.Errorf("%s:%d:%d: %s", file, wrong.Mark.Line, wrong.Mark.Column, wrong.Message)
}

func (d *document) complain(n *yaml.Node, format string, args ...any) {
	d.problems = append(d.problems, fmt.Errorf("%s:%d:%d: %w", d.file, n.Line, n.Column, fmt.Errorf(format, args...)))
}

func (d *document) root(c *config, node *yaml.Node) {
	byKey := map[string]setting{}
	keys := []string{"routes", "cors", "upstreams"}
	for _, s := range settings {
		byKey[s.key()] = s
		keys = append(keys, s.key())
	}
	d.mapping(node, keys, func(name string, key, value *yaml.Node) {
		switch name {
		case "routes":
			d.routes(c, value)
			return
		case "cors":
			d.cors(c, value)
			return
		case "upstreams":
			d.upstreams(c, value)
			return
		}
		text, ok := d.scalar(name, value)
		if !ok {
			return
		}
		if err := byKey[name].apply(c, text, fmt.Sprintf("%s:%d", d.file, key.Line)); err != nil {
			d.complain(value, "%s: %w", name, err)
		}
	})
}

// upstreams reads the servers that rules lead to by name: each a URL, or one with what its certificate is
// verified by.
func (d *document) upstreams(c *config, node *yaml.Node) {
	if node.Kind != yaml.MappingNode || len(node.Content) == 0 {
		d.complain(node, "upstreams: want lines of the form `name: URL`, at least one")
		return
	}
	upstreams := map[string]envoy.Upstream{}
	var names []string
	for i := 0; i < len(node.Content); i += 2 {
		names = append(names, node.Content[i].Value)
	}
	d.mapping(node, names, func(name string, key, value *yaml.Node) {
		if to, err := authz.ParseDestination(name); err != nil || to == authz.ToPage {
			d.complain(key, "upstreams: %.80q cannot be the name of an upstream: want lower-case letters, digits, - and _; page is Keyporter's own", name)
			return
		}
		before := len(d.problems)
		u := d.upstream(name, value)
		if err := u.Problem(); err != nil && len(d.problems) == before {
			d.complain(value, "upstreams: %s: %w", name, err)
		}
		upstreams[name] = u
	})
	c.Upstreams, c.sources["upstreams"] = upstreams, fmt.Sprintf("%s:%d", d.file, node.Line)
}

func (d *document) upstream(name string, node *yaml.Node) (u envoy.Upstream) {
	if node.Kind != yaml.MappingNode {
		u.URL, _ = d.scalar(name, node)
		return u
	}
	d.mapping(node, []string{"url", "ca_file", "insecure"}, func(name string, _, value *yaml.Node) {
		switch name {
		case "url":
			u.URL, _ = d.scalar(name, value)
		case "ca_file":
			u.CAFile, _ = d.scalar(name, value)
		case "insecure":
			d.parsed(name, value, func(s string) error { return setBool(&u.Insecure, s) })
		}
	})
	return u
}

// cors reads what pages of other origins may do.
func (d *document) cors(c *config, node *yaml.Node) {
	before := len(d.problems)
	var cors authz.CORS
	places := map[string]*yaml.Node{} // setting → its value
	d.mapping(node, []string{"origins", "headers", "max_age"}, func(name string, _, value *yaml.Node) {
		places[name] = value
		switch name {
		case "origins":
			cors.Origins = d.texts(name, value)
		case "headers":
			cors.Headers = d.texts(name, value)
		case "max_age":
			d.parsed(name, value, func(s string) (err error) { cors.MaxAge, err = time.ParseDuration(s); return err })
		}
	})
	if len(d.problems) > before {
		return
	}
	for _, problem := range cors.Problems() {
		name, _, _ := strings.Cut(problem.Error(), ":")
		place := places[name]
		if place == nil {
			place = node
		}
		d.complain(place, "cors: %w", problem)
	}
	if len(d.problems) > before {
		return
	}
	c.CORS, c.sources["cors"] = cors, fmt.Sprintf("%s:%d", d.file, node.Line)
}

// mapping calls each for the entries of a mapping that are known, and complains about the others.
func (d *document) mapping(node *yaml.Node, known []string, each func(name string, key, value *yaml.Node)) {
	if node.Kind != yaml.MappingNode {
		d.complain(node, "want lines of the form `name: value`")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		switch line, again := seen[key.Value]; {
		case !slices.Contains(known, key.Value):
			d.complain(key, "%.80q: there is no such setting%s", key.Value, nearest(key.Value, known))
		case again:
			d.complain(key, "%s: set already in line %d", key.Value, line)
		case value.Kind == yaml.AliasNode:
			d.complain(value, "%s: aliases are not supported", key.Value)
		default:
			seen[key.Value] = key.Line
			each(key.Value, key, value)
		}
	}
}

func (d *document) scalar(name string, node *yaml.Node) (string, bool) {
	if node.Kind != yaml.ScalarNode || node.Tag == "!!null" {
		d.complain(node, "%s: want a single value", name)
		return "", false
	}
	return node.Value, true
}

// routes reads the rules of the route table. One entry may name one path or several. The table itself is made when
// all settings are known: see [config.makeRoutes].
func (d *document) routes(c *config, node *yaml.Node) {
	if node.Kind != yaml.SequenceNode || len(node.Content) == 0 {
		d.complain(node, "routes: want a list of rules, at least one")
		return
	}
	for _, entry := range node.Content {
		for _, rule := range d.rules(entry) {
			c.Rules = append(c.Rules, rule)
			c.places = append(c.places, fmt.Sprintf("%s:%d:%d", d.file, entry.Line, entry.Column))
		}
	}
	c.sources["routes"] = fmt.Sprintf("%s:%d", d.file, node.Line)
}

// ruleKeys are the settings of a rule.
var ruleKeys = []string{"paths", "name", "hosts", "kind", "methods", "rewrite", "to", "cost", "refund", "answer", "encoded", "cors", "timeout", "idle_timeout", "max_duration"}

// rules reads one entry of the route table: a rule for each of its paths.
func (d *document) rules(node *yaml.Node) []authz.Rule {
	var rule authz.Rule
	var paths []string
	kind := false
	d.mapping(node, ruleKeys, func(name string, _, value *yaml.Node) {
		switch name {
		case "paths":
			paths = d.texts(name, value)
		case "name":
			rule.Name, _ = d.scalar(name, value)
		case "hosts":
			rule.Hosts = d.texts(name, value)
		case "methods":
			rule.Methods = d.texts(name, value)
		case "rewrite":
			rule.Rewrite, _ = d.scalar(name, value)
		case "kind":
			kind = true
			d.parsed(name, value, func(s string) (err error) { rule.Kind, err = authz.ParseKind(s); return err })
		case "to":
			d.parsed(name, value, func(s string) (err error) { rule.To, err = authz.ParseDestination(s); return err })
		case "cost":
			d.parsed(name, value, func(s string) (err error) { rule.Cost, err = parseCost(s); return err })
		case "refund":
			rule.Refund = d.refund(value)
		case "answer":
			d.parsed(name, value, func(s string) (err error) { rule.Answer, err = authz.ParseAnswer(s); return err })
		case "encoded":
			d.parsed(name, value, func(s string) error { return setBool(&rule.Encoded, s) })
		case "cors":
			d.parsed(name, value, func(s string) (err error) { rule.CORS, err = authz.ParseRuleCORS(s); return err })
		case "timeout":
			d.span(name, value, &rule.Timeout)
		case "idle_timeout":
			d.span(name, value, &rule.IdleTimeout)
		case "max_duration":
			d.span(name, value, &rule.MaxDuration)
		}
	})
	switch {
	case node.Kind != yaml.MappingNode:
		return nil
	case !kind || len(paths) == 0 && rule.Name == "":
		d.complain(node, "a rule needs `paths`, or a `name` that routes of your own Envoy ask for, and `kind`")
	case len(paths) > 0 && rule.Name != "":
		d.complain(node, "a rule has `paths` or a `name`, not both")
		return nil
	case rule.Name != "":
		return []authz.Rule{rule}
	}
	rules := make([]authz.Rule, len(paths))
	for i, path := range paths {
		rules[i] = rule
		rules[i].Path = path
	}
	return rules
}

func (d *document) span(name string, node *yaml.Node, to *authz.Span) {
	d.parsed(name, node, func(s string) (err error) { *to, err = authz.ParseSpan(s); return err })
}

func parseCost(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || n > authz.MaxCost {
		return 0, fmt.Errorf("%.80q is not a number from 1 to %d", s, authz.MaxCost)
	}
	return n, nil
}

// refund reads when credits come back: a word, or the statuses with which they do.
func (d *document) refund(node *yaml.Node) (refund authz.Refund) {
	if node.Kind != yaml.MappingNode {
		d.parsed("refund", node, func(s string) (err error) { refund, err = authz.ParseRefund(s); return err })
		return refund
	}
	if len(node.Content) == 0 {
		d.complain(node, "refund: want never, upstream_failure or {codes: [500, 503]}")
	}
	d.mapping(node, []string{"codes"}, func(name string, _, value *yaml.Node) {
		for _, text := range d.texts(name, value) {
			code, err := strconv.Atoi(text)
			if err != nil || code < 400 || code > 599 {
				d.complain(value, "codes: %.80q is no status from 400 to 599", text)
				continue
			}
			refund.Codes = append(refund.Codes, code)
		}
	})
	return refund
}

func (d *document) parsed(name string, node *yaml.Node, parse func(string) error) {
	text, ok := d.scalar(name, node)
	if !ok {
		return
	}
	if err := parse(text); err != nil {
		d.complain(node, "%s: %w", name, err)
	}
}

// texts reads a list of values, or one value that stands alone.
func (d *document) texts(name string, node *yaml.Node) []string {
	if node.Kind == yaml.ScalarNode {
		node = &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{node}}
	}
	if node.Kind != yaml.SequenceNode {
		d.complain(node, "%s: want a list", name)
		return nil
	}
	if len(node.Content) == 0 {
		d.complain(node, "%s: the list is empty: leave the line out to name none", name)
	}
	var all []string
	for _, item := range node.Content {
		if text, ok := d.scalar(name, item); ok {
			all = append(all, text)
		}
	}
	return all
}

// plainValue is a value that YAML reads as it stands.
var plainValue = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9_./:@-]*$`)

func quoted(value string) string {
	if plainValue.MatchString(value) {
		return value
	}
	return strconv.Quote(value)
}

// yamlOf is the effective configuration as a file, each line with where its value comes from.
func yamlOf(c config) string {
	var b strings.Builder
	for _, s := range settings {
		value := c.values[s.name]
		if s.show != nil {
			value = s.show(value)
		}
		fmt.Fprintf(&b, "%-40s # %s\n", s.key()+": "+quoted(value), c.sources[s.name])
	}
	b.WriteString(upstreamsOf(c) + corsOf(c, " # "+c.sources["cors"]))
	fmt.Fprintf(&b, "routes: # %s\n", c.sources["routes"])
	b.WriteString(routesOf(c))
	return b.String()
}

// routesOf are the rules, a line each.
func routesOf(c config) string {
	var b strings.Builder
	for _, r := range c.Rules {
		if r.Name != "" {
			fmt.Fprintf(&b, "  - {name: %q, kind: %s", r.Name, r.Kind)
		} else {
			fmt.Fprintf(&b, "  - {paths: %q, kind: %s", r.Path, r.Kind)
		}
		if len(r.Hosts) > 0 {
			fmt.Fprintf(&b, ", hosts: %s", listOf(r.Hosts))
		}
		if len(r.Methods) > 0 {
			fmt.Fprintf(&b, ", methods: [%s]", strings.Join(r.Methods, ", "))
		}
		if r.Rewrite != "" {
			fmt.Fprintf(&b, ", rewrite: %q", r.Rewrite)
		}
		if r.To != authz.ToUpstream {
			fmt.Fprintf(&b, ", to: %s", r.To)
		}
		if r.Encoded {
			b.WriteString(", encoded: true")
		}
		if r.CORS != authz.CORSTable {
			fmt.Fprintf(&b, ", cors: %s", r.CORS)
		}
		b.WriteString(meteringOf(r) + timesOf(r))
		b.WriteString("}\n")
	}
	return b.String()
}

// corsOf is what pages of other origins may do, if anything, and behind its name where that comes from.
func corsOf(c config, source string) string {
	if c.CORS.IsZero() {
		return ""
	}
	headers, maxAge := c.CORS.Headers, cmp.Or(c.CORS.MaxAge, authz.DefaultCORSMaxAge)
	if headers == nil {
		headers = authz.DefaultCORSHeaders()
	}
	return fmt.Sprintf("cors:%s\n  origins: %s\n  headers: %s\n  max_age: %v\n", source, listOf(c.CORS.Origins), listOf(headers), maxAge)
}

// listOf is a list of texts in YAML.
func listOf(texts []string) string {
	var all []string
	for _, text := range texts {
		all = append(all, strconv.Quote(text))
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// upstreamsOf are the upstreams that have names, if there are any.
func upstreamsOf(c config) string {
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

// meteringOf is what a rule says about credits, as far as it is not the default.
func meteringOf(r authz.Rule) string {
	var b strings.Builder
	if r.Cost != 0 {
		fmt.Fprintf(&b, ", cost: %d", r.Cost)
	}
	switch {
	case r.Refund.Never:
		b.WriteString(", refund: never")
	case len(r.Refund.Codes) > 0:
		fmt.Fprintf(&b, ", refund: {codes: %s}", strings.Join(strings.Fields(fmt.Sprint(r.Refund.Codes)), ", "))
	}
	if r.Answer != authz.AnswerDestination {
		fmt.Fprintf(&b, ", answer: %s", r.Answer)
	}
	return b.String()
}

// timesOf is what a rule says about time.
func timesOf(r authz.Rule) string {
	var b strings.Builder
	for _, named := range []struct {
		name string
		span authz.Span
	}{{"timeout", r.Timeout}, {"idle_timeout", r.IdleTimeout}, {"max_duration", r.MaxDuration}} {
		if named.span != 0 {
			fmt.Fprintf(&b, ", %s: %v", named.name, named.span)
		}
	}
	return b.String()
}
