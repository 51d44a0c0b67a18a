package inspect

import (
	"regexp"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// matches evaluates a matcher of strings like Envoy. An unknown one matches nothing.
func matches(m *matcherv3.StringMatcher, text string) bool {
	fold := func(s string) string { return s }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	switch pattern := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return fold(text) == fold(pattern.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(text), fold(pattern.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(text), fold(pattern.Suffix))
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(fold(text), fold(pattern.Contains))
	case *matcherv3.StringMatcher_SafeRegex:
		return matchesRegex(pattern.SafeRegex, text)
	}
	return false
}

// matchesRegex reports whether an expression matches a whole text. An expression that Go does not
// know matches nothing.
func matchesRegex(m *matcherv3.RegexMatcher, text string) bool {
	if m.GetRegex() == "" {
		return false
	}
	expression, err := regexp.Compile(`^(?:` + m.GetRegex() + `)$`)
	return err == nil && expression.MatchString(text)
}
