package authz

import (
	"cmp"
	"errors"
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

// normalPath returns the normal form of [Rule.Base].
func (r *Rule) normalPath() string {
	base, below := r.Base()
	if base == "" {
		return ""
	}
	if normal := normalForm(base, !below); normal != "/" || !below {
		return normal
	}
	return "" // such as /~/*: everything below the root
}

func (r *Rule) rewritten(path string) string {
	if r.Rewrite == "" {
		return path
	}
	base, _ := r.Base()
	return r.Rewrite + path[len(base):]
}

// problem returns an error if r is invalid.
func (r *Rule) problem() error {
	if err := r.hostsProblem(); err != nil {
		return err
	}
	if r.Name != "" {
		return r.namedProblem()
	}
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
	if err := r.encodedProblem(); err != nil {
		return err
	}
	return r.kindProblem()
}

var ruleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$`)

// namedProblem returns an error if r, a rule with a name, is invalid.
func (r *Rule) namedProblem() error {
	switch {
	case r.Path != "":
		return fmt.Errorf("a rule has a path or a name, not both: %q, %q", r.Path, r.Name)
	case !ruleName.MatchString(r.Name):
		return fmt.Errorf("name %.80q is not of letters, digits and ._@+-, beginning with a letter or a digit, at most 128", r.Name)
	case r.Rewrite != "" || r.Answer != AnswerDestination || r.To != ToUpstream || r.Timeout != 0 || r.IdleTimeout != 0 || r.MaxDuration != 0:
		return errors.New("a rule with a name takes no rewrite, answer, destination and times: Envoy's route has them")
	case r.Encoded && r.Kind != KindAPIKey && r.Kind != KindSession:
		return fmt.Errorf("encoded is for rules of kind api_key and session, not %v", r.Kind)
	}
	return r.kindProblem()
}

// kindProblem returns an error if r's settings other than its path and name are invalid.
func (r *Rule) kindProblem() error {
	for _, m := range r.Methods {
		if m == "" || isForbidden(m) || strings.ToUpper(m) != m || schemeLength(m) != len(m) {
			return fmt.Errorf("method %q is not the upper-case name of a method other than CONNECT and TRACE", m)
		}
	}
	if err := r.corsProblem(); err != nil {
		return err
	}
	return cmp.Or(r.meterProblem(), r.timeProblem())
}

// encodedProblem returns an error if r's setting for escapes is invalid.
func (r *Rule) encodedProblem() error {
	base, below := r.Base()
	switch {
	case !r.Encoded:
		return nil
	case !below || base == "":
		return fmt.Errorf("encoded is for a path with /* at its end, other than /* itself: %q is none", r.Path)
	case r.Kind != KindAPIKey && r.Kind != KindSession:
		return fmt.Errorf("encoded is for rules of kind api_key and session, not %v", r.Kind)
	}
	return nil
}

// meterProblem returns an error if r's settings for credits are invalid.
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
	return r.Refund.Check()
}

// hasTwoSpellings reports whether c, from a canonical path, has another spelling there: plain and
// encoded, or encoded with digits of another case.
func hasTwoSpellings(c rune) bool { return c != '/' && !isUnreserved(byte(c)) }
