package authz

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
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

// Destination is where an allowed request goes: to an upstream by its name, or to the page.
type Destination string

// The destinations that have no name of an operator's.
const (
	ToUpstream Destination = ""     // the upstream called default
	ToPage     Destination = "page" // Keyporter's own page
)

// DefaultUpstream is the name of the upstream that rules lead to that name none.
const DefaultUpstream = "default"

// String returns the name of d in the configuration.
func (d Destination) String() string {
	if d == ToUpstream {
		return DefaultUpstream
	}
	return string(d)
}

var upstreamName = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$`)

// ParseDestination reads the name of a destination.
func ParseDestination(s string) (Destination, error) {
	switch {
	case s == DefaultUpstream, s == "upstream": // which it was called before there were names
		return ToUpstream, nil
	case !upstreamName.MatchString(s):
		return ToUpstream, fmt.Errorf("%.80q: want page or the name of an upstream, of lower-case letters, digits, - and _", s)
	}
	return Destination(s), nil
}

// Rule says what the requests of one path, or of all paths below one, need; or those of Envoy's
// routes that ask for it by name.
type Rule struct {
	// Name is what Envoy's routes call a rule that has no path. Such a rule takes no rewrite,
	// answer and destination: the route has them.
	Name string
	// Hosts are the hosts that the rule is about, such as api.example.com, or *.example.com for all
	// below it. None: all.
	Hosts []string
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
	// Encoded says that the last part of a path may hold %23, %3F, and %25 where it begins no
	// escape, as names such as "C#" do. Only for a rule for all paths below one, of kind
	// [KindAPIKey] or [KindSession], with no other rule below that path: an upstream that decodes a
	// path before it takes it apart then still finds what this rule is about.
	Encoded bool
	// CORS says what pages of other origins may do, where the table says so at all.
	CORS RuleCORS
	// Timeout is how long the whole answer may take, from the end of the request on; 0:
	// [DefaultTimeout].
	Timeout Span
	// IdleTimeout is how long neither side may say anything; 0: [DefaultIdleTimeout].
	IdleTimeout Span
	// MaxDuration is how long the request and its answer may take together, and with that how long a
	// stream outlives its key; 0: [DefaultMaxDuration].
	MaxDuration Span
}

// MaxCost is the most that one request can cost, in credits.
const MaxCost = 1_000_000

// Answer is what an allowed request is answered with. The zero value is the answer of the
// destination.
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

// Permits reports whether the rule permits method. CONNECT names no path, and TRACE would send a
// key back in the body of its answer: neither is ever permitted.
func (r *Rule) Permits(method string) bool {
	if method == "" || isForbidden(method) {
		return false
	}
	return len(r.Methods) == 0 || slices.Contains(r.Methods, method) ||
		method == "HEAD" && slices.Contains(r.Methods, "GET")
}

// isForbidden ignores case: HTTP/2 carries a method in any, and some upstreams read it in upper
// case.
func isForbidden(method string) bool {
	return strings.EqualFold(method, "CONNECT") || strings.EqualFold(method, "TRACE")
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

// normalPath returns the normal form of what [Rule.Base] returns.
func (r *Rule) normalPath() string {
	base, below := r.Base()
	if base == "" {
		return ""
	}
	if normal := normalForm(base, !below); normal != "/" || !below {
		return normal
	}
	return "" // of /~/*, for example: everything below nothing
}

func (r *Rule) rewritten(path string) string {
	if r.Rewrite == "" {
		return path
	}
	base, _ := r.Base()
	return r.Rewrite + path[len(base):]
}

// problem says what is wrong with r, or returns nil.
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

// namedProblem says what is wrong with a rule that has a name, or returns nil.
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

// kindProblem says what is wrong with what r says beside where it is found, or returns nil.
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

// encodedProblem says what is wrong with what r says about escapes, or returns nil.
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

// hasTwoSpellings reports whether c, out of a canonical path, could stand there in another form: as
// it is and encoded, or encoded with other digits.
func hasTwoSpellings(c rune) bool { return c != '/' && !isUnreserved(byte(c)) }
