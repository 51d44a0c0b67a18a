package authz

import (
	"fmt"
	"strings"
)

// RuleWarning is about a rule that is valid but may be unintended.
type RuleWarning struct {
	Index int // of the rule, counted from zero
	Text  string
}

// Warnings lists the rules that open a way around other rules, through a lenient upstream or
// another spelling of a path.
func (t *RouteTable) Warnings() (all []RuleWarning) {
	for i := range t.rules {
		r := &t.rules[i]
		if r.Name != "" {
			continue
		}
		routes := t.rest
		if len(r.Hosts) > 0 {
			routes = t.host(r.Hosts[0])
		}
		base, below := r.Base()
		if stronger := routes.strongerBelow(r); below && len(stronger) > 0 {
			all = append(all, RuleWarning{i, fmt.Sprintf("%q (%v) lies over rules that ask for more: %s. "+
				"A spelling that the upstream takes for one of their paths, and Keyporter does not, would pass by it: name the paths that it is meant for",
				r.Path, r.Kind, fewOf(stronger))})
		}
		if whole := routes.paths.below[base]; !below && whole != nil && r.To != ToPage && r.asksLessThan(whole) {
			all = append(all, RuleWarning{i, fmt.Sprintf("%q asks for less than %q, though many upstreams take %q for both: give it the same kind and cost",
				r.Path, whole.Path, base+"/")})
		}
		if whole := t.Match(base + "/"); !below && !strings.HasSuffix(base, "/") && whole != nil && whole != r && whole.Path != base+"/" && whole.asksLessThan(r) {
			all = append(all, RuleWarning{i, fmt.Sprintf("%q asks for more than %q, which decides about %q too, though many upstreams take that for %[1]q: "+
				"give both the same kind and cost, or name %[3]q",
				r.Path, whole.Path, base+"/")})
		}
	}
	return all
}

// strongerBelow returns the paths of the rules below r's path with a stricter kind. Rules of the
// users' page do not count: the upstream serves nothing there.
func (h *HostRoutes) strongerBelow(r *Rule) (paths []string) {
	base, _ := r.Base()
	for _, o := range h.rules {
		if o != r && o.To != ToPage && strings.HasPrefix(o.Path, base+"/") && o.Kind.strength() > r.Kind.strength() && r.Kind != KindNone {
			paths = append(paths, o.Path)
		}
	}
	return paths
}

// asksLessThan reports whether r lets requests pass that o would not.
func (r *Rule) asksLessThan(o *Rule) bool {
	return r.Kind != KindNone && o.Kind != KindNone &&
		(r.Kind.strength() < o.Kind.strength() || r.Kind == o.Kind && max(r.Cost, 1) < max(o.Cost, 1))
}

// strength orders the kinds that let requests pass by their requirements.
func (k Kind) strength() int {
	switch k {
	case KindAPIKey:
		return 2
	case KindSession:
		return 1
	}
	return 0
}

// fewOf lists the first few paths and the number of the others.
func fewOf(paths []string) string {
	const few = 3
	if len(paths) <= few {
		return strings.Join(paths, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(paths[:few], ", "), len(paths)-few)
}
