package apikey_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
)

func newForeign(t *testing.T, formats ...apikey.KeyFormat) *apikey.Foreign {
	t.Helper()
	f, err := apikey.NewForeign(formats)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var (
	live = apikey.KeyFormat{Prefix: "sk_live_", Pattern: "[0-9A-Za-z]{24}"}
	open = apikey.KeyFormat{Prefix: "key-", Pattern: ".+"}
	bare = apikey.KeyFormat{Pattern: "[0-9a-f]{32}"}

	liveKey = "sk_live_" + strings.Repeat("aB3", 8)
	bareKey = strings.Repeat("0f", 16)
)

// A key is a whole value of one of the formats, of 16 to 256 visible characters. Without a prefix
// it counts only where that is asked for.
func TestForeignKeys(t *testing.T) {
	f := newForeign(t, live, open, bare)
	for _, row := range []struct {
		name, value     string
		header, another bool
	}{
		{"a key", liveKey, true, true},
		{"a key without its last character", liveKey[:len(liveKey)-1], false, false},
		{"a key and one more character", liveKey + "a", false, false},
		{"a key after a blank", " " + liveKey, false, false},
		{"a prefix in another case", strings.ToUpper(liveKey), false, false},
		{"the prefix alone", "sk_live_", false, false},
		{"a key without a prefix", bareKey, true, false},
		{"the shortest key", "key-" + strings.Repeat("x", 12), true, true},
		{"a shorter one", "key-" + strings.Repeat("x", 11), false, false},
		{"the longest key", "key-" + strings.Repeat("x", 252), true, true},
		{"a longer one", "key-" + strings.Repeat("x", 253), false, false},
		{"a blank within", "key-xxxxxx xxxxxx", false, false},
		{"a comma within", "key-xxxxxx,xxxxxx", false, false},
		{"a letter beyond ASCII", "key-xxxxxxéxxxxxx", false, false},
		{"nothing", "", false, false},
	} {
		token, ok := f.Parse(row.value, true)
		if ok != row.header || ok && token.Reveal() != row.value {
			t.Errorf("%s in X-API-Key: %v", row.name, ok)
		}
		if _, ok := f.Parse(row.value, false); ok != row.another {
			t.Errorf("%s elsewhere: %v", row.name, ok)
		}
	}
	if _, ok := (*apikey.Foreign)(nil).Parse(liveKey, true); ok {
		t.Error("a key without formats")
	}
}

// A key is found anywhere in a text, but only between boundaries: a longer word is another one.
func TestForeignKeysInText(t *testing.T) {
	f := newForeign(t, live, open, bare)
	for text, masked := range map[string]string{
		"Bearer " + liveKey:                          "Bearer …",
		"/v1/" + liveKey + "/x":                      "/v1/…/x",
		liveKey + "," + liveKey + "; a=" + liveKey:   "…,…; a=…",
		"x" + liveKey:                                "x" + liveKey,
		liveKey + "x":                                liveKey + "x",
		liveKey + "_":                                liveKey + "_",
		"sk_live_sk_live_" + liveKey[8:]:             "sk_live_sk_live_" + liveKey[8:],
		"-" + liveKey + "-":                          "-…-",
		"%3F" + liveKey + "%2F":                      "%3F…%2F",
		"sk_live_ " + liveKey:                        "sk_live_ …",
		"key-short key-" + strings.Repeat("long", 5): "key-short …",
		"Bearer " + bareKey:                          "Bearer " + bareKey,
		"":                                           "",
	} {
		if got := f.Masked(text); got != masked {
			t.Errorf("%q: %q, want %q", text, got, masked)
		}
		if f.FoundIn(text) != (masked != text) {
			t.Errorf("%q: found is %v", text, f.FoundIn(text))
		}
	}
}

// A long text full of beginnings of keys takes one pass.
func TestForeignKeysInALongText(t *testing.T) {
	f := newForeign(t, live, apikey.KeyFormat{Prefix: "ab-", Pattern: "[a-z]{9,40}-?[a-z-]{1,200}[0-9]"}, apikey.KeyFormat{Prefix: "ab.", Pattern: ".{13,200}"})
	for _, part := range []string{"sk_live_", " sk_live_", "ab-", "ab-ab", "ab-abcdefghi ", "ab. ", "ab.x,"} {
		text := strings.Repeat(part, 64<<10/len(part))
		began := time.Now()
		f.FoundIn(text)
		f.Masked(text)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%q repeated takes %v", part, took)
		}
	}
}

// A format that cannot work is an error with its reason, never a panic: not alone, and not together
// with others.
func TestWrongKeyFormats(t *testing.T) {
	for want, format := range map[string]apikey.KeyFormat{
		"has not 3 to 32 characters":         {Prefix: "sk", Pattern: "a{20}"},
		"may hold only letters":              {Prefix: "sk live", Pattern: "a{20}"},
		"1 to 512 bytes":                     {Prefix: "sk_"},
		"unexpected )":                       {Prefix: "sk_", Pattern: "a{20})(b"},
		"missing closing ]":                  {Prefix: "sk_", Pattern: "[a-z"},
		"no key holds ' '":                   {Prefix: "sk_", Pattern: "a{20} b"},
		"no key holds ','":                   {Prefix: "sk_", Pattern: "a{20},b"},
		"leave out":                          {Prefix: "sk_", Pattern: "a{20}$"},
		"invalid repeat count":               {Prefix: "sk_", Pattern: "a{2000}"},
		"invalid or unsupported Perl syntax": {Prefix: "sk_", Pattern: "(?=a)b"},
	} {
		_, err := apikey.NewForeign([]apikey.KeyFormat{live, format})
		if wrong, ok := err.(interface{ Unwrap() []error }); !ok || len(wrong.Unwrap()) != 1 || !strings.Contains(err.Error(), "format 1: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", format, err, want)
		}
	}
	for _, pattern := range []string{`\Q`, `\Qa.b`, `(?i)abcdef{20}`, `a|b`, `(?P<a>x)(?P<b>y{16})`} {
		if _, err := apikey.NewForeign([]apikey.KeyFormat{{Prefix: "one_", Pattern: pattern}, {Prefix: "two_", Pattern: pattern}, {Pattern: pattern}}); err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
	}
	if _, err := apikey.NewForeign([]apikey.KeyFormat{live, live}); err == nil {
		t.Error("a format is there twice")
	}
	// an alternative does not end the expression around it
	f := newForeign(t, apikey.KeyFormat{Prefix: "one_", Pattern: "a{20}|b{20}"}, live)
	if _, ok := f.Parse(strings.Repeat("b", 20), true); ok {
		t.Error("a key without its prefix")
	}
}

// Formats that no key can have, and those that overlap our own prefixes, are reported.
func TestWarningsOfKeyFormats(t *testing.T) {
	for want, formats := range map[string][]apikey.KeyFormat{
		"":                     {live, open, bare, {Prefix: "whale_", Pattern: "x+"}},
		"no key can match":     {{Prefix: "sk_", Pattern: "a{12}"}, {Prefix: "sk_", Pattern: "a{254,}"}, {Pattern: `\Q`}, {Prefix: "sk_", Pattern: "[ ,]{16}"}},
		"is also that of keys": {{Prefix: "wh_", Pattern: "[0-9a-f]{48}"}, {Prefix: "wh_live_", Pattern: "x{20}"}},
		"that of sessions":     {{Prefix: "ks_", Pattern: "[0-9a-f]{48}"}},
	} {
		for _, format := range formats {
			if got := strings.Join(format.Warnings("wh_"), "\n"); (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("%+v: %q, want %q", format, got, want)
			}
		}
	}
}
