package routes

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// Rules reads a route table. It also returns the place of each rule, as FILE:LINE:COLUMN. An entry
// with several paths gives a rule for each.
func (d *Document) Rules(node *yaml.Node) (rules []authz.Rule, places []string) {
	if node.Kind != yaml.SequenceNode || len(node.Content) == 0 {
		d.Complain(node, "routes: want a list of rules, at least one")
		return nil, nil
	}
	for _, entry := range node.Content {
		for _, rule := range d.rules(entry) {
			rules, places = append(rules, rule), append(places, fmt.Sprintf("%s:%d:%d", d.File, entry.Line, entry.Column))
		}
	}
	return rules, places
}

// ruleKeys are the settings of a rule.
var ruleKeys = []string{"paths", "name", "hosts", "kind", "methods", "rewrite", "to", "cost", "refund", "answer", "encoded", "cors", "timeout", "idle_timeout", "max_duration"}

// rules reads one entry of the route table and returns a rule for each of its paths.
func (d *Document) rules(node *yaml.Node) []authz.Rule {
	var rule authz.Rule
	var paths []string
	kind := false
	d.Mapping(node, ruleKeys, func(name string, _, value *yaml.Node) {
		switch name {
		case "paths":
			paths = d.Texts(name, value)
		case "name":
			rule.Name, _ = d.Scalar(name, value)
		case "hosts":
			rule.Hosts = d.Texts(name, value)
		case "methods":
			rule.Methods = d.Texts(name, value)
		case "rewrite":
			rule.Rewrite, _ = d.Scalar(name, value)
		case "kind":
			kind = true
			d.Parsed(name, value, func(s string) (err error) { rule.Kind, err = authz.ParseKind(s); return err })
		case "to":
			d.Parsed(name, value, func(s string) (err error) { rule.To, err = authz.ParseDestination(s); return err })
		case "cost":
			d.Parsed(name, value, func(s string) (err error) { rule.Cost, err = parseCost(s); return err })
		case "refund":
			rule.Refund = d.refund(value)
		case "answer":
			d.Parsed(name, value, func(s string) (err error) { rule.Answer, err = authz.ParseAnswer(s); return err })
		case "encoded":
			d.Parsed(name, value, func(s string) (err error) { rule.Encoded, err = ParseBool(s); return err })
		case "cors":
			d.Parsed(name, value, func(s string) (err error) { rule.CORS, err = authz.ParseRuleCORS(s); return err })
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
		d.Complain(node, "a rule needs `paths`, or a `name` that routes of your own Envoy ask for, and `kind`")
	case len(paths) > 0 && rule.Name != "":
		d.Complain(node, "a rule has `paths` or a `name`, not both")
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

func (d *Document) span(name string, node *yaml.Node, to *authz.Span) {
	d.Parsed(name, node, func(s string) (err error) { *to, err = authz.ParseSpan(s); return err })
}

func parseCost(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || n > authz.MaxCost {
		return 0, fmt.Errorf("%.80q is not a number from 1 to %d", s, authz.MaxCost)
	}
	return n, nil
}

// refund reads a rule for refunds: a word, or a list of statuses.
func (d *Document) refund(node *yaml.Node) (refund usage.RefundRule) {
	if node.Kind != yaml.MappingNode {
		d.Parsed("refund", node, func(s string) (err error) { refund, err = usage.ParseRefundRule(s); return err })
		return refund
	}
	if len(node.Content) == 0 {
		d.Complain(node, "refund: want never, upstream_failure or {codes: [500, 503]}")
	}
	d.Mapping(node, []string{"codes"}, func(name string, _, value *yaml.Node) {
		for _, text := range d.Texts(name, value) {
			code, err := strconv.Atoi(text)
			if err != nil || code < 400 || code > 599 {
				d.Complain(value, "codes: %.80q is no status from 400 to 599", text)
				continue
			}
			refund.Codes = append(refund.Codes, code)
		}
	})
	return refund
}

// CORS reads the settings for pages of other origins.
func (d *Document) CORS(node *yaml.Node) (cors authz.CORS) {
	before := len(d.Problems)
	places := map[string]*yaml.Node{} // setting → its value
	d.Mapping(node, []string{"origins", "headers", "max_age"}, func(name string, _, value *yaml.Node) {
		places[name] = value
		switch name {
		case "origins":
			cors.Origins = d.Texts(name, value)
		case "headers":
			cors.Headers = d.Texts(name, value)
		case "max_age":
			d.Parsed(name, value, func(s string) (err error) { cors.MaxAge, err = time.ParseDuration(s); return err })
		}
	})
	if len(d.Problems) > before {
		return cors
	}
	for _, problem := range cors.Problems() {
		name, _, _ := strings.Cut(problem.Error(), ":")
		place := places[name]
		if place == nil {
			place = node
		}
		d.Complain(place, "cors: %w", problem)
	}
	return cors
}

// KeyFormats reads the forms of keys from other systems. It also returns the place of each.
func (d *Document) KeyFormats(node *yaml.Node) (formats []apikey.KeyFormat, places []string) {
	if node.Kind != yaml.SequenceNode || len(node.Content) == 0 {
		d.Complain(node, "key_formats: want a list such as `- {prefix: sk_live_, pattern: \"[0-9A-Za-z]{24}\"}`, at least one")
		return nil, nil
	}
	for _, entry := range node.Content {
		var f apikey.KeyFormat
		d.Mapping(entry, []string{"prefix", "pattern"}, func(name string, _, value *yaml.Node) {
			text, ok := d.Scalar(name, value)
			switch {
			case name == "pattern":
				f.Pattern = text
			case ok && text == "":
				d.Complain(value, "prefix: it is empty: leave the line out for keys without one, which are accepted in X-API-Key alone")
			default:
				f.Prefix = text
			}
		})
		formats, places = append(formats, f), append(places, fmt.Sprintf("%s:%d:%d", d.File, entry.Line, entry.Column))
	}
	return formats, places
}

// ParseBool parses true or false.
func ParseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}
