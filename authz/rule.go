package authz

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/keyporter/keyporter/usage"
)

// Kind is the credential that a route requires. The zero value, [KindNone], denies.
type Kind uint8

// The kinds of routes.
const (
	KindNone    Kind = iota // no access: answered with 404
	KindAPIKey              // an API key
	KindSession             // a browser session
	KindPublic              // no credential
)

var kindNames = [...]string{KindNone: "none", KindAPIKey: "api_key", KindSession: "session", KindPublic: "public"}

// String returns the name of k in the configuration.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return kindNames[KindNone]
}

// ParseKind parses the name of a kind.
func ParseKind(s string) (Kind, error) {
	if i := slices.Index(kindNames[:], s); i >= 0 {
		return Kind(i), nil
	}
	return KindNone, fmt.Errorf("unknown kind %q: want one of %s", s, strings.Join(kindNames[:], ", "))
}

// Destination is where an allowed request goes: the name of an upstream, or the page.
type Destination string

// The built-in destinations.
const (
	ToUpstream Destination = ""     // the upstream named default
	ToPage     Destination = "page" // Keyporter's own page
)

// DefaultUpstream is the name of the upstream of rules that name none.
const DefaultUpstream = "default"

// String returns the name of d in the configuration.
func (d Destination) String() string {
	if d == ToUpstream {
		return DefaultUpstream
	}
	return string(d)
}

var upstreamName = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$`)

// ParseDestination parses the name of a destination.
func ParseDestination(s string) (Destination, error) {
	switch {
	case s == DefaultUpstream, s == "upstream": // its name before upstreams had names
		return ToUpstream, nil
	case !upstreamName.MatchString(s):
		return ToUpstream, fmt.Errorf("%.80q: want page or the name of an upstream, of lower-case letters, digits, - and _", s)
	}
	return Destination(s), nil
}

// Rule states the requirements for one path, for all paths below one, or for the routes of Envoy
// that ask for it by name.
type Rule struct {
	// Name identifies a rule without a path; Envoy's routes ask for it. Such a rule takes no
	// rewrite, answer, destination or times: they belong to the route.
	Name string
	// Hosts limit the rule to these hosts, such as api.example.com, or *.example.com for all below
	// it. Empty means all hosts.
	Hosts []string
	// Path is one path, such as /api, or all paths below one, such as /api/*. The latter matches
	// /api/, but not /api itself. Only letters, digits and -._~ may stand between the slashes:
	// anything else has another spelling, with which a client could evade the rule.
	Path string
	Kind Kind
	// Methods are the permitted methods; GET includes HEAD. Empty means all.
	Methods []string
	// Rewrite replaces Path, without its /*, in the request to the upstream. Empty means no change.
	Rewrite string
	To      Destination
	// Cost is the price of a request in credits, up to [MaxCost]; 0 means 1. Like Refund and
	// Answer, it requires kind [KindAPIKey].
	Cost int64
	// Refund is the rule for refunds of the cost.
	Refund usage.RefundRule
	// Answer selects an answer by Keyporter itself in place of the upstream, for GET only.
	Answer Answer
	// Encoded permits the escapes %23, %3F and, for a literal %, %25 in the last part of a path, as
	// in names such as "C#". It requires a rule for all paths below one, of kind [KindAPIKey] or
	// [KindSession], without other rules below that path. Then an upstream that decodes a path
	// before splitting it still serves a path of this rule.
	Encoded bool
	// CORS overrides the table's setting for pages of other origins.
	CORS RuleCORS
	// Timeout limits the whole answer, counted from the end of the request; 0 means
	// [DefaultTimeout].
	Timeout Span
	// IdleTimeout limits the silence of both sides; 0 means [DefaultIdleTimeout].
	IdleTimeout Span
	// MaxDuration limits the request and its answer together, and so how long a stream outlives its
	// key; 0 means [DefaultMaxDuration].
	MaxDuration Span
}

// MaxCost is the highest cost of one request, in credits.
const MaxCost = 1_000_000

// Answer selects the answer to an allowed request. The zero value is the destination's answer.
type Answer uint8

// The answers.
const (
	AnswerDestination Answer = iota
	AnswerCredits            // the user's usage of this month's credits
)

// String returns the name of a in the configuration.
func (a Answer) String() string {
	if a == AnswerCredits {
		return "credits"
	}
	return "destination"
}

// ParseAnswer parses the name of an answer.
func ParseAnswer(s string) (Answer, error) {
	for _, a := range []Answer{AnswerDestination, AnswerCredits} {
		if s == a.String() {
			return a, nil
		}
	}
	return AnswerDestination, fmt.Errorf("unknown answer %q: want destination or credits", s)
}

// Permits reports whether the rule permits method. It never permits CONNECT, which names no path,
// or TRACE, which would return the key in the body.
func (r *Rule) Permits(method string) bool {
	if method == "" || isForbidden(method) {
		return false
	}
	return len(r.Methods) == 0 || slices.Contains(r.Methods, method) ||
		method == "HEAD" && slices.Contains(r.Methods, "GET")
}

// isForbidden reports whether method is CONNECT or TRACE. It ignores case: HTTP/2 carries methods
// in any case, and some upstreams convert them to upper case.
func isForbidden(method string) bool {
	return strings.EqualFold(method, "CONNECT") || strings.EqualFold(method, "TRACE")
}

// Allow returns the value of the Allow header: all permitted methods.
func (r *Rule) Allow() string {
	methods := slices.Clone(r.Methods)
	if i := slices.Index(methods, "GET"); i >= 0 && !slices.Contains(methods, "HEAD") {
		methods = slices.Insert(methods, i+1, "HEAD")
	}
	return strings.Join(methods, ", ")
}

// Base returns Path without its /*, and reports whether it had one.
func (r *Rule) Base() (base string, below bool) { return strings.CutSuffix(r.Path, "/*") }

// Example returns a path that the rule matches.
func (r *Rule) Example() string {
	base, below := r.Base()
	if below {
		return base + "/"
	}
	return base
}

// RuleCORS is a rule's own setting for pages of other origins.
type RuleCORS uint8

// The settings of a rule.
const (
	CORSTable    RuleCORS = iota // the table's setting applies
	CORSOff                      // no CORS headers
	CORSUpstream                 // the upstream answers preflights and sets the CORS headers
)

var ruleCORSNames = [...]string{CORSTable: "table", CORSOff: "off", CORSUpstream: "upstream"}

// String returns the name of c in the configuration.
func (c RuleCORS) String() string {
	if int(c) < len(ruleCORSNames) {
		return ruleCORSNames[c]
	}
	return ruleCORSNames[CORSOff]
}

// ParseRuleCORS parses a rule's setting, off or upstream. A rule without one has [CORSTable].
func ParseRuleCORS(s string) (RuleCORS, error) {
	if i := slices.Index(ruleCORSNames[:], s); i > 0 {
		return RuleCORS(i), nil
	}
	return CORSTable, fmt.Errorf("%.80q: want off or upstream; leave the line out for what cors says", s)
}
