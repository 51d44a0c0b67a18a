package apikey_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"log"
	"log/slog"
	"strings"
	"testing"
	texttemplate "text/template"

	"github.com/keyporter/keyporter/apikey"
)

// These types hold a Token in ways that are easy to overlook.
type (
	exported   struct{ Token apikey.Token }
	unexported struct{ token apikey.Token }
	embedded   struct{ apikey.Token }
	deep       struct {
		Any  any
		List []apikey.Token
		Map  map[string]apikey.Token
		Ptr  *exported
		in   unexported
		keys map[apikey.Token]int
		ptr  *apikey.Token
	}
)

func nestings(t apikey.Token) map[string]any {
	return map[string]any{
		"Token":      t,
		"pointer":    &t,
		"pointer²":   func() any { p := &t; return &p }(),
		"slice":      []apikey.Token{t},
		"array":      [1]apikey.Token{t},
		"map value":  map[string]apikey.Token{"k": t},
		"map key":    map[apikey.Token]string{t: "v"},
		"interface":  []any{t},
		"exported":   exported{t},
		"unexported": unexported{t},
		"embedded":   embedded{t},
		"pointers":   &deep{Ptr: &exported{t}, ptr: &t},
		"deep": deep{
			t, []apikey.Token{t}, map[string]apikey.Token{"k": t}, &exported{t},
			unexported{t}, map[apikey.Token]int{t: 1}, &t,
		},
		"error": fmt.Errorf("opening %v: %w", t, errors.New("no")),
	}
}

// expectHidden fails if out holds the token or a part of it, in any readable form.
func expectHidden(t *testing.T, token apikey.Token, out string) {
	t.Helper()
	secret := token.Reveal()[len(apikey.DefaultPrefix):]
	raw, err := hex.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	lower := strings.ToLower(out)
	for _, part := range []string{
		secret[:8], secret[len(secret)-8:], // cut off
		hex.EncodeToString([]byte(secret))[:16],                      // %x
		strings.Trim(fmt.Sprintf("% x", secret[:8]), " "),            // % x
		strings.Trim(fmt.Sprint([]byte(secret[:8])), "[]"),           // %d of the characters
		strings.Trim(strings.Trim(fmt.Sprint(raw[:8]), "[]"), " "),   // %d of the bytes
		strings.ToLower(base64.StdEncoding.EncodeToString(raw)[:12]), // of the bytes
		strings.ToLower(base64.StdEncoding.EncodeToString([]byte(secret))[:12]),
	} {
		if strings.Contains(lower, part) {
			t.Errorf("the output holds the key, as %q: %s", part, out)
		}
	}
}

// No formatting verb with any flag prints a key, however deeply it is nested.
func TestAKeyIsNotPrintedByAnyVerb(t *testing.T) {
	token := newFormat(t, apikey.FormatConfig{}).Generate()
	printed := 0
	for name, value := range nestings(token) {
		for verb := byte('A'); verb <= 'z'; verb++ {
			for _, flag := range []string{"", "+", "#", "-", " ", "0", "+#", "# ", "60", ".3"} {
				format := "%" + flag + string(verb)
				t.Run(name+format, func(t *testing.T) { expectHidden(t, token, fmt.Sprintf(format, value)) })
				printed++
			}
		}
		expectHidden(t, token, fmt.Sprint(value)+fmt.Sprintln(value)+string(fmt.Append(nil, value)))
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(format, token); got != "[key hidden]" {
			t.Errorf("%s prints %q", format, got)
		}
	}
	if got := token.String(); got != "[key hidden]" {
		t.Errorf("String returns %q", got)
	}
	t.Logf("%d combinations", printed)
}

// No logger, template or encoder prints a key either. Encoders that would have to show it fail.
func TestAKeyIsNotEncoded(t *testing.T) {
	token := newFormat(t, apikey.FormatConfig{}).Generate()
	for name, value := range nestings(token) {
		for way, write := range map[string]func(w io.Writer, value any) error{
			"json":      func(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) },
			"xml":       func(w io.Writer, v any) error { return xml.NewEncoder(w).Encode(v) },
			"gob":       func(w io.Writer, v any) error { return gob.NewEncoder(w).Encode(v) },
			"slog text": func(w io.Writer, v any) error { slog.New(slog.NewTextHandler(w, nil)).Error("m", "k", v); return nil },
			"slog json": func(w io.Writer, v any) error { slog.New(slog.NewJSONHandler(w, nil)).Error("m", "k", v); return nil },
			"slog group": func(w io.Writer, v any) error {
				slog.New(slog.NewJSONHandler(w, nil)).WithGroup("g").With("k", v).Error("m", slog.Group("h", "k", v))
				return nil
			},
			"log": func(w io.Writer, v any) error { log.New(w, "", 0).Print(v); return nil },
			"text template": func(w io.Writer, v any) error {
				return texttemplate.Must(texttemplate.New("").Parse(`{{.}} {{printf "%s" .}} {{js .}}`)).Execute(w, v)
			},
			"html template": func(w io.Writer, v any) error {
				return htmltemplate.Must(htmltemplate.New("").Parse(`{{.}}<a href="{{.}}" onclick="{{.}}">`)).Execute(w, v)
			},
		} {
			t.Run(way+" "+name, func(t *testing.T) {
				var out bytes.Buffer
				err := write(&out, value)
				expectHidden(t, token, out.String()+fmt.Sprint(err))
			})
		}
	}
	for name, encode := range map[string]func() ([]byte, error){
		"json": func() ([]byte, error) { return json.Marshal(exported{token}) },
		"xml":  func() ([]byte, error) { return xml.Marshal(exported{token}) },
		"gob": func() ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(exported{token})
			return b.Bytes(), err
		},
		"text":   token.MarshalText,
		"binary": token.GobEncode,
	} {
		if out, err := encode(); !errors.Is(err, apikey.ErrHidden) {
			t.Errorf("%s: %q, error %v; want ErrHidden", name, out, err)
		}
	}
}

// The digest is the SHA-256 of the whole key, so that digests made by another system can be
// imported.
func TestTheDigestIsTheSHA256OfTheWholeKey(t *testing.T) {
	token := newFormat(t, apikey.FormatConfig{}).Generate()
	if token.Digest() != sha256.Sum256([]byte(token.Reveal())) {
		t.Error("it is something else")
	}
	known, ok := newForeign(t, apikey.KeyFormat{Prefix: "wh_", Pattern: "[0-9a-f]{48}"}).Parse("wh_"+strings.Repeat("0123456789ab", 4), false)
	if !ok {
		t.Fatal("not of the format")
	}
	const want = "5c05ac3e695e89457f09f486ae45113f7dcadaa28407239e6fed20ec8a79e9b3" // computed by sha256sum
	if got := hex.EncodeToString(digestBytes(known)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func digestBytes(t apikey.Token) []byte { d := t.Digest(); return d[:] }

// The zero Token is empty, opens nothing and is hidden like any other.
func TestTheZeroTokenIsEmpty(t *testing.T) {
	var zero apikey.Token
	if !zero.IsZero() || zero.Reveal() != "" || zero.String() != "[key hidden]" || zero.Digest() != sha256.Sum256(nil) {
		t.Error("it is not")
	}
	if newFormat(t, apikey.FormatConfig{}).Generate().IsZero() {
		t.Error("a key is zero")
	}
}

// ParseDigest accepts 64 hexadecimal digits and nothing else.
func TestParseDigest(t *testing.T) {
	digits := strings.Repeat("0123456789abcdef", 4)
	for _, good := range []string{digits, strings.ToUpper(digits)} {
		if d, err := apikey.ParseDigest(good); err != nil || hex.EncodeToString(d[:]) != digits {
			t.Errorf("%q: %x, %v", good, d[:], err)
		}
	}
	for name, bad := range map[string]string{
		"nothing": "", "too short": digits[:63], "too long": digits + "0", "a byte too long": digits + "00", "no digit": digits[:63] + "g", "prefixed": "0x" + digits[:62],
		"a key": "wh_" + digits[:48], "blank": digits[:63] + " ", "not ASCII": digits[:62] + "é",
	} {
		d, err := apikey.ParseDigest(bad)
		if err == nil || d != (apikey.Digest{}) {
			t.Errorf("%s was read", name)
		} else if bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%s: the error quotes it: %v", name, err)
		}
	}
}
