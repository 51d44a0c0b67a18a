package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// DefaultPagePath is the default path of the users' page.
const DefaultPagePath = "/api"

// CheckPagePath returns an error unless base is a valid path for the users' page.
func CheckPagePath(base string) error {
	rule := Rule{Path: base, Kind: KindSession, To: ToPage}
	if strings.HasSuffix(base, "/") || strings.Contains(base, "*") || rule.problem() != nil || normalForm(base, true) == "/" {
		return fmt.Errorf("%.80q is no path for the page: want one such as /account/api, of letters, digits and -._~ between slashes, without a slash at its end", base)
	}
	return nil
}

// PageRules returns the rules for the users' page at base, such as [DefaultPagePath].
func PageRules(base string) []Rule {
	return []Rule{
		{Path: base, Kind: KindSession, To: ToPage},
		{Path: base + "/", Kind: KindSession, To: ToPage},
		{Path: base + "/regenerate", Kind: KindSession, To: ToPage},
		{Path: base + "/-/*", Kind: KindSession, To: ToPage},
		{Path: base + "/-/login", Kind: KindPublic, To: ToPage},
		{Path: base + "/-/logout", Kind: KindPublic, To: ToPage},
		{Path: base + "/-/static/*", Kind: KindPublic, To: ToPage},
	}
}

// WithPage returns rules, followed by the rules of the users' page at base for all paths that rules
// does not name.
func WithPage(rules []Rule, base string) []Rule {
	all := slices.Clone(rules)
	for _, r := range PageRules(base) {
		if !slices.ContainsFunc(rules, func(own Rule) bool { return own.Path == r.Path && len(own.Hosts) == 0 && own.Name == "" }) {
			all = append(all, r)
		}
	}
	return all
}

// pageNeed is an address of the page, with the kind and methods that its rule must permit.
type pageNeed struct {
	below   string // the path relative to the page's
	kind    Kind   // the kind of rule required; public works too
	methods []string
}

// pageNeeds are the addresses of the page.
var pageNeeds = []pageNeed{
	{"", KindSession, []string{"GET"}},
	{"/regenerate", KindSession, []string{"POST"}},
	{"/-/regenerate", KindSession, []string{"GET"}},
	{"/-/reveal", KindSession, []string{"POST"}},
	{"/-/openapi.yaml", KindSession, []string{"GET"}},
	{"/-/login", KindPublic, []string{"GET", "POST"}},
	{"/-/logout", KindPublic, []string{"POST"}},
	{"/-/static/page.css", KindPublic, []string{"GET"}},
}

// PageProblem returns an error unless t lets users reach the page at base: the page with a session,
// its login and static files without one. It joins one error per unreachable address, a [RuleError]
// if a rule is in the way.
func (t *RouteTable) PageProblem(base string) error {
	var problems []error
	for _, need := range pageNeeds {
		address := base + need.below
		rule := t.rest.Match(address)
		what := t.inTheWay(rule, address, &need)
		if what == "" {
			continue
		}
		err := fmt.Errorf("%q %s: the users' page needs it with kind %v and to: page", address, what, need.kind)
		if rule != nil {
			err = &RuleError{Index: t.indexOf(rule), Err: err}
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// indexOf returns the index of a rule of t.
func (t *RouteTable) indexOf(r *Rule) int {
	for i := range t.rules {
		if &t.rules[i] == r {
			return i
		}
	}
	return -1
}

// inTheWay describes why r, the rule of an address of the page, blocks the page; empty if it does
// not.
func (t *RouteTable) inTheWay(r *Rule, address string, need *pageNeed) string {
	switch {
	case r == nil || r.Kind == KindNone:
		return "leads nowhere"
	case r.To != ToPage:
		return "leads to the upstream"
	case r.Kind != need.kind && r.Kind != KindPublic:
		return "is of kind " + r.Kind.String()
	case r.rewritten(address) != address:
		return "is rewritten"
	}
	shape, _ := shapeOf(address)
	for _, method := range need.methods {
		if !r.Permits(method) {
			return "does not permit " + method
		}
		if !t.rest.opens(r, address, method, shape.odd) {
			return "is a spelling of a path whose rule asks for something else"
		}
	}
	return ""
}

// PageWarnings lists the rules that lead to the users' page from paths outside base, where the page
// answers 404.
func (t *RouteTable) PageWarnings(base string) (all []RuleWarning) {
	for i := range t.rules {
		r := &t.rules[i]
		path, below := r.Base()
		path = r.rewritten(path)
		if r.To == ToPage && !within(path, base) && !(below && within(base, path)) {
			all = append(all, RuleWarning{i, fmt.Sprintf("%q leads to the users' page, which is at %s and answers 404 elsewhere: move the page, or leave the rule out", r.Path, base)})
		}
	}
	return all
}

// within reports whether path is base or below it.
func within(path, base string) bool { return path == base || strings.HasPrefix(path, base+"/") }
