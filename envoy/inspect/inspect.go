// Package inspect reads a configuration of Envoy, ours or anybody's, and names what in it breaks a
// promise of Keyporter. It is pure: it opens no file and asks nobody. What it looks for is the
// table in rules.go.
package inspect

import (
	"cmp"
	"slices"
)

// Severity says how much a finding matters. It is written as SARIF writes its levels.
type Severity int

const (
	Note    Severity = iota // something could not be looked at
	Warning                 // credits may not come back, or a hardening is missing
	Error                   // a request could pass undecided, a credential get out, or nothing be decided at all
)

func (s Severity) String() string { return [...]string{"note", "warning", "error"}[s] }

// MarshalText makes s a word in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Rule is one kind of finding. Its texts hold nothing of the configuration.
type Rule struct {
	ID       string   `json:"id"`       // stable, such as ext-authz-missing
	Severity Severity `json:"severity"` // of each of its findings
	Title    string   `json:"title"`    // what is wrong, in a few words
	Why      string   `json:"why"`      // why it matters, in sentences
	Fix      string   `json:"fix"`      // what to paste, as YAML

	find finder
}

// finder reports each place where a rule is broken.
type finder func(*config, report)

// report takes one place, and what is there in words.
type report func(at Path, what string)

// Finding is one place where a rule is broken.
type Finding struct {
	Rule
	Path Path   `json:"path"` // where, in what was inspected
	What string `json:"what"` // what is there
}

// Rules returns all there are, the graver ones first.
func Rules() []Rule { return slices.Clone(rules) }

// Config inspects a bootstrap or a config_dump, as JSON. Version is that of the running Envoy as
// its /server_info tells it, or "" if the document is all there is. Findings come in the order of
// the rules, and for each rule in that of the document. An error means that the document is no
// configuration of Envoy. Whatever the document holds, no secret of it is in a finding.
func Config(document []byte, version string) ([]Finding, error) {
	c, err := parse(document)
	if err != nil {
		return nil, err
	}
	if version != "" {
		c.version, c.versionPath = version, "server_info.version"
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

// sorted puts the graver rules first, and leaves those of one severity in their order.
func sorted(rules []Rule) []Rule {
	slices.SortStableFunc(rules, func(a, b Rule) int { return cmp.Compare(b.Severity, a.Severity) })
	return rules
}
