package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// RouteTable finds the rule of a request. It is immutable and safe for concurrent use.
type RouteTable struct {
	rules   []Rule
	named   map[string]*Rule       // name → rule
	hosts   map[string]*HostRoutes // host → its rules
	below   map[string]*HostRoutes // .suffix → the rules of the hosts below it
	inOrder []*HostRoutes          // of both
	rest    *HostRoutes            // the rules of all other hosts
	cors    *sharing               // nil: pages of other origins may do nothing
	life    Span                   // max_duration of all rules with a timeout; 0: there is none
}

// index finds rules by paths.
type index struct {
	exact   map[string]*Rule // path → its rule
	below   map[string]*Rule // path → the rule of everything below it
	longest int              // the length of the longest path in below
}

func newIndex() index { return index{exact: map[string]*Rule{}, below: map[string]*Rule{}} }

// at returns the part of x in which a rule stands, and where.
func (x index) at(r *Rule) (rules map[string]*Rule, path string) {
	base, below := r.Base()
	if below {
		return x.below, base
	}
	return x.exact, base
}

// match returns the rule for path, else, if path ends in a slash, the one for everything below it
// and the one for path without the slash; else the one with the longest prefix, by whole segments.
func (x index) match(path string) *Rule {
	if r := x.exact[path]; r != nil {
		return r
	}
	if base, ok := strings.CutSuffix(path, "/"); ok && !strings.HasSuffix(base, "/") {
		if r := x.below[base]; r != nil {
			return r
		}
		if r := x.exact[base]; r != nil {
			return r
		}
		path = base
	}
	path = path[:min(len(path), x.longest+1)] // a path of a thousand segments must not cost as many look-ups
	for {
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return nil
		}
		path = path[:i]
		if r := x.below[path]; r != nil {
			return r
		}
	}
}

// NewRouteTable returns the table of rules. The order of rules does not matter, the longest match
// wins. The error joins all problems, each naming the rule by its index, counted from zero.
func NewRouteTable(rules []Rule) (*RouteTable, error) {
	t := &RouteTable{
		rules: slices.Clone(rules), named: map[string]*Rule{}, hosts: map[string]*HostRoutes{}, below: map[string]*HostRoutes{}, rest: newHostRoutes(""),
	}
	for i := range t.rules {
		if t.rules[i].Name != "" {
			continue // Envoy's routes choose it: its hosts have no table of their own
		}
		for _, host := range t.rules[i].Hosts {
			t.host(host)
		}
	}
	var problems []error
	complain := func(i int, err error) {
		if err != nil {
			problems = append(problems, &RuleError{Index: i, Err: err})
		}
	}
	for _, ownHosts := range []bool{true, false} { // a host's own rules first: they win over those of all
		for i := range t.rules {
			if r := &t.rules[i]; (len(r.Hosts) > 0) == ownHosts {
				complain(i, t.add(r))
			}
		}
	}
	for i := range t.rules {
		complain(i, t.isAlone(&t.rules[i]))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return t, nil
}

func newHostRoutes(host string) *HostRoutes {
	return &HostRoutes{Host: host, paths: newIndex(), normal: newIndex()}
}

// host returns the rules of a host that a rule names.
func (t *RouteTable) host(pattern string) *HostRoutes {
	hosts, name := t.hosts, pattern
	if suffix, below := strings.CutPrefix(pattern, "*"); below {
		hosts, name = t.below, suffix
	}
	if hosts[name] == nil {
		hosts[name] = newHostRoutes(pattern)
		t.inOrder = append(t.inOrder, hosts[name])
	}
	return hosts[name]
}

// RuleError is a problem with one rule of a table.
type RuleError struct {
	Index int
	Err   error
}

func (e *RuleError) Error() string { return fmt.Sprintf("rule %d: %v", e.Index, e.Err) }

// Unwrap returns the problem without the index.
func (e *RuleError) Unwrap() error { return e.Err }

func (t *RouteTable) add(r *Rule) error {
	if err := r.problem(); err != nil {
		return err
	}
	if err := t.timeProblem(r); err != nil {
		return err
	}
	if r.Name != "" {
		if t.named[r.Name] != nil {
			return fmt.Errorf("name %q has a rule already", r.Name)
		}
		t.named[r.Name] = r
		return nil
	}
	if len(r.Hosts) == 0 {
		for _, h := range t.inOrder {
			if err := h.add(r); err != nil {
				return err
			}
		}
		return t.rest.add(r)
	}
	for _, host := range r.Hosts {
		if err := t.host(host).add(r); err != nil {
			return err
		}
	}
	return nil
}

// add adds a rule, unless it is for all hosts and this one has one of its own for the same path.
func (h *HostRoutes) add(r *Rule) error {
	rules, path := h.paths.at(r)
	if other := rules[path]; other != nil {
		if len(r.Hosts) == 0 && len(other.Hosts) > 0 {
			return nil
		}
		return fmt.Errorf("path %q has a rule already%s", r.Path, h.of())
	}
	rules[path] = r
	h.rules = append(h.rules, r)
	h.paths.longest = max(h.paths.longest, len(path))
	rules, path = h.normal.at(r)
	if normal := r.normalPath(); normal != path {
		path, h.folds = normal, true
	}
	if other := rules[path]; other != nil && (!r.asksLike(other) || !slices.Equal(r.Methods, other.Methods)) {
		return fmt.Errorf("some upstreams take path %q for %q%s, whose rule asks for something else: give both the same kind, methods, cost and refund", r.Path, other.Path, h.of())
	}
	rules[path] = r
	h.normal.longest = max(h.normal.longest, len(path))
	return nil
}

// of names the host in a sentence.
func (h *HostRoutes) of() string {
	if h.Host == "" {
		return ""
	}
	return " on host " + h.Host
}

// asksLike reports whether two rules ask for the same kind of credential and charge alike.
func (r *Rule) asksLike(o *Rule) bool {
	return r.Kind == o.Kind && max(r.Cost, 1) == max(o.Cost, 1) &&
		r.Refund.Never == o.Refund.Never && slices.Equal(r.Refund.Codes, o.Refund.Codes)
}

// isAlone returns an error if r permits escapes and another rule of the same host lies below its
// path.
func (t *RouteTable) isAlone(r *Rule) error {
	base, _ := r.Base()
	if !r.Encoded || r.Name != "" {
		return nil
	}
	for _, h := range t.Hosts() {
		if !slices.Contains(h.rules, r) {
			continue
		}
		for _, o := range h.rules {
			if o != r && strings.HasPrefix(o.Path, base+"/") {
				return fmt.Errorf("encoded: no other rule may lie below %q%s, as %q does", r.Path, h.of(), o.Path)
			}
		}
	}
	return nil
}

// Rules returns the rules in the order in which they were given. Do not change them.
func (t *RouteTable) Rules() []Rule { return t.rules }

// Match is [HostRoutes.Match] among the rules without hosts.
func (t *RouteTable) Match(path string) *Rule { return t.rest.Match(path) }

// Match returns the rule of a canonical path without query: the one for this very path, else the
// one with the longest prefix, by whole segments; nil if there is none. A path with a slash at its
// end that has no rule of its own, and none for what is below it, has the rule of the path without.
func (h *HostRoutes) Match(path string) *Rule { return h.paths.match(path) }

// opens reports whether r, which path matched, may decide about a request. It may not if an
// upstream could take path for the one of another rule, which asks for something else. A path that
// is not odd is its own normal form. A rule that has a name gives way to those alone that no name
// opens.
func (h *HostRoutes) opens(r *Rule, path, method string, odd bool) bool {
	if !odd && !h.folds {
		return true
	}
	other, known := h.normal.match(path), true
	if odd {
		other, known = h.matchNormal(path)
	}
	if !known {
		return false
	}
	if r.Name != "" {
		return !other.isReserved()
	}
	return other == r || other != nil && other.asksLike(r) && other.Permits(method)
}

// isReserved reports whether no name opens what r is about: the page, and what is answered with
// 404.
func (r *Rule) isReserved() bool { return r != nil && (r.Kind == KindNone || r.To == ToPage) }

// matchNormal returns the rule that the normal form of path matches. An extension is cut off only
// where no rule is for what is below the path with it. It is not known of a path whose normal form
// is too long.
func (h *HostRoutes) matchNormal(path string) (_ *Rule, known bool) {
	if path, known = lowered(path); !known {
		return nil, false
	}
	if base, ok := strings.CutSuffix(trimmed(path, false), "/"); ok && h.normal.below[base] != nil {
		return h.normal.below[base], true
	}
	return h.normal.match(trimmed(path, true)), true
}

// escapesProblem looks at a path that holds escapes of # or ?, or of a % that begins none: r, the
// rule that decides about it, must permit them, and to an upstream that decodes the path, even
// twice, it must still be a path of r, and must hide no key.
func (h *HostRoutes) escapesProblem(r *Rule, path string) Problem {
	if r == nil || !r.Encoded {
		return PathSeparator
	}
	decoded := decodedAnyway(decodedAnyway(path))
	if strings.ContainsAny(decoded, `\;`) || strings.Count(decoded, "/") != strings.Count(path, "/") || r.Name == "" && h.Match(decoded) != r {
		return PathSeparator
	}
	for i := range decoded {
		before := decoded[:i]
		if c := decoded[i]; (c == '?' || c == '#') && (strings.HasSuffix(before, "/.") || strings.HasSuffix(before, "/..")) {
			return PathDotSegment // to that upstream, for which the path ends here
		} else if c != '/' {
			continue
		}
		if problem := segmentProblem(decoded[i+1:]); problem != NoProblem {
			return problem
		}
	}
	if _, query, _ := strings.Cut(decoded, "?"); strings.Contains(query, queryKey) {
		return QueryDisguisedKey
	}
	return NoProblem
}

// decodedAnyway decodes the escapes of s and leaves a % that begins none.
func decodedAnyway(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c, ok := unescaped(s[i:]); ok && s[i] == '%' {
			b.WriteByte(c)
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
