// Package inspect reads a configuration of Envoy, ours or any other, and reports where it breaks a
// promise of Keyporter. It is pure: it does no I/O. The table in rules.go has the rules.
package inspect

import (
	"cmp"
	"slices"
)

// Severity says how much a finding matters. Its texts are the levels of SARIF.
type Severity int

const (
	Note    Severity = iota // something could not be inspected
	Warning                 // credits may not come back, or a hardening is missing
	Error                   // a request could pass undecided, a credential leak, or none be decided
)

func (s Severity) String() string { return [...]string{"note", "warning", "error"}[s] }

// MarshalText makes s a word in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Rule is one kind of finding. Its texts contain nothing of the configuration.
type Rule struct {
	ID       string   `json:"id"`       // stable, such as ext-authz-missing
	Severity Severity `json:"severity"` // of each of its findings
	Title    string   `json:"title"`    // the problem, in a few words
	Why      string   `json:"why"`      // why it matters, in sentences
	Fix      string   `json:"fix"`      // the correction to paste, as YAML

	find finder
}

// finder reports each place where a rule is broken.
type finder func(*config, report)

// report takes one place, and its description.
type report func(at Path, what string)

// Finding is one place where a rule is broken.
type Finding struct {
	Rule
	Path Path   `json:"path"` // in the inspected document
	What string `json:"what"` // description of the place
}

// Rules returns all rules, the most severe first.
func Rules() []Rule { return slices.Clone(rules) }

// Known is what is known about an Envoy besides its configuration.
type Known struct {
	Version string   // of the running Envoy, from its /server_info; "": not known
	Names   []string // of the rules in Keyporter's route table that have one; nil: not known
}

// Config inspects a bootstrap or a config_dump, as JSON. Findings come in the order of the rules,
// and for each rule in that of the document. An error means that the document is no configuration
// of Envoy. No finding contains a secret from the document.
func Config(document []byte, known Known) ([]Finding, error) {
	c, err := parse(document)
	if err != nil {
		return nil, err
	}
	c.names = known.Names
	if known.Version != "" {
		c.version, c.versionPath = known.Version, "server_info.version"
	}
	var findings []Finding
	for _, rule := range rules {
		seen := map[Path]bool{}
		rule.find(c, func(at Path, what string) {
			if !seen[at] {
				seen[at] = true
				findings = append(findings, Finding{Rule: rule, Path: at, What: what})
			}
		})
	}
	return findings, nil
}

// sorted puts the most severe rules first, and keeps the order of rules with the same severity.
func sorted(rules []Rule) []Rule {
	slices.SortStableFunc(rules, func(a, b Rule) int { return cmp.Compare(b.Severity, a.Severity) })
	return rules
}
