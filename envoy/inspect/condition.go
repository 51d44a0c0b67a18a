package inspect

import (
	"slices"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
)

// findConditional finds ext_authz filters that only run on requests with certain metadata, unless a
// filter before them gives these metadata to every request.
func findConditional(_ *config, m *manager, report report) {
	for _, g := range m.guards {
		if isConditional(g.authz) && !m.marksAll(g) {
			report(g.settings.At("filter_enabled_metadata"), "the filter runs only where the metadata match")
		}
	}
}

func isConditional(a *extauthzv3.ExtAuthz) bool {
	return a.GetFilterEnabledMetadata() != nil && passesWhenDisabled(a)
}

// marksAll reports whether an RBAC filter before a guard gives every request the metadata that the
// guard asks for. Istio writes AuthorizationPolicies with the action CUSTOM in this way.
func (m *manager) marksAll(g *guard) bool {
	before := m.filters[:slices.Index(m.filters, g.filter)]
	return slices.ContainsFunc(before, func(f *filter) bool {
		var settings rbacv3.RBAC
		return !f.GetDisabled() && unpack(f.typed, &settings) && isMarkedBy(g.authz, &settings) && !m.isOverridden(f)
	})
}

// isOverridden reports whether a route has settings of its own for a filter.
func (m *manager) isOverridden(f *filter) bool {
	return slices.ContainsFunc(m.routes, func(r *route) bool {
		return slices.ContainsFunc(r.scopes, func(s scope) bool {
			return slices.ContainsFunc(s, func(l level) bool {
				_, own := l.filters[f.GetName()]
				return own
			})
		})
	})
}

// isMarkedBy reports whether the shadow rules of an RBAC filter match every request, and so record
// the name of a policy for which the guard runs. A request matches the first policy that fits, so
// all names must be such names.
func isMarkedBy(a *extauthzv3.ExtAuthz, settings *rbacv3.RBAC) bool {
	const namespace, field = "envoy.filters.http.rbac", "shadow_effective_policy_id"
	if settings.GetShadowMatcher() != nil {
		return false // it replaces the shadow rules
	}
	asked := a.GetFilterEnabledMetadata()
	path := asked.GetPath()
	if asked.GetInvert() || asked.GetFilter() != namespace || len(path) != 1 || path[0].GetKey() != settings.GetShadowRulesStatPrefix()+field {
		return false
	}
	all := false
	for name, policy := range settings.GetShadowRules().GetPolicies() {
		if !matches(asked.GetValue().GetStringMatch(), name) {
			return false
		}
		all = all || isForAll(policy)
	}
	return all
}

// isForAll reports whether a policy matches every request.
func isForAll(p *rbacconfigv3.Policy) bool {
	return p.GetCondition() == nil && p.GetCheckedCondition() == nil && p.GetCelConfig() == nil &&
		slices.ContainsFunc(p.GetPermissions(), permitsAll) && slices.ContainsFunc(p.GetPrincipals(), isAnybody)
}

func permitsAll(p *rbacconfigv3.Permission) bool {
	switch rule := p.GetRule().(type) {
	case *rbacconfigv3.Permission_Any:
		return rule.Any
	case *rbacconfigv3.Permission_AndRules:
		return !slices.ContainsFunc(rule.AndRules.GetRules(), func(p *rbacconfigv3.Permission) bool { return !permitsAll(p) })
	case *rbacconfigv3.Permission_OrRules:
		return slices.ContainsFunc(rule.OrRules.GetRules(), permitsAll)
	}
	return false
}

func isAnybody(p *rbacconfigv3.Principal) bool {
	switch id := p.GetIdentifier().(type) {
	case *rbacconfigv3.Principal_Any:
		return id.Any
	case *rbacconfigv3.Principal_AndIds:
		return !slices.ContainsFunc(id.AndIds.GetIds(), func(p *rbacconfigv3.Principal) bool { return !isAnybody(p) })
	case *rbacconfigv3.Principal_OrIds:
		return slices.ContainsFunc(id.OrIds.GetIds(), isAnybody)
	}
	return false
}
