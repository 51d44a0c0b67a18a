package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind is what a route asks for. The zero value, [KindNone], denies.
type Kind uint8

// The kinds of routes.
const (
	KindNone    Kind = iota // answered with 404
	KindAPIKey              // an API key
	KindSession             // a browser session
	KindPublic              // nothing
)

var kindNames = [...]string{KindNone: "none", KindAPIKey: "api_key", KindSession: "session", KindPublic: "public"}

// String returns the name of k in the configuration.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return kindNames[KindNone]
}

// ParseKind reads the name of a kind.
func ParseKind(s string) (Kind, error) {
	if i := slices.Index(kindNames[:], s); i >= 0 {
		return Kind(i), nil
	}
	return KindNone, fmt.Errorf("unknown kind %q: want one of %s", s, strings.Join(kindNames[:], ", "))
}

// Destination is where an allowed request goes.
type Destination uint8

// The destinations.
const (
	ToUpstream Destination = iota // the API behind Envoy
	ToPage                        // Keyporter's own page
)

// String returns the name of d in the configuration.
func (d Destination) String() string {
	if d == ToPage {
		return "page"
	}
	return "upstream"
}

// ParseDestination reads the name of a destination.
func ParseDestination(s string) (Destination, error) {
	for _, d := range []Destination{ToUpstream, ToPage} {
		if s == d.String() {
			return d, nil
		}
	}
	return ToUpstream, fmt.Errorf("unknown destination %q: want upstream or page", s)
}

// Rule says what the requests of one path, or of all paths below one, need.
type Rule struct {
	// Path is one path, such as /api, or all below one, such as /api/*; the latter does not match
	// /api itself. A trailing slash is a path below. Only letters, digits and -._~ may stand between
	// the slashes: of all else a client may send another spelling, which would escape the rule.
	Path string
	Kind Kind
	// Methods are the methods that the rule permits; GET includes HEAD. Empty: all.
	Methods []string
	// Rewrite replaces Path, without its /*, before the upstream sees the request. Empty: no change.
	Rewrite string
	To      Destination
	// Cost is what a request costs, in credits, up to [MaxCost]; 0: one. Only for a rule of kind
	// [KindAPIKey], like Refund and Answer.
	Cost int64
	// Refund says when they come back.
	Refund Refund
	// Answer is what Keyporter answers itself, in place of the upstream, to GET only.
	Answer Answer
}

// MaxCost is the most that one request can cost, in credits.
const MaxCost = 1_000_000

// Answer is what an allowed request is answered with. The zero value is the answer of the destination.
type Answer uint8

// The answers.
const (
	AnswerDestination Answer = iota
	AnswerCredits            // where the user stands with this month's credits
)

// String returns the name of a in the configuration.
func (a Answer) String() string {
	if a == AnswerCredits {
		return "credits"
	}
	return "destination"
}

// ParseAnswer reads the name of an answer.
func ParseAnswer(s string) (Answer, error) {
	for _, a := range []Answer{AnswerDestination, AnswerCredits} {
		if s == a.String() {
			return a, nil
		}
	}
	return AnswerDestination, fmt.Errorf("unknown answer %q: want destination or credits", s)
}

// Permits reports whether the rule permits method. CONNECT names no path and is never permitted.
func (r *Rule) Permits(method string) bool {
	if method == "" || method == "CONNECT" {
		return false
	}
	return len(r.Methods) == 0 || slices.Contains(r.Methods, method) ||
		method == "HEAD" && slices.Contains(r.Methods, "GET")
}

// Allow returns the value of the Allow header: what Permits permits.
func (r *Rule) Allow() string {
	methods := slices.Clone(r.Methods)
	if i := slices.Index(methods, "GET"); i >= 0 && !slices.Contains(methods, "HEAD") {
		methods = slices.Insert(methods, i+1, "HEAD")
	}
	return strings.Join(methods, ", ")
}

// Base returns Path without its /*, and whether it had one.
func (r *Rule) Base() (base string, below bool) { return strings.CutSuffix(r.Path, "/*") }

func (r *Rule) rewritten(path string) string {
	if r.Rewrite == "" {
		return path
	}
	base, _ := r.Base()
	return r.Rewrite + path[len(base):]
}

// problem says what is wrong with r, or returns nil.
func (r *Rule) problem() error {
	base, below := r.Base()
	switch {
	case !(below && base == "") && !canonical(base) || strings.Contains(base, "*"):
		return fmt.Errorf("path %q is not a canonical path, with or without /* at its end", r.Path)
	case below && strings.HasSuffix(base, "/"):
		return fmt.Errorf("path %q has an empty segment", r.Path)
	case strings.ContainsFunc(base, hasTwoSpellings):
		return fmt.Errorf("path %q may hold only letters, digits, -, ., _, ~ and /: anything else has another spelling, which this rule would not match", r.Path)
	case r.Rewrite != "" && (!canonical(r.Rewrite) || strings.HasSuffix(r.Rewrite, "/") || strings.Contains(r.Rewrite, "*")):
		return fmt.Errorf("rewrite %q is not a canonical path without a slash or /* at its end", r.Rewrite)
	case r.Kind == KindAPIKey && r.To == ToPage:
		return errors.New("the page is opened by a session, not by a key: use kind session or public")
	case r.Kind == KindNone && (r.Rewrite != "" || len(r.Methods) > 0 || r.To != ToUpstream):
		return errors.New("a rule of kind none answers 404 and takes no methods, rewrite or destination")
	}
	for _, m := range r.Methods {
		if m == "" || m == "CONNECT" || strings.ToUpper(m) != m || schemeLength(m) != len(m) {
			return fmt.Errorf("method %q is not the upper-case name of a method other than CONNECT", m)
		}
	}
	return r.meterProblem()
}

// meterProblem says what is wrong with what r says about credits, or returns nil.
func (r *Rule) meterProblem() error {
	metered := r.Cost != 0 || !r.Refund.IsZero() || r.Answer != AnswerDestination
	switch {
	case metered && r.Kind != KindAPIKey:
		return fmt.Errorf("cost, refund and answer are for rules of kind api_key: one of kind %v costs nothing", r.Kind)
	case r.Cost < 0 || r.Cost > MaxCost:
		return fmt.Errorf("cost %d is not from 1 to %d credits", r.Cost, MaxCost)
	case r.Answer != AnswerDestination && !slices.Equal(r.Methods, []string{"GET"}):
		return fmt.Errorf("what Keyporter answers itself is asked with GET: answer %v needs methods: [GET]", r.Answer)
	case r.Answer != AnswerDestination && (r.Rewrite != "" || !r.Refund.IsZero()):
		return fmt.Errorf("answer %v takes no rewrite or refund: no upstream is asked", r.Answer)
	}
	return r.Refund.problem()
}

// hasTwoSpellings reports whether c, out of a canonical path, could stand there in another form: as it
// is and encoded, or encoded with other digits.
func hasTwoSpellings(c rune) bool { return c != '/' && !isUnreserved(byte(c)) }

// RouteTable finds the rule of a path. It is immutable and safe for concurrent use.
type RouteTable struct {
	rules []Rule
	exact map[string]*Rule // path → its rule
	below map[string]*Rule // path → the rule of everything below it
}

// NewRouteTable returns the table of rules. The order of rules does not matter, the longest match
// wins. The error joins all problems, each naming the rule by its index, counted from zero.
func NewRouteTable(rules []Rule) (*RouteTable, error) {
	t := &RouteTable{rules: slices.Clone(rules), exact: map[string]*Rule{}, below: map[string]*Rule{}}
	var problems []error
	for i := range t.rules {
		if err := t.add(&t.rules[i]); err != nil {
			problems = append(problems, &RuleError{Index: i, Err: err})
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return t, nil
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
	base, below := r.Base()
	index := t.exact
	if below {
		index = t.below
	}
	if index[base] != nil {
		return fmt.Errorf("path %q has a rule already", r.Path)
	}
	index[base] = r
	return nil
}

// Rules returns the rules in the order in which they were given. Do not change them.
func (t *RouteTable) Rules() []Rule { return t.rules }

// Match returns the rule of a canonical path without query: the one for this very path, else the
// one with the longest prefix, by whole segments; nil if there is none.
func (t *RouteTable) Match(path string) *Rule {
	if r := t.exact[path]; r != nil {
		return r
	}
	for {
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return nil
		}
		path = path[:i]
		if r := t.below[path]; r != nil {
			return r
		}
	}
}
