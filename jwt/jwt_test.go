package jwt_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/jwt"
	"github.com/keyporter/keyporter/nowait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// app is a web app that signs tokens and serves its keys.
type app struct {
	t      *testing.T
	server *httptest.Server
	keys   atomic.Pointer[jose.JSONWebKeySet]
	asked  atomic.Int64
	away   atomic.Bool
}

func newApp(t *testing.T, keys ...jose.JSONWebKey) *app {
	t.Helper()
	a := &app{t: t}
	a.keys.Store(&jose.JSONWebKeySet{Keys: keys})
	a.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		if a.away.Load() {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		json.NewEncoder(w).Encode(a.keys.Load())
	}))
	t.Cleanup(func() {
		a.server.Close()
		http.DefaultClient.CloseIdleConnections()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return a
}

func (a *app) verifier(change func(*jwt.Config)) *jwt.Verifier {
	a.t.Helper()
	c := jwt.Config{Keys: a.server.URL + "/jwks.json", Issuer: "https://login.example.com/", Audience: "api"}
	if change != nil {
		change(&c)
	}
	v, err := jwt.New(c)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(v.Close)
	return v
}

// claims returns valid claims with these changes; nil removes a claim.
func claims(changes map[string]any) map[string]any {
	now := time.Now().Unix()
	all := map[string]any{"iss": "https://login.example.com/", "aud": "api", "sub": "auth0|1", "iat": now, "exp": now + 60}
	for name, value := range changes {
		all[name] = value
		if value == nil {
			delete(all, name)
		}
	}
	return all
}

// sign returns a signed token.
func sign(t *testing.T, key any, algorithm jose.SignatureAlgorithm, id string, what map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	if id != "" {
		options.WithHeader("kid", id)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func public(key crypto.Signer, id string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key.Public(), KeyID: id}
}

func newEC(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSA(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A token is valid if a key of the set has signed it with an allowed algorithm and its claims are
// valid. Each other token of the test has a single fault, and is refused for that.
func TestWhichTokensAreGood(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // permits a key that is too short
	ec, r, weak, stranger := newEC(t), newRSA(t, 2048), newRSA(t, 1024), newEC(t)
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forEncryption, forPS := public(newEC(t), "enc"), public(r, "ps")
	forEncryption.Use, forPS.Algorithm = "enc", "PS256"
	a := newApp(t, public(ec, "ec"), public(r, "rsa"), public(weak, "weak"), jose.JSONWebKey{Key: edPublic, KeyID: "ed"}, forEncryption, forPS,
		jose.JSONWebKey{Key: []byte("a secret that everybody can read 123456"), KeyID: "secret"})
	v := a.verifier(nil)
	now := time.Now()
	segment := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	good := sign(t, ec, jose.ES256, "ec", claims(nil))
	parts := strings.Split(good, ".")
	for _, row := range []struct {
		name, token string
		good        bool
	}{
		{"signed with ES256", good, true},
		{"signed with RS256", sign(t, r, jose.RS256, "rsa", claims(nil)), true},
		{"signed with EdDSA", sign(t, ed, jose.EdDSA, "ed", claims(nil)), true},
		{"without the name of its key", sign(t, ec, jose.ES256, "", claims(nil)), true},
		{"for several audiences", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"aud": []string{"other", "api"}})), true},
		{"that has just expired, by a clock that is slow", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"exp": now.Add(-2 * time.Second).Unix()})), true},

		{"that has expired", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"exp": now.Add(-time.Minute).Unix()})), false},
		{"that is not good yet", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"nbf": now.Add(time.Minute).Unix()})), false},
		{"that was issued in the future", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"iat": now.Add(time.Minute).Unix()})), false},
		{"without an end", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"exp": nil})), false},
		{"without a beginning", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"iat": nil})), false},
		{"of another issuer", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"iss": "https://login.example.com"})), false},
		{"of no issuer", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"iss": nil})), false},
		{"for another audience", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"aud": "other"})), false},
		{"for no audience", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"aud": nil})), false},
		{"of nobody", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"sub": nil})), false},
		{"of an empty name", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"sub": ""})), false},
		{"of a name that is a list", sign(t, ec, jose.ES256, "ec", claims(map[string]any{"sub": []string{"auth0|1"}})), false},

		{"signed by somebody else", sign(t, stranger, jose.ES256, "ec", claims(nil)), false},
		{"signed by somebody else, without a name", sign(t, stranger, jose.ES256, "", claims(nil)), false},
		{"signed with another key than it names", sign(t, r, jose.RS256, "ec", claims(nil)), false},
		{"signed with a key that is too short", sign(t, weak, jose.RS256, "weak", claims(nil)), false},
		{"signed with an algorithm that is not allowed", sign(t, r, jose.PS256, "rsa", claims(nil)), false},
		{"signed with a key that is for another algorithm", sign(t, r, jose.RS256, "ps", claims(nil)), false},
		{"signed with a secret", sign(t, []byte("a secret that everybody can read 123456"), jose.HS256, "secret", claims(nil)), false},
		{"signed with the public key as a secret", sign(t, []byte(`{"kty":"EC"}`+strings.Repeat(" ", 32)), jose.HS256, "ec", claims(nil)), false},
		{"that is not signed", segment(`{"alg":"none"}`) + "." + parts[1] + ".", false},
		{"that says that it need not be signed", segment(`{"alg":"none","kid":"ec"}`) + "." + parts[1] + "." + parts[2], false},
		{"whose claims were changed", parts[0] + "." + segment(`{"sub":"auth0|2"}`) + "." + parts[2], false},
		{"with an extension that must be understood", segment(`{"alg":"ES256","kid":"ec","crit":["x"],"x":1}`) + "." + parts[1] + "." + parts[2], false},
		{"without end", good + strings.Repeat("A", 10_000), false},
		{"that is none", "a.b.c", false},
		{"that is empty", "", false},
	} {
		got, err := v.Verify(t.Context(), row.token)
		switch {
		case row.good && (err != nil || got.Subject != "auth0|1" || got.IssuedAt.Unix() < now.Unix()-1):
			t.Errorf("a token %s: %+v, %v, want that it is good", row.name, got, err)
		case !row.good && !errors.Is(err, jwt.ErrInvalid):
			t.Errorf("a token %s: %+v, %v, want that it is not valid", row.name, got, err)
		case !row.good && row.token != "" && strings.Contains(err.Error(), parts[2]):
			t.Errorf("a token %s: the error quotes it: %v", row.name, err)
		}
	}
}

// Another claim can name the user, and its value can be a number.
func TestTheClaimThatNamesTheUser(t *testing.T) {
	ec := newEC(t)
	a := newApp(t, public(ec, "k"))
	v := a.verifier(func(c *jwt.Config) { c.Claim = "uid" })
	for _, row := range []struct {
		value any
		want  string
	}{{"ada", "ada"}, {1234567890123456789, "1234567890123456789"}, {1.5, ""}, {true, ""}, {nil, ""}} {
		got, err := v.Verify(t.Context(), sign(t, ec, jose.ES256, "k", claims(map[string]any{"uid": row.value})))
		if got.Subject != row.want || (err == nil) != (row.want != "") {
			t.Errorf("%v: %q, %v, want %q", row.value, got.Subject, err, row.want)
		}
	}
}

// An unknown key causes one read of the set, shared by all callers and not repeated. While the set
// cannot be read, known keys stay valid, and tokens with other keys are undecided, not invalid.
func TestKeysChange(t *testing.T) {
	first, second := newEC(t), newEC(t)
	a := newApp(t, public(first, "1"))
	v := a.verifier(nil)
	verify := func(key *ecdsa.PrivateKey, id string) error {
		t.Helper()
		_, err := v.Verify(t.Context(), sign(t, key, jose.ES256, id, claims(nil)))
		return err
	}
	a.away.Store(true)
	if err := verify(first, "1"); err == nil || errors.Is(err, jwt.ErrInvalid) {
		t.Errorf("while no keys could be read: %v, want that it cannot be told", err)
	}
	a.away.Store(false)
	partstest.EventuallyNil(t, "the keys are read again", func() error { return verify(first, "1") }) // retried after a second
	before := a.asked.Load()
	done := make(chan error)
	for range 50 {
		go func() { done <- verify(second, "unknown") }()
	}
	for range 50 {
		if err := <-done; !errors.Is(err, jwt.ErrInvalid) {
			t.Errorf("an unknown key: %v", err)
		}
	}
	if n := a.asked.Load() - before; n > 1 {
		t.Errorf("50 tokens with an unknown key had the set read %d times, want once at most", n)
	}
	a.away.Store(true)
	if err := verify(first, "1"); err != nil {
		t.Errorf("a known key while the set is away: %v", err)
	}
}

// writeKeys writes a JWKS to a file.
func writeKeys(t *testing.T, path string, keys ...jose.JSONWebKey) {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Keys in a file are read again after the file has changed. A missing file, or one without keys, is
// an error at the start.
func TestKeysInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwks.json")
	c := jwt.Config{Keys: path, Issuer: "https://login.example.com/", Audience: "api"}
	if _, err := jwt.New(c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the file: %v, want an error at the start", err)
	}
	if err := os.WriteFile(path, []byte("<html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := jwt.New(c); err == nil || !strings.Contains(err.Error(), "no JWKS") {
		t.Errorf("with a file of something else: %v, want an error at the start", err)
	}
	synctest.Test(t, func(t *testing.T) {
		first, second := newEC(t), newEC(t)
		writeKeys(t, path, public(first, "k"))
		v, err := jwt.New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if _, err := v.Verify(t.Context(), sign(t, first, jose.ES256, "k", claims(nil))); err != nil {
			t.Error(err)
		}
		writeKeys(t, path, public(second, "k"))
		time.Sleep(2 * time.Second)
		v.Verify(t.Context(), sign(t, second, jose.ES256, "k", claims(nil))) // triggers a read
		synctest.Wait()
		if _, err := v.Verify(t.Context(), sign(t, second, jose.ES256, "k", claims(nil))); err != nil {
			t.Errorf("a key that was just written: %v", err)
		}
	})
}

// If a file disappears or holds no usable key any more, this is logged and its keys stay valid,
// forever or up to the configured maximum age. Beyond that, tokens are undecided, not invalid. When
// the file is back, its keys are valid again.
func TestKeysThatGoAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwks.json")
	for _, row := range []struct {
		name   string
		maxAge time.Duration
		gone   func() error
	}{
		{"for ever", 0, func() error { return os.Remove(path) }},
		{"for an hour", time.Hour, func() error { return os.Remove(path) }},
		{"emptied", 0, func() error { return os.WriteFile(path, []byte(`{"keys":[]}`), 0o600) }},
		{"emptied, for an hour", time.Hour, func() error { return os.WriteFile(path, []byte(`{"keys":[]}`), 0o600) }},
		{"only secrets", time.Hour, func() error { return os.WriteFile(path, []byte(`{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`), 0o600) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			maxAge := row.maxAge
			synctest.Test(t, func(t *testing.T) {
				key := newEC(t)
				writeKeys(t, path, public(key, "k"))
				var log partstest.Buffer
				v, err := jwt.New(jwt.Config{Keys: path, Issuer: "https://login.example.com/", Audience: "api", MaxAge: maxAge,
					Log: slog.New(slog.NewJSONHandler(&log, nil))})
				if err != nil {
					t.Fatal(err)
				}
				defer v.Close()
				ctx, stop := context.WithCancel(t.Context())
				running := make(chan struct{})
				go func() { defer close(running); v.Run(ctx) }()
				defer func() { stop(); <-running }()
				verify := func() error {
					_, err := v.Verify(t.Context(), sign(t, key, jose.ES256, "k", claims(nil)))
					return err
				}
				pass := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
				pass(time.Hour)
				if age := v.KeysAge(); verify() != nil || age > time.Minute || log.String() != "" {
					t.Errorf("keys that are there: %v old, %v, %s", age, verify(), &log)
				}
				if err := row.gone(); err != nil {
					t.Fatal(err)
				}
				pass(30 * time.Minute)
				if err := verify(); err != nil {
					t.Errorf("after half an hour without them: %v", err)
				}
				if n := strings.Count(log.String(), "cannot be read"); n != 1 || !strings.Contains(log.String(), `"age":"10s"`) {
					t.Errorf("it was told %d times that they cannot be read, want once, after 10s: %s", n, &log)
				}
				pass(time.Hour)
				err = verify()
				if expired := maxAge > 0; (err != nil) != expired || errors.Is(err, jwt.ErrInvalid) || v.KeysAge() < time.Hour ||
					strings.Contains(log.String(), "--jwt-keys-max-age") != expired {
					t.Errorf("after more than an hour: %v, age %v, log %s", err, v.KeysAge(), &log)
				}
				writeKeys(t, path, public(key, "k"))
				pass(time.Minute)
				if err := verify(); err != nil || !strings.Contains(log.String(), "can be read again") {
					t.Errorf("when they are back: %v, log %s", err, &log)
				}
			})
		})
	}
}

// Close stops a pending read of the keys.
func TestCloseEndsAReading(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{}; <-release }))
	defer server.Close()
	defer close(release)
	v, err := jwt.New(jwt.Config{Keys: server.URL, Issuer: "i", Audience: "a"})
	if err != nil {
		t.Fatal(err)
	}
	key := newEC(t)
	done := make(chan error)
	go func() { _, err := v.Verify(t.Context(), sign(t, key, jose.ES256, "k", claims(nil))); done <- err }()
	<-asked
	v.Close()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("who has waited for the keys: %v", err)
	}
	time.Sleep(1100 * time.Millisecond) // long enough for another attempt
	if _, err := v.Verify(t.Context(), sign(t, key, jose.ES256, "k", claims(nil))); !errors.Is(err, jwt.ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
}

// Keys without an ID are tried if no key has the token's ID and they fit the algorithm. If a key
// has the ID, no other is tried.
func TestKeysWithoutAName(t *testing.T) {
	ec, r, named, stranger := newEC(t), newRSA(t, 2048), newEC(t), newEC(t)
	a := newApp(t, public(ec, ""), public(r, ""), public(named, "n"))
	v := a.verifier(nil)
	for _, row := range []struct {
		name  string
		token string
		good  bool
	}{
		{"of a key without a name", sign(t, ec, jose.ES256, "2026-11", claims(nil)), true},
		{"of another kind of key without a name", sign(t, r, jose.RS256, "2026-11", claims(nil)), true},
		{"without a name", sign(t, named, jose.ES256, "", claims(nil)), true},
		{"of a key without a name, with the name of another", sign(t, ec, jose.ES256, "n", claims(nil)), false},
		{"of a key with a name, with another", sign(t, named, jose.ES256, "m", claims(nil)), false},
		{"of a stranger", sign(t, stranger, jose.ES256, "2026-11", claims(nil)), false},
	} {
		if _, err := v.Verify(t.Context(), row.token); (err == nil) != row.good || err != nil && !errors.Is(err, jwt.ErrInvalid) {
			t.Errorf("a token %s: %v", row.name, err)
		}
	}
}

// A replaced key without an ID is recognized with the first token signed by the new key.
func TestAKeyWithoutANameIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwks.json")
	synctest.Test(t, func(t *testing.T) {
		first, second := newEC(t), newEC(t)
		writeKeys(t, path, public(first, ""))
		v, err := jwt.New(jwt.Config{Keys: path, Issuer: "https://login.example.com/", Audience: "api"})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		writeKeys(t, path, public(second, ""))
		time.Sleep(time.Second)
		if _, err := v.Verify(t.Context(), sign(t, second, jose.ES256, "2", claims(nil))); err != nil {
			t.Error(err)
		}
	})
}

// tokenOf signs a header and a payload unchanged.
func tokenOf(t *testing.T, key *ecdsa.PrivateKey, header, payload string) string {
	t.Helper()
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// An invalid text as a subject is refused, not repaired: after repair, several users would be one.
func TestSubjectsThatAreNoText(t *testing.T) {
	ec := newEC(t)
	v := newApp(t, public(ec, "k")).verifier(nil)
	now := time.Now().Unix()
	for subject, want := range map[string]string{
		`"ada"`: "ada", `"\u0061da"`: "ada", `"\ud83d\ude00"`: "😀", `"😀 çay"`: "😀 çay", `"a\"b\\ud800"`: `a"b\ud800`, `"\ufffd"`: "\uFFFD", `7`: "7",
		`"\ud800"`: "", `"\udc00"`: "", `"a\ud83db"`: "", `"\ud83d\u0061"`: "", `"\ude00\ud83d"`: "", `"\uD83D\\ude00"`: "",
		"\"\xff\"": "", "\"ada\xc3\"": "", "\"\xed\xa0\x80\"": "", `"a\u0000b"`: "", `"ada\u001b[2J"`: "", `"ada\u0085"`: "", `"ada\n"`: "", `""`: "",
	} {
		got, err := v.Verify(t.Context(), tokenOf(t, ec, `{"alg":"ES256","kid":"k"}`,
			fmt.Sprintf(`{"iss":"https://login.example.com/","aud":"api","iat":%d,"exp":%d,"sub":%s}`, now, now+60, subject)))
		if got.Subject != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, jwt.ErrInvalid) {
			t.Errorf("%q: %q, %v, want %q", subject, got.Subject, err, want)
		}
	}
}

// Only tokens of the types for login are accepted. Tokens of other types are signed with the same
// keys for other purposes.
func TestTypesOfTokens(t *testing.T) {
	ec := newEC(t)
	a := newApp(t, public(ec, "k"))
	now := time.Now().Unix()
	payload := fmt.Sprintf(`{"iss":"https://login.example.com/","aud":"api","iat":%d,"exp":%d,"sub":"ada"}`, now, now+60)
	for types, rows := range map[string]map[string]bool{
		"": {`,"typ":"JWT"`: true, `,"typ":"jwt"`: true, `,"typ":"at+jwt"`: true, `,"typ":"application/AT+jwt"`: true, `,"typ":"application/jwt"`: true, ``: true,
			`,"typ":"dpop+jwt"`: false, `,"typ":"logout+jwt"`: false, `,"typ":"text/JWT"`: false, `,"typ":""`: false, `,"typ":"application/"`: false, `,"typ":["JWT"]`: false},
		"session": {`,"typ":"session"`: true, `,"typ":"JWT"`: false},
	} {
		v := a.verifier(func(c *jwt.Config) { c.Types = strings.Fields(types) })
		for typ, good := range rows {
			_, err := v.Verify(t.Context(), tokenOf(t, ec, `{"alg":"ES256","kid":"k"`+typ+`}`, payload))
			if refused := (jwt.RefusedError{}); (err == nil) != good || err != nil && (!errors.As(err, &refused) || refused.Cause != jwt.BadType) {
				t.Errorf("types %q, header %s: %v", types, typ, err)
			}
		}
	}
}

// A refusal names the faulty header or claim and its fault, but quotes nothing of the token.
func TestARefusalSaysWhy(t *testing.T) {
	ec, stranger := newEC(t), newEC(t)
	v := newApp(t, public(ec, "k")).verifier(nil)
	changed := func(changes map[string]any) string { return sign(t, ec, jose.ES256, "k", claims(changes)) }
	now, seen := time.Now(), map[jwt.Cause]bool{}
	for _, row := range []struct {
		cause jwt.Cause
		words string
		token string
	}{
		{jwt.WrongIssuer, "claim iss", changed(map[string]any{"iss": "https://evil.example/"})},
		{jwt.WrongTarget, "claim aud", changed(map[string]any{"aud": "evil.example"})},
		{jwt.Expired, "claim exp", changed(map[string]any{"exp": now.Add(-time.Hour).Unix()})},
		{jwt.Expired, "no claim exp", changed(map[string]any{"exp": nil})},
		{jwt.NotYetValid, "claim nbf", changed(map[string]any{"nbf": now.Add(time.Hour).Unix()})},
		{jwt.IssuedLater, "claim iat", changed(map[string]any{"iat": now.Add(time.Hour).Unix()})},
		{jwt.IssuedLater, "no claim iat", changed(map[string]any{"iat": nil})},
		{jwt.BadSubject, "claim sub", changed(map[string]any{"sub": []string{"evil.example"}})},
		{jwt.Malformed, "claims cannot be read", changed(map[string]any{"exp": "evil.example"})},
		{jwt.BadSignature, "kid", sign(t, stranger, jose.ES256, "k", claims(nil))},
		{jwt.UnknownKey, "kid", sign(t, ec, jose.ES256, "evil.example", claims(nil))},
		{jwt.BadAlgorithm, "alg", sign(t, []byte("evil.example evil.example evil.example"), jose.HS256, "k", claims(nil))},
		{jwt.BadAlgorithm, "alg", base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + ".e30."},
		{jwt.BadType, "typ", tokenOf(t, ec, `{"alg":"ES256","kid":"k","typ":"evil.example"}`, `{}`)},
		{jwt.Malformed, "three parts", "evil.example.x"},
		{jwt.TooLong, "longer", strings.Repeat("evil.example", 1000)},
	} {
		_, err := v.Verify(t.Context(), row.token)
		refused := jwt.RefusedError{}
		if !errors.As(err, &refused) || refused.Cause != row.cause || !strings.Contains(err.Error(), row.words) || strings.Contains(err.Error(), "evil") {
			t.Errorf("%s, %s: %v", row.cause, row.words, err)
		}
		seen[row.cause] = true
	}
	for _, cause := range jwt.Causes() {
		if !seen[cause] {
			t.Errorf("no token is refused for %s", cause)
		}
	}
}

// All mistakes in the configuration are reported together at the start.
func TestMistakes(t *testing.T) {
	for _, c := range []jwt.Config{
		{Issuer: "i", Audience: "a"},
		{Keys: "http://login.example.com/jwks.json", Issuer: "i", Audience: "a"},
		{Keys: "ftp://login.example.com/jwks.json", Issuer: "i", Audience: "a"},
		{Keys: "https://user:secret@login.example.com/", Issuer: "i", Audience: "a"},
		{Keys: "jwks.json", Audience: "a"},
		{Keys: "jwks.json", Issuer: "i"},
		{Keys: "jwks.json", Issuer: "i", Audience: "a", Algorithms: []string{"HS256"}},
		{Keys: "jwks.json", Issuer: "i", Audience: "a", Algorithms: []string{"none"}},
	} {
		if _, err := jwt.New(c); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A token is not even read where nothing may wait, so that it is verified, and its refusal counted,
// once. No keys are fetched.
func TestATokenIsNotVerifiedWithoutWaiting(t *testing.T) {
	ec := newEC(t)
	a := newApp(t, public(ec, "k"))
	v := a.verifier(nil)
	good := sign(t, ec, jose.ES256, "k", claims(nil))
	for _, known := range []bool{false, true} {
		asked := a.asked.Load()
		for _, token := range []string{good, "a.b.c", good + "x", strings.Repeat("A", 100_000)} {
			if _, err := v.Verify(nowait.Context(t.Context()), token); err != nowait.ErrWouldWait {
				t.Errorf("with keys: %v: %v", known, err)
			}
		}
		if n := a.asked.Load() - asked; n != 0 {
			t.Errorf("with keys: %v: the keys were read %d times", known, n)
		}
		if _, err := v.Verify(t.Context(), good); err != nil {
			t.Error(err)
		}
	}
}
