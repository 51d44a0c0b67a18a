package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyporter/keyporter/apikey"
)

// RouteTable finds the rule of a request. It is immutable and safe for concurrent use.
type RouteTable struct {
	rules   []Rule
	named   map[string]*Rule       // name → rule
	hosts   map[string]*HostRoutes // host → its rules
	below   map[string]*HostRoutes // .suffix → the rules of the hosts below it
	inOrder []*HostRoutes          // the values of hosts and below
	rest    *HostRoutes            // the rules of all other hosts
	cors    *sharing               // nil: pages of other origins have no access
	foreign *apikey.Foreign        // keys of other systems; nil: none are accepted
	formats []apikey.KeyFormat     // of foreign
	life    Span                   // max_duration of all rules with a timeout; 0: no such rule
}

// index finds rules by paths.
type index struct {
	exact   map[string]*Rule // path → its rule
	below   map[string]*Rule // path → the rule of everything below it
	longest int              // the length of the longest path in below
}

func newIndex() index { return index{exact: map[string]*Rule{}, below: map[string]*Rule{}} }

// at returns the map that holds r, and its key there.
func (x index) at(r *Rule) (rules map[string]*Rule, path string) {
	base, below := r.Base()
	if below {
		return x.below, base
	}
	return x.exact, base
}

// match returns the rule for path. If path ends in a slash and has none, it tries the rule for
// everything below it, then the rule for path without the slash. Otherwise the longest prefix of
// whole segments wins.
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
	path = path[:min(len(path), x.longest+1)] // bounds the look-ups
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

// NewRouteTable returns the table of rules. Their order does not matter: the longest match wins.
// The error joins all problems; each names its rule by index, counted from zero.
func NewRouteTable(rules []Rule) (*RouteTable, error) {
	t := &RouteTable{
		rules: slices.Clone(rules), named: map[string]*Rule{}, hosts: map[string]*HostRoutes{}, below: map[string]*HostRoutes{}, rest: newHostRoutes(""),
	}
	for i := range t.rules {
		if t.rules[i].Name != "" {
			continue // Envoy's routes choose it: its hosts need no table
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
	for _, ownHosts := range []bool{true, false} { // a host's own rules win
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

// host returns the rules of a host named by a rule, creating them if needed.
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

// add adds a rule. It skips a rule for all hosts if this host has its own rule for the path.
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

// of names the host in an error text.
func (h *HostRoutes) of() string {
	if h.Host == "" {
		return ""
	}
	return " on host " + h.Host
}

// asksLike reports whether two rules require the same kind of credential and charge alike.
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

// Rules returns the rules in their original order. Do not modify the slice.
func (t *RouteTable) Rules() []Rule { return t.rules }

// Match is [HostRoutes.Match] among the rules without hosts.
func (t *RouteTable) Match(path string) *Rule { return t.rest.Match(path) }

// Match returns the rule of a canonical path without its query: the rule for this exact path, else
// the one with the longest prefix of whole segments; nil if there is none. A path that ends in a
// slash falls back to the rule of the path without it, if neither it nor everything below it has a
// rule.
func (h *HostRoutes) Match(path string) *Rule { return h.paths.match(path) }

// opens reports whether r, which path matched, may decide a request. It may not if an upstream
// could take path for the path of another rule with other requirements. If odd is false, path is
// its own normal form. A rule with a name yields only to reserved rules.
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

// isReserved reports whether no name opens r's paths: the page, and paths answered with 404.
func (r *Rule) isReserved() bool { return r != nil && (r.Kind == KindNone || r.To == ToPage) }

// matchNormal returns the rule that the normal form of path matches. It keeps an extension if a
// rule covers everything below the path that includes it. The result known is false if the normal
// form is too long.
func (h *HostRoutes) matchNormal(path string) (_ *Rule, known bool) {
	if path, known = lowered(path); !known {
		return nil, false
	}
	if base, ok := strings.CutSuffix(trimmed(path, false), "/"); ok && h.normal.below[base] != nil {
		return h.normal.below[base], true
	}
	return h.normal.match(trimmed(path, true)), true
}

// escapesProblem checks a path with escapes of #, ? or a literal %. The deciding rule r must permit
// them. An upstream that decodes the path, even twice, must still see a path of r without a hidden
// key.
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
			return PathDotSegment // an upstream that ends the path here sees a dot segment
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

// decodedAnyway decodes the escapes of s and keeps each % that begins none.
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

// For returns the rules for a host: those of its exact name, else of the longest matching suffix,
// each together with the rules without hosts; else only the latter. The host is in lower case and
// has no port.
func (t *RouteTable) For(host string) *HostRoutes {
	if len(t.inOrder) == 0 || host == "" {
		return t.rest
	}
	if routes := t.hosts[host]; routes != nil {
		return routes
	}
	for i := range len(host) {
		if host[i] != '.' || i == 0 {
			continue
		}
		if routes := t.below[host[i:]]; routes != nil {
			return routes
		}
	}
	return t.rest
}

// HostRoutes holds the rules of one host, or of all hosts that no rule names.
type HostRoutes struct {
	// Host is the name as written in rules; empty for all other hosts.
	Host string

	rules  []*Rule // those with a path, each once
	paths  index   // by their paths
	normal index   // by the normal forms of their paths
	folds  bool    // the path of some rule differs from its normal form
}

// Rules returns the rules. Do not modify the slice.
func (h *HostRoutes) Rules() []*Rule { return h.rules }

// Hosts returns the rules of each host named by a rule, in the order of first mention, followed by
// the rules of all other hosts.
func (t *RouteTable) Hosts() []*HostRoutes {
	return append(t.inOrder[:len(t.inOrder):len(t.inOrder)], t.rest)
}

// timeProblem returns an error if the times of r conflict with those of the other rules. Envoy
// cannot combine a timeout and a max_duration on one route, so all rules with a timeout share the
// one max_duration that Envoy applies to every request.
func (t *RouteTable) timeProblem(r *Rule) error {
	if r.Timeout.or(DefaultTimeout) == Endless {
		return nil
	}
	_, _, life := r.Times()
	if t.life == 0 {
		t.life = life
	}
	if t.life != life {
		return fmt.Errorf("max_duration %v: all rules with a timeout have the same one, and an earlier rule has %v; leave out timeout here, or make them equal", life, t.life)
	}
	return nil
}
