package inspect

import (
	"regexp"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// matches does what Envoy does with a matcher of strings. One that is not known matches nothing.
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

// matchesRegex reports whether an expression, of the kind that Go has too, matches all of a text.
func matchesRegex(m *matcherv3.RegexMatcher, text string) bool {
	if m.GetRegex() == "" {
		return false
	}
	expression, err := regexp.Compile(`^(?:` + m.GetRegex() + `)$`)
	return err == nil && expression.MatchString(text)
}
