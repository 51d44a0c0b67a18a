package authz_test

import (
	"fmt"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/authz"
)

// everything is a rule that opens every canonical path.
var everything = authz.Rule{Path: "/*", Kind: authz.KindPublic}

func get(target string) authz.Request { return authz.Request{Method: "GET", Path: target} }

// These segments and pieces are read differently by different programs.
var (
	badSegments = []string{
		".", "..", "%2e", "%2E", "%2e%2e", ".%2e", "%2e.", "%2E%2e", // dots
		";", "..;", ".;", "..;x=y", ";x=y", "x;", "x;y=z", "%3b", "..%3b", "x%3By", // parameters
		"%2f", "%2F", "..%2f", "%2f..", "x%2fy", "%5c", "%5C", "..%5c", `\`, `..\`, `x\y`, // separators
		"%00", "x%00", "%0a", "%0d%0a", "%1f", "%7f", "\x00", "\n", "\r", "\t", "\x1f", "\x7f", " ", "x y", // control bytes and blanks
		"#", "x#", "%23", "x%23y", "%3f", "%3F", // ends of a path
		"%", "%%", "%2", "%2g", "%g2", "%zz", "x%", "%u002f", "%-1", "%+1", "%25", // escapes
		"%252e", "%252e%252e", "%252f", "%255c", "%2500", "%25252f", "%253b", // encoded twice
		"é", "／", "．．", "\xff", "\xc0\xaf", "\xe2\x80\xae", "x\u200by", "\x80", // not ASCII
		"%c0%af", "%C0%AF", "%c0%ae%c0%ae", "%e0%80%af", "%f0%80%80%af", "%c1%9c", // overlong
		"%ff", "%fe", "%c3", "%c3x", "%80", "%ed%a0%80", "%f5%80%80%80", "%e2%82", // not UTF-8
		"%61", "%41", "%7A", "%30", "%39", "%2d", "%2D", "%5f", "%7e", "x%61y", "a%70i", // needlessly encoded
	}
	goodSegments = []string{
		"x", "0", "...", "..x", "x..", ".x", "x.", ".well-known", "~ada", "a-b_c.d~e", "-", "_", "X",
		"%20", "%22", "%2B", "%2b", "%40", "%c3%a9", "%C3%A9", "%E2%82%AC", "%f0%9f%8e%89", "x%20y",
		"!", "$", "&", "'", "(", ")", "*", "+", ",", "=", ":", "@", "a:b@c", "<", ">", "[", "]", "{", "}", "|", "^", "`", `"`,
	}
)

// A path is accepted only if all programs on the way read it alike. A bad segment is refused
// everywhere, alone or within a segment; a good one is accepted everywhere.
func TestPathsAreCanonical(t *testing.T) {
	w := newWorld(t, everything)
	tried := 0
	for want, segments := range map[authz.Reason][]string{authz.BadPath: badSegments, authz.Allowed: goodSegments} {
		for _, s := range segments {
			around := []string{s}
			if bare := strings.Trim(s, "."); bare != "" || want == authz.Allowed {
				// dots within a segment are harmless
				around = append(around, "x"+s, s+"x", "x"+s+"x")
			}
			for _, segment := range around {
				all := []string{"api", "v1", "brands"}
				for at := range len(all) + 1 {
					with := append(append(append([]string{}, all[:at]...), segment), all[at:]...)
					for _, end := range []string{"", "/", "?a=1", "/?api_key="} {
						p := "/" + strings.Join(with, "/") + end
						if strings.ContainsAny(segment, "?#") && end != "" {
							continue
						}
						w.expect(t, fmt.Sprintf("%q", p), get(p), want)
						tried++
					}
				}
			}
		}
	}
	t.Logf("%d paths", tried)
}

// The test lists whole targets, in all forms of a request line and in invalid ones.
func TestTargets(t *testing.T) {
	w := newWorld(t, everything)
	long := "/" + strings.Repeat("a", 8<<10-1)
	for _, row := range []struct {
		target string
		want   authz.Reason
	}{
		{"/", authz.Allowed}, {"/?", authz.Allowed}, {"/x/", authz.Allowed}, {"/x?//", authz.Allowed}, {"/x?a=../..", authz.Allowed},
		{"/x?a=%2f%00;%zz\\", authz.Allowed}, {"/x?\xff\xfe=é", authz.BadQuery}, {"/x?q=çay", authz.BadQuery}, {"/x?q=%C3%A7ay", authz.Allowed}, {"/x??", authz.Allowed},
		{long, authz.Allowed}, {long + "?" + strings.Repeat("q", 100_000), authz.Allowed},

		{"", authz.BadPath}, {"?", authz.BadPath}, {"?a=1", authz.BadPath}, {"*", authz.BadPath}, {"x", authz.BadPath}, {".", authz.BadPath},
		{"api/v1/brands", authz.BadPath}, {"%2fapi", authz.BadPath}, {`\api`, authz.BadPath}, {" /api", authz.BadPath}, {"/api ", authz.BadPath},
		{"http://host/api", authz.BadPath}, {"https://host", authz.BadPath}, {"host:443", authz.BadPath}, {"javascript:x", authz.BadPath},
		{"//", authz.BadPath}, {"//host/api", authz.BadPath}, {"/api//v1", authz.BadPath}, {"/api/v1//", authz.BadPath}, {"///", authz.BadPath},
		{"/api#x", authz.BadPath}, {"/api?#", authz.BadQuery}, {"/api?a b", authz.BadQuery}, {"/api?a\tb", authz.BadQuery}, {"/api?\x00", authz.BadQuery},
		{"/api?\r\nX: y", authz.BadQuery}, {"/..", authz.BadPath}, {"/.", authz.BadPath}, {"/../", authz.BadPath}, {"/api/..?", authz.BadPath},
		{long + "a", authz.BadPath}, {long + "a?x", authz.BadPath},
	} {
		name := row.target
		if len(name) > 100 {
			name = fmt.Sprintf("%s… (%d bytes)", name[:20], len(name))
		}
		w.expect(t, fmt.Sprintf("%q", name), get(row.target), row.want)
	}
}

// parameter is a part of a query, with or without a key. Its text holds no '&'.
type parameter struct {
	text string
	key  bool
}

var aParameter = rapid.Custom(func(t *rapid.T) parameter {
	value := rapid.StringOfN(rapid.RuneFrom([]rune(`abk_=?/\"'%2+.,:[]{}|`)), 0, 8, -1)
	if rapid.Bool().Draw(t, "key") {
		return parameter{rapid.SampledFrom([]string{"api_key", "api_key="}).Draw(t, "form"), true}
	}
	name := rapid.SampledFrom([]string{
		"", "a", "page", "api", "api_keys", "xapi_key", "API_KEY", "api-key", "api_key[]", "api_key.", "key", "%zz", "%", "%C3%A9", "?api_key", "+", "%20",
	}).Draw(t, "name")
	if rapid.Bool().Draw(t, "has value") {
		name += "=" + value.Draw(t, "value")
	}
	return parameter{name, false}
})

// The upstream sees the rule's path and the query without its keys, otherwise byte for byte. The
// oracle does not parse: it knows the input.
func TestTheRestOfTheQueryIsUnchanged(t *testing.T) {
	w := newWorld(t, everything, authz.Rule{Path: "/old/*", Kind: authz.KindPublic, Rewrite: "/new"})
	rapid.Check(t, func(t *rapid.T) {
		parameters := rapid.SliceOfN(aParameter, 1, 8).Draw(t, "parameters")
		var all, kept []string
		for _, p := range parameters {
			if p.key && strings.HasSuffix(p.text, "=") {
				p.text += rapid.SampledFrom([]string{"", "", w.ada, "canary", "%20", "=", "a=b", "?"}).Draw(t, "value")
			}
			all = append(all, p.text)
			if !p.key {
				kept = append(kept, p.text)
			}
		}
		rest := ""
		if len(kept) > 0 {
			rest = "?" + strings.Join(kept, "&")
		}
		for from, to := range map[string]string{"/x/y": "/x/y", "/old/y": "/new/y", "/": "/"} {
			target := from + "?" + strings.Join(all, "&")
			want := to + rest
			if want == target {
				want = "" // unchanged
			}
			d := w.expect(t, fmt.Sprintf("%q", target), get(target), authz.Allowed)
			if d.Rewrite.Path != want {
				t.Errorf("%q: the upstream sees %q, want %q", target, d.Rewrite.Path, want)
			}
		}
	})
}

// Separators are preserved, even with nothing between them.
func TestSeparatorsOfTheQueryAreUnchanged(t *testing.T) {
	w := newWorld(t, everything)
	for query, want := range map[string]string{
		"?api_key=1": "", "?api_key=1&": "?", "?&api_key=1": "?", "?&api_key=1&": "?&", "?a&&api_key=1": "?a&", "?api_key=1&&a": "?&a", "?a&api_key=1&": "?a&",
		"?a&api_key=1&&&": "?a&&&", "?api_key=1&?": "??",
	} {
		if d := w.expect(t, query, get("/x"+query), authz.Allowed); d.Rewrite.Path != "/x"+want {
			t.Errorf("%s: the upstream sees %q, want %q", query, d.Rewrite.Path, "/x"+want)
		}
	}
}

// No target causes a panic. Go's own packages read an accepted path alike and path.Clean does not
// change it, and the upstream sees no api_key.
func FuzzTarget(f *testing.F) {
	for _, s := range append(append([]string{}, badSegments...), goodSegments...) {
		f.Add("/api/" + s + "/x?api_key=" + s)
	}
	for _, s := range []string{"", "/", "*", "/x?api%5fkey=1", "/x?a;api_key=1", "/x?api_key", "/x?api_key=1&api_key=2&", "http://h/", "/old/x?api_key=%"} {
		f.Add(s)
	}
	w := newWorld(f, everything, authz.Rule{Path: "/old/*", Kind: authz.KindPublic, Rewrite: "/new"})
	f.Fuzz(func(t *testing.T, target string) {
		d, err := w.decide(t, get(target))
		if err != nil {
			t.Fatalf("%q: %v", target, err)
		}
		switch d.Reason {
		case authz.BadPath, authz.BadQuery, authz.DisguisedKey:
			return
		case authz.Allowed:
		default:
			t.Fatalf("%q: %v", target, d.Reason)
		}
		raw, _, _ := strings.Cut(target, "?")
		parsed, err := url.ParseRequestURI(target)
		if err != nil || parsed.Host != "" || parsed.Scheme != "" || parsed.Fragment != "" {
			t.Fatalf("%q: Go reads %+v, %v", target, parsed, err)
		}
		clean := path.Clean(parsed.Path)
		if strings.HasSuffix(raw, "/") && clean != "/" {
			clean += "/"
		}
		if parsed.Path != clean || strings.Count(parsed.Path, "/") != strings.Count(raw, "/") || !utf8.ValidString(parsed.Path) {
			t.Errorf("%q: decoded %q, cleaned %q", target, parsed.Path, clean)
		}
		if strings.ContainsAny(parsed.Path, "\\;#?%\x00\n\r\x7f") {
			t.Errorf("%q: the decoded path %q has a separator in it", target, parsed.Path)
		}
		seen := target
		if d.Rewrite.Path != "" {
			seen = d.Rewrite.Path
		}
		if _, query, _ := strings.Cut(seen, "?"); hasKey(query) {
			t.Errorf("%q: the upstream sees %q", target, seen)
		}
		if again := w.expect(t, seen, get(seen), authz.Allowed); again.Rewrite.Path != "" && !strings.HasPrefix(seen, "/old/") {
			t.Errorf("%q: rewritten to %q, and that to %q", target, seen, again.Rewrite.Path)
		}
	})
}

// hasKey reports whether any kind of upstream would find a parameter api_key: one that splits at
// '&' only or at ';' as well, and decodes or not.
func hasKey(query string) bool {
	for part := range strings.FieldsFuncSeq(query, func(c rune) bool { return c == '&' || c == ';' }) {
		name, _, _ := strings.Cut(part, "=")
		if decoded, err := url.QueryUnescape(name); name == "api_key" || err == nil && decoded == "api_key" {
			return true
		}
	}
	return false
}
