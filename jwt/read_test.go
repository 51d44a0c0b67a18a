package jwt_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyporter/keyporter/jwt"
)

// ReadKeys reports keys that cannot verify any token, from every kind of source.
func TestReadKeys(t *testing.T) {
	const good = `{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`
	file := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(file, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			w.Write([]byte(good))
		case "/away":
			http.Redirect(w, r, "http://login.example.com/", http.StatusFound)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		case "/curve": // P-384 fits none of the algorithms
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey}}})
		case "/other":
			w.Write([]byte(strings.Replace(good, `"kty"`, `"alg": "HS256", "kty"`, 1)))
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	for source, want := range map[string]string{
		file: "", server.URL + "/good": "", file + "x": "no such file", server.URL + "/none": "404",
		server.URL + "/away": "must begin with https", server.URL + "/round": "too many redirects",
		server.URL + "/curve": "no public key", server.URL + "/other": "no public key for signatures of RS256",
	} {
		err := jwt.Config{Keys: source}.ReadKeys(t.Context())
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", source, err, want)
		}
	}
}
