package authz

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

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
