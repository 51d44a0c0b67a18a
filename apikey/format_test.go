package apikey_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/keyporter/keyporter/apikey"
)

func secret(n byte) []byte { return bytes.Repeat([]byte{n}, apikey.MinSecret) }

// newFormat returns the Format of c, with secret 1 if c has none.
func newFormat(tb testing.TB, c apikey.FormatConfig) *apikey.Format {
	tb.Helper()
	if c.Secrets == nil {
		c.Secrets = [][]byte{secret(1)}
	}
	f, err := apikey.NewFormat(c)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// keyOf makes a key as documented, without the product's code.
func keyOf(prefix string, random, secret []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write(random)
	return prefix + hex.EncodeToString(append(bytes.Clone(random), mac.Sum(nil)[:4]...))
}

var random = []byte("twenty random bytes!")

// A key is a prefix and 48 lower-case hexadecimal digits. No two keys are equal, and the format
// that made a key parses it.
func TestGeneratedKeys(t *testing.T) {
	for _, prefix := range []string{"", "wh_", "ks_", "live-", "k", strings.Repeat("P", apikey.MaxPrefix)} {
		f := newFormat(t, apikey.FormatConfig{Prefix: prefix})
		if prefix == "" {
			prefix = "wh_"
		}
		shape := regexp.MustCompile(`^` + prefix + `[0-9a-f]{48}$`)
		seen := map[string]bool{}
		for range 2000 {
			key := f.Generate().Reveal()
			if !shape.MatchString(key) || seen[key[len(prefix):][:40]] {
				t.Fatalf("%q: wrong shape, or seen before", key)
			}
			seen[key[len(prefix):][:40]] = true
			parsed, err := f.Parse(key)
			if err != nil || parsed.Reveal() != key {
				t.Fatalf("%q is not parsed: %v", key, err)
			}
			raw, err := hex.DecodeString(key[len(prefix):])
			if err != nil || keyOf(prefix, raw[:20], secret(1)) != key {
				t.Fatalf("%q has another tag than the contract says", key)
			}
		}
	}
}

// All 20 bytes are random: none has the same value in every key.
func TestEveryByteOfAKeyIsRandom(t *testing.T) {
	f := newFormat(t, apikey.FormatConfig{})
	var seen [20]map[byte]bool
	for range 1000 {
		raw, err := hex.DecodeString(f.Generate().Reveal()[3:])
		if err != nil {
			t.Fatal(err)
		}
		for i := range seen {
			if seen[i] == nil {
				seen[i] = map[byte]bool{}
			}
			seen[i][raw[i]] = true
		}
	}
	for i, values := range seen {
		if len(values) < 200 { // of 256; about 251 are expected
			t.Errorf("byte %d has %d values in 1,000 keys", i, len(values))
		}
	}
}

// Only the exact shape is a key. Anything else is malformed before its tag is checked.
func TestShape(t *testing.T) {
	f := newFormat(t, apikey.FormatConfig{})
	good := keyOf("wh_", random, secret(1))
	for name, bad := range map[string]string{
		"nothing":             "",
		"the prefix":          "wh_",
		"digits alone":        good[3:],
		"another prefix":      "ks_" + good[3:],
		"upper-case prefix":   "WH_" + good[3:],
		"upper-case digits":   "wh_" + strings.ToUpper(good[3:]),
		"one short":           good[:len(good)-1],
		"one long":            good + "0",
		"blank before":        " " + good,
		"blank after":         good + " ",
		"line end":            good + "\n",
		"blank for a digit":   good[:20] + " " + good[21:],
		"NUL for a digit":     good[:20] + "\x00" + good[21:],
		"letter g":            good[:20] + "g" + good[21:],
		"slash, before 0":     good[:20] + "/" + good[21:],
		"colon, after 9":      good[:20] + ":" + good[21:],
		"grave, before a":     good[:20] + "`" + good[21:],
		"full-width digit":    good[:20] + "０" + good[23:],
		"high bit":            good[:20] + string([]byte{good[20] | 0x80}) + good[21:],
		"doubled":             good + good,
		"percent-encoded":     "wh%5F" + good[3:],
		"quoted":              `"` + good + `"`,
		"prefix in the place": "wh_wh_" + good[6:],
	} {
		token, err := f.Parse(bad)
		if !errors.Is(err, apikey.ErrMalformed) || !token.IsZero() {
			t.Errorf("%s: error %v, want ErrMalformed", name, err)
		}
	}
	for i := 3; i < len(good); i++ { // at every digit
		if _, err := f.Parse(good[:i] + "G" + good[i+1:]); !errors.Is(err, apikey.ErrMalformed) {
			t.Errorf("a wrong digit at %d: %v", i, err)
		}
	}
}

// A key with one digit changed anywhere, including the tag, has the wrong tag.
func TestEveryDigitIsGuardedByTheTag(t *testing.T) {
	f := newFormat(t, apikey.FormatConfig{})
	good := keyOf("wh_", random, secret(1))
	tried := 0
	for i := 3; i < len(good); i++ {
		for _, digit := range "0123456789abcdef" {
			changed := good[:i] + string(digit) + good[i+1:]
			token, err := f.Parse(changed)
			if changed == good {
				if err != nil {
					t.Errorf("the key itself: %v", err)
				}
				continue
			}
			if !errors.Is(err, apikey.ErrWrongTag) || !token.IsZero() {
				t.Errorf("%c at %d: error %v, want ErrWrongTag", digit, i, err)
			}
			tried++
		}
	}
	if tried != 48*15 {
		t.Errorf("%d changes tried", tried)
	}
}

// During the rotation of a secret, keys of both secrets are accepted and new ones use the first.
// Afterwards only the first is accepted.
func TestRotationOfTheTagSecret(t *testing.T) {
	before := newFormat(t, apikey.FormatConfig{Secrets: [][]byte{secret(1)}})
	during := newFormat(t, apikey.FormatConfig{Secrets: [][]byte{secret(2), secret(1)}})
	after := newFormat(t, apikey.FormatConfig{Secrets: [][]byte{secret(2)}})
	for range 100 {
		for _, test := range []struct {
			key                   apikey.Token
			before, during, after error
		}{
			{before.Generate(), nil, nil, apikey.ErrWrongTag},
			{during.Generate(), apikey.ErrWrongTag, nil, nil},
			{after.Generate(), apikey.ErrWrongTag, nil, nil},
		} {
			for f, want := range map[*apikey.Format]error{before: test.before, during: test.during, after: test.after} {
				if _, err := f.Parse(test.key.Reveal()); !errors.Is(err, want) {
					t.Fatalf("error %v, want %v", err, want)
				}
			}
		}
	}
}

// A Format keeps a copy of the secrets.
func TestAFormatKeepsItsSecrets(t *testing.T) {
	s := secret(1)
	f := newFormat(t, apikey.FormatConfig{Secrets: [][]byte{s}})
	clear(s)
	if _, err := f.Parse(keyOf("wh_", random, secret(1))); err != nil {
		t.Error(err)
	}
}

// An unsafe format is refused, and the error quotes no secret.
func TestFormatsThatAreNotMade(t *testing.T) {
	canary := []byte("canarycanary!!!") // one byte short
	for name, c := range map[string]apikey.FormatConfig{
		"no secret":          {},
		"an empty secret":    {Secrets: [][]byte{nil}},
		"a short secret":     {Secrets: [][]byte{canary}},
		"a short second one": {Secrets: [][]byte{secret(1), canary}},
		"a long prefix":      {Secrets: [][]byte{secret(1)}, Prefix: strings.Repeat("a", apikey.MaxPrefix+1)},
	} {
		if _, err := apikey.NewFormat(c); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	for _, bad := range " \t\x00\x7f!\"#$%&'()*+,./:;<=>?@[\\]^`{|}~é" {
		if err := apikey.CheckPrefix("wh" + string(bad)); err == nil {
			t.Errorf("a prefix with %q is accepted", bad)
		}
	}
	for _, good := range []string{"", "wh_", "A-z_09", strings.Repeat("a", apikey.MaxPrefix)} {
		if err := apikey.CheckPrefix(good); err != nil {
			t.Error(err)
		}
	}
}

// FoundIn finds a value shaped like a key anywhere, whatever its tag, and nothing else.
func TestFoundIn(t *testing.T) {
	f := newFormat(t, apikey.FormatConfig{})
	key := "wh_" + strings.Repeat("0f", 24)
	for _, text := range []string{
		key, "Bearer " + key, "x" + key + "y", key + key, "wh_" + key, "wh_wh_" + key, key[:50] + key, key + "0", "a,b, " + key + ", c", "\x00" + key + "\xff",
	} {
		if !f.FoundIn(text) {
			t.Errorf("not found in %q", text)
		}
	}
	doubled := newFormat(t, apikey.FormatConfig{Prefix: "kk"})
	if !doubled.FoundIn("kkk" + key[3:]) {
		t.Error("not found where the prefix begins within itself")
	}
	for _, text := range []string{
		"", "wh_", key[:50], key[1:], key[3:], strings.ToUpper(key), "wh_ " + key[3:], strings.Repeat("wh_", 100), key[:20] + "-" + key[20:], "ks_" + key[3:],
	} {
		if f.FoundIn(text) {
			t.Errorf("found in %q", text)
		}
	}
}

// A Format is safe for concurrent use.
func TestAFormatIsSafeForConcurrentUse(t *testing.T) {
	f := newFormat(t, apikey.FormatConfig{Secrets: [][]byte{secret(2), secret(1)}})
	old := keyOf("wh_", random, secret(1))
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 500 {
				if _, err := f.Parse(f.Generate().Reveal()); err != nil {
					t.Error(err)
				}
				if _, err := f.Parse(old); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
}

func BenchmarkParse(b *testing.B) {
	f := newFormat(b, apikey.FormatConfig{})
	for name, value := range map[string]string{"key": keyOf("wh_", random, secret(1)), "forged": "wh_" + strings.Repeat("0f", 24), "malformed": "x"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.Parse(value)
			}
		})
	}
}

// For every input, only a value made with the secret is a key, and no error quotes the value.
func FuzzParse(f *testing.F) {
	format := newFormat(f, apikey.FormatConfig{})
	good := keyOf("wh_", random, secret(1))
	shape := regexp.MustCompile(`\Awh_[0-9a-f]{48}\z`)
	for _, seed := range []string{"", "wh_", good, good[:50], good + "0", strings.ToUpper(good), "wh_" + strings.Repeat("0", 48), "\xff" + good} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, err := format.Parse(s)
		if shape.MatchString(s) && !format.FoundIn(s) {
			t.Errorf("%q is not found in itself", s)
		}
		switch {
		case err == nil:
			raw, hexErr := hex.DecodeString(s[3:])
			if hexErr != nil || keyOf("wh_", raw[:20], secret(1)) != s || token.Reveal() != s {
				t.Errorf("%q is no key", s)
			}
		case !token.IsZero():
			t.Errorf("%q: a Token beside the error %v", s, err)
		case errors.Is(err, apikey.ErrWrongTag) != shape.MatchString(s), errors.Is(err, apikey.ErrMalformed) == shape.MatchString(s):
			t.Errorf("%q: %v", s, err)
		case len(s) > 3 && strings.Contains(fmt.Sprint(err), s):
			// A value that occurs in the fixed text reveals nothing.
			if !strings.Contains(apikey.ErrMalformed.Error()+apikey.ErrWrongTag.Error(), s) {
				t.Errorf("%q: the error quotes it: %v", s, err)
			}
		}
	})
}
