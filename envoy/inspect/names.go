package inspect

import (
	"fmt"
	"slices"
	"strings"
)

// The rules about routes that name a rule of Keyporter's route table. They need the names in it.

// ruleExtension is the context extension with the name of a route's rule. A running Envoy hides the
// values of such extensions: it may be any rule then.
const (
	ruleExtension = "keyporter-rule"
	redacted      = "[redacted]"
)

func findUnknownName(c *config, m *manager, report report) {
	if c.names == nil {
		return
	}
	for _, own := range m.namedRules() {
		if own.name != redacted && !slices.Contains(c.names, own.name) {
			report(own.path, fmt.Sprintf("the route table has no rule %s", quoted(own.name)))
		}
	}
}

// findUnusedName reports the rules that no route of this Envoy names, at the filter that would tell
// Keyporter of the name.
func findUnusedName(c *config, report report) {
	var used []string
	var filter Path
	for _, l := range c.listeners {
		for _, m := range l.managers {
			for _, own := range m.namedRules() {
				used = append(used, own.name)
			}
			if len(m.guards) > 0 && filter == "" {
				filter = m.guards[0].path
			}
		}
	}
	if slices.Contains(used, redacted) {
		return
	}
	var unused []string
	for _, name := range c.names {
		if !slices.Contains(used, name) {
			unused = append(unused, quoted(name))
		}
	}
	if filter != "" && len(unused) > 0 {
		report(filter, "no route names "+strings.Join(unused, ", "))
	}
}

// namedRule is a place that names a rule.
type namedRule struct {
	path Path
	name string
}

func (m *manager) namedRules() (all []namedRule) {
	for _, g := range m.guards {
		for _, own := range m.perRoute(g) {
			if name := own.authz.GetCheckSettings().GetContextExtensions()[ruleExtension]; name != "" {
				all = append(all, namedRule{own.path.in("check_settings", "context_extensions").At(ruleExtension), name})
			}
		}
	}
	return all
}
