package inspect

import (
	"fmt"
	"slices"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	mutateearlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// The rules about requests that pass undecided, and about settings that weaken a decision.

func findMissing(c *config, report report) {
	for _, l := range c.listeners {
		for _, m := range l.managers {
			if len(m.guards) > 0 || m.known && !m.leadsOut(c) {
				continue
			}
			what := "the list has no ext_authz filter"
			if hidden := m.hidden(); hidden != "" {
				what += ", unless the filter " + hidden + ", which was not inspected, contains one"
			}
			report(m.path.At("http_filters"), what)
		}
	}
}

// leadsOut reports whether any route leads to an upstream other than Envoy's own admin interface,
// which the listener for its metrics leads to.
func (m *manager) leadsOut(c *config) bool {
	return slices.ContainsFunc(m.routes, func(r *route) bool {
		if !r.forwards() {
			return false
		}
		names := r.clusters()
		return len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return !c.isAdmin(name) })
	})
}

// isAdmin reports whether a cluster leads to the admin interface of this Envoy, and nowhere else.
func (c *config) isAdmin(name string) bool {
	to := c.addressesOf(name)
	admin := addressText(c.admin)
	return len(to) > 0 && admin != "" && !slices.ContainsFunc(to, func(address string) bool { return address != admin })
}

// hidden names a filter that may contain another one, or returns "".
func (m *manager) hidden() string {
	for _, f := range m.filters {
		if f.typed == nil || kindOf(f.typed) == kindUnknown {
			return quoted(f.GetName())
		}
	}
	return ""
}

func findBesides(c *config, report report) {
	for _, l := range c.listeners {
		if !slices.ContainsFunc(l.managers, func(m *manager) bool { return len(m.guards) > 0 }) {
			continue
		}
		for _, other := range l.others {
			report(other.path, other.what)
		}
	}
}

// hole is a way past all guards.
type hole struct {
	path  Path // where the guard is switched off
	route *route
	scope scope
}

// holes are the ways to an upstream past all guards, of a manager that has guards. someAreGuarded
// reports whether other ways are guarded.
func (m *manager) holes() (all []hole, someAreGuarded bool) {
	for _, r := range m.routes {
		if !r.forwards() {
			continue
		}
		for _, s := range r.scopes {
			if on, where := m.isGuarded(s); on {
				someAreGuarded = true
			} else {
				all = append(all, hole{where, r, s})
			}
		}
	}
	if !someAreGuarded {
		return all, false
	}
	// The filter is off unless a route switches it on, and this route does not.
	for i, h := range all {
		if slices.ContainsFunc(m.guards, func(g *guard) bool { return h.path == g.path.At("disabled") }) {
			all[i].path = h.route.path
		}
	}
	return all, true
}

func findOff(_ *config, m *manager, report report) {
	holes, _ := m.holes()
	for _, h := range holes {
		report(h.path, h.route.words()+" forwards requests without a decision")
	}
}

var identityHeaders = []string{"x-keyporter-user", "x-keyporter-account", "x-keyporter-plan", "x-keyporter-key-id", "x-keyporter-charge"}

// findImpersonation looks at routes past the guards of a manager with other guarded routes: an
// upstream that trusts the headers of those trusts them here as well.
func findImpersonation(_ *config, m *manager, report report) {
	holes, someAreGuarded := m.holes()
	if !someAreGuarded {
		return
	}
	for _, h := range holes {
		for _, name := range identityHeaders {
			if !m.removesEarly(name) && !h.scope.removes(name) {
				report(h.path, fmt.Sprintf("%s passes on the client's %s", h.route.words(), name))
				break
			}
		}
	}
}

func (s scope) removes(header string) bool {
	return slices.ContainsFunc(s, func(l level) bool {
		return slices.ContainsFunc(l.removed, func(name string) bool { return strings.EqualFold(name, header) })
	})
}

// removesEarly reports whether a header is removed before anything reads it.
func (m *manager) removesEarly(header string) bool {
	for _, extension := range m.GetEarlyHeaderMutationExtensions() {
		var mutation mutateearlyv3.HeaderMutation
		if !unpack(extension.GetTypedConfig(), &mutation) {
			continue
		}
		if slices.ContainsFunc(mutation.GetMutations(), func(step *mutationv3.HeaderMutation) bool {
			return strings.EqualFold(step.GetRemove(), header) || matches(step.GetRemoveOnMatch().GetKeyMatcher(), header)
		}) {
			return true
		}
	}
	return false
}

// passesWhenDisabled reports whether a request goes on if the filter is switched off for it.
func passesWhenDisabled(a *extauthzv3.ExtAuthz) bool {
	return !a.GetDenyAtDisable().GetDefaultValue().GetValue()
}

func isPartial(a *extauthzv3.ExtAuthz) bool {
	return a.GetFilterEnabled() != nil && passesWhenDisabled(a) && !isAll(a.GetFilterEnabled())
}

func isAll(f *corev3.RuntimeFractionalPercent) bool {
	of := map[typev3.FractionalPercent_DenominatorType]uint32{
		typev3.FractionalPercent_HUNDRED: 100, typev3.FractionalPercent_TEN_THOUSAND: 10_000, typev3.FractionalPercent_MILLION: 1_000_000,
	}[f.GetDefaultValue().GetDenominator()]
	return f.GetDefaultValue().GetNumerator() >= of
}

func findAfter(_ *config, m *manager, report report) {
	for _, f := range m.after() {
		if kindOf(f.typed) == kindChanges {
			report(f.path, fmt.Sprintf("the filter %q runs after the decision", f.GetName()))
		}
	}
}

// after are the filters behind the first guard that process a request it has decided.
func (m *manager) after() []*filter {
	first := slices.Index(m.filters, m.guards[0].filter)
	var all []*filter
	for _, f := range m.filters[first+1:] {
		if m.isUsed(f) {
			all = append(all, f)
		}
	}
	return all
}

func findBefore(_ *config, m *manager, report report) {
	for _, f := range m.filters[:slices.Index(m.filters, m.guards[0].filter)] {
		if kindOf(f.typed) == kindAnswers && m.isUsed(f) {
			report(f.path, fmt.Sprintf("the filter %q answers before ext_authz runs", f.GetName()))
		}
	}
}

func clearsRoute(a *extauthzv3.ExtAuthz) bool {
	return a.GetClearRouteCache() || len(a.GetClearRouteCacheHeaders()) > 0
}

// credentialHeaders are the headers that Keyporter must see to decide, and to strip the credential.
var credentialHeaders = []string{":path", "x-api-key", "authorization", "cookie"}

// answerHeaders determine the form of an answer, and which WebSocket protocol is a key.
var answerHeaders = []string{"accept", "content-type", "sec-websocket-protocol"}

func withheld(names ...string) finder {
	return eachGuard(func(g *guard, report report) {
		allowed, disallowed := g.authz.GetAllowedHeaders(), g.authz.GetDisallowedHeaders()
		for _, name := range names {
			switch {
			case matchesAny(disallowed, name):
				report(g.settings.At("disallowed_headers"), "removes "+name)
			case allowed != nil && !matchesAny(allowed, name):
				report(g.settings.At("allowed_headers"), "lacks "+name)
			}
		}
	})
}

func matchesAny(list *matcherv3.ListStringMatcher, text string) bool {
	return slices.ContainsFunc(list.GetPatterns(), func(p *matcherv3.StringMatcher) bool { return matches(p, text) })
}

func findMutationRules(g *guard, report report) {
	rules := g.authz.GetDecoderHeaderMutationRules()
	for _, name := range slices.Concat(credentialHeaders, identityHeaders[:1]) {
		if rules != nil && !permits(rules, name) {
			report(g.settings.At("decoder_header_mutation_rules"), "forbids changes to "+name)
			return
		}
	}
}

func permits(rules *mutationv3.HeaderMutationRules, name string) bool {
	switch {
	case rules.GetDisallowAll().GetValue(), matchesRegex(rules.GetDisallowExpression(), name):
		return false
	case strings.HasPrefix(name, ":"):
		return !rules.GetDisallowSystem().GetValue()
	}
	return true
}

// findHostSpellings looks for virtual hosts that a request can escape to a wider one, by a port or
// a dot at the end of its host.
func findHostSpellings(_ *config, m *manager, report report) {
	for _, t := range m.tables {
		domains := map[string]bool{}
		wider := false
		for _, host := range t.GetVirtualHosts() {
			for _, domain := range host.GetDomains() {
				domains[domain] = true
				wider = wider || strings.HasSuffix(domain, "*") && !strings.HasSuffix(domain, ":*")
			}
		}
		lacks := func(twin string) bool {
			for domain := range domains {
				if !strings.HasSuffix(domain, "*") && !strings.HasSuffix(domain, ".") && !strings.Contains(domain, ":") && !domains[domain+twin] {
					return true
				}
			}
			return false
		}
		if wider && !t.GetIgnorePortInHostMatching() && !m.GetStripAnyHostPort() && lacks(":*") {
			report(t.path.At("ignore_port_in_host_matching"), "a host with a port matches another virtual host")
		}
		if wider && !m.GetStripTrailingHostDot() && lacks(".") {
			report(m.path.At("strip_trailing_host_dot"), "a host with a final dot matches another virtual host")
		}
	}
}
