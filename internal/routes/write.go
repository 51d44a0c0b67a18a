package routes

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// Format returns rules as YAML, one per line.
func Format(rules []authz.Rule) string {
	var b strings.Builder
	for _, r := range rules {
		if r.Name != "" {
			fmt.Fprintf(&b, "  - {name: %q, kind: %s", r.Name, r.Kind)
		} else {
			fmt.Fprintf(&b, "  - {paths: %q, kind: %s", r.Path, r.Kind)
		}
		if len(r.Hosts) > 0 {
			fmt.Fprintf(&b, ", hosts: %s", List(r.Hosts))
		}
		if len(r.Methods) > 0 {
			fmt.Fprintf(&b, ", methods: [%s]", strings.Join(r.Methods, ", "))
		}
		if r.Rewrite != "" {
			fmt.Fprintf(&b, ", rewrite: %q", r.Rewrite)
		}
		if r.To != authz.ToUpstream {
			fmt.Fprintf(&b, ", to: %s", r.To)
		}
		if r.Encoded {
			b.WriteString(", encoded: true")
		}
		if r.CORS != authz.CORSTable {
			fmt.Fprintf(&b, ", cors: %s", r.CORS)
		}
		b.WriteString(meteringOf(r) + timesOf(r))
		b.WriteString("}\n")
	}
	return b.String()
}

// FormatCORS returns the settings for pages of other origins as YAML, with source after the name;
// "" if there are none.
func FormatCORS(c authz.CORS, source string) string {
	if c.IsZero() {
		return ""
	}
	headers, maxAge := c.Headers, cmp.Or(c.MaxAge, authz.DefaultCORSMaxAge)
	if headers == nil {
		headers = authz.DefaultCORSHeaders()
	}
	return fmt.Sprintf("cors:%s\n  origins: %s\n  headers: %s\n  max_age: %v\n", source, List(c.Origins), List(headers), maxAge)
}

// FormatKeyFormats returns the forms of keys from other systems as YAML, with source after the name;
// "" if there are none.
func FormatKeyFormats(formats []apikey.KeyFormat, source string) string {
	if len(formats) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "key_formats:%s\n", source)
	for _, f := range formats {
		if f.Prefix != "" {
			fmt.Fprintf(&b, "  - {prefix: %q, pattern: %q}\n", f.Prefix, f.Pattern)
			continue
		}
		fmt.Fprintf(&b, "  - {pattern: %q}\n", f.Pattern)
	}
	return b.String()
}

// List returns a YAML list of texts.
func List(texts []string) string {
	var all []string
	for _, text := range texts {
		all = append(all, strconv.Quote(text))
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// meteringOf returns a rule's settings for credits, except defaults.
func meteringOf(r authz.Rule) string {
	var b strings.Builder
	if r.Cost != 0 {
		fmt.Fprintf(&b, ", cost: %d", r.Cost)
	}
	switch {
	case r.Refund.Never:
		b.WriteString(", refund: never")
	case len(r.Refund.Codes) > 0:
		fmt.Fprintf(&b, ", refund: {codes: %s}", strings.Join(strings.Fields(fmt.Sprint(r.Refund.Codes)), ", "))
	}
	if r.Answer != authz.AnswerDestination {
		fmt.Fprintf(&b, ", answer: %s", r.Answer)
	}
	return b.String()
}

// timesOf returns a rule's settings for time, except defaults.
func timesOf(r authz.Rule) string {
	var b strings.Builder
	for _, named := range []struct {
		name string
		span authz.Span
	}{{"timeout", r.Timeout}, {"idle_timeout", r.IdleTimeout}, {"max_duration", r.MaxDuration}} {
		if named.span != 0 {
			fmt.Fprintf(&b, ", %s: %v", named.name, named.span)
		}
	}
	return b.String()
}
