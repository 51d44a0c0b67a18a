package jwt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/keyporter/keyporter/jwt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// app is a web app that signs tokens, and serves its keys.
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
	return v
}

// claims are good ones, but for what is changed; nil takes one away.
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

// sign makes a token.
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

// A token is good if a key of the set has signed it, with an algorithm that is allowed, and its claims say so.
// Every other one is refused, by what is wrong with it alone.
func TestWhichTokensAreGood(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // to make a key that is too short
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

// The claim that names the user can be another one, and a number.
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

// A key that is not known has the set read again, once for all, and not again and again. While the set cannot
// be read, who has a known key goes on, and of the others it cannot be told: that is no no.
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
	deadline := time.Now().Add(10 * time.Second)
	for verify(first, "1") != nil { // it is tried again after a second
		if time.Now().After(deadline) {
			t.Fatal("the keys are not read again")
		}
		time.Sleep(50 * time.Millisecond)
	}
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

// Keys in a file are read again when the file has changed.
func TestKeysInAFile(t *testing.T) {
	first, second := newEC(t), newEC(t)
	path := filepath.Join(t.TempDir(), "jwks.json")
	write := func(key *ecdsa.PrivateKey) {
		t.Helper()
		text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(key, "k")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v, err := jwt.New(jwt.Config{Keys: path, Issuer: "https://login.example.com/", Audience: "api"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), sign(t, first, jose.ES256, "k", claims(nil))); err == nil || errors.Is(err, jwt.ErrInvalid) {
		t.Errorf("without the file: %v, want that it cannot be told", err)
	}
	for _, key := range []*ecdsa.PrivateKey{first, second} {
		write(key)
		deadline := time.Now().Add(10 * time.Second)
		for {
			if _, err = v.Verify(t.Context(), sign(t, key, jose.ES256, "k", claims(nil))); err == nil || time.Now().After(deadline) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("a key that was just written: %v", err)
		}
	}
}

// A mistake in the configuration is told at the start, all of them at once.
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
