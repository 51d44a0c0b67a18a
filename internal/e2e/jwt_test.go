package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// The page redirects a browser without a session to the login; other routes do not, and a program
// gets a 401.
func TestABrowserWithoutASessionIsSentToTheLogin(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{flags: []string{"--login-url", "https://login.example.com/?to=api"}})
	s.user("ann", "pro")
	dead := s.session("ann")
	s.run("session", "revoke", "ann")
	for name, row := range map[string]struct {
		method, target, accept, cookie string
		status                         int
	}{
		"a browser":                        {"GET", "/api", "text/html,*/*;q=0.8", "", 303},
		"a browser with a dead session":    {"GET", "/api", "text/html,*/*;q=0.8", dead, 303},
		"a browser that asks for more":     {"GET", "/api/-/regenerate", "text/html", "", 303},
		"a program":                        {"GET", "/api", "application/json", "", 401},
		"a program that takes anything":    {"GET", "/api", "*/*", "", 401},
		"a form":                           {"POST", "/api/regenerate", "text/html", "", 401},
		"a browser at the API of sessions": {"GET", "/api/product-detail/7", "text/html", "", 401},
		"a browser at the API of keys":     {"GET", "/api/v1/brands", "text/html", "", 401},
	} {
		header := []string{"Accept: " + row.accept, "Content-Length: 0"}
		if row.cookie != "" {
			header = append(header, "Cookie: "+row.cookie)
		}
		a := s.send(request{method: row.method, target: row.target, header: header})
		if a.status != row.status || (row.status == 303) != (a.header.Get("Location") == "https://login.example.com/?to=api") {
			t.Errorf("%s: %d %v, want %d", name, a.status, a.header, row.status)
		}
	}
}

// webApp is a provider's web app, which signs tokens for its users and serves its keys.
type webApp struct {
	t     *testing.T
	key   *ecdsa.PrivateKey
	keys  string       // URL of the JWKS
	asked atomic.Int64 // number of reads
}

const issuer = "https://login.example.com/"

func newWebApp(t *testing.T) *webApp {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	jwks := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","alg":"ES256","use":"sig","x":%q,"y":%q}]}`,
		segment(public[1:33]), segment(public[33:]))
	w := &webApp{t: t, key: key}
	server := httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		w.asked.Add(1)
		io.WriteString(answer, jwks)
	}))
	t.Cleanup(server.Close)
	w.keys = server.URL
	return w
}

// token signs a token for a subject; change may corrupt its claims.
func (w *webApp) token(subject string, change func(claims map[string]any)) string {
	w.t.Helper()
	now := time.Now().Unix()
	claims := map[string]any{"iss": issuer, "aud": "api", "sub": subject, "iat": now, "exp": now + 600}
	if change != nil {
		change(claims)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.sign(`{"alg":"ES256","kid":"k1","typ":"JWT"}`, string(payload))
}

// sign signs a header and claims exactly as given.
func (w *webApp) sign(header, payload string) string {
	w.t.Helper()
	signed := segment([]byte(header)) + "." + segment([]byte(payload))
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, w.key, digest[:])
	if err != nil {
		w.t.Fatal(err)
	}
	return signed + "." + segment(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func segment(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// A token of the provider's web app logs its user in on the page and on all session routes, in its
// cookie or as a bearer token. A revocation or a disabled user ends that on every replica. An
// invalid token gets a 401, is counted by its cause and explained by `keyporter check`, and is
// logged only once, no matter how often it is sent.
func TestTokensOfTheWebApp(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	app := newWebApp(t)
	s := start(t, stackConfig{database: databases["PostgreSQL 18"](t), flags: []string{
		"--jwt-keys", app.keys, "--jwt-issuer", issuer, "--jwt-audience", "api", "--jwt-cookie", "app_token"}})
	key := s.user("ann", "pro")
	s.run("user", "set", "ann", "--subject", "auth0|8f3c")
	token := app.token("auth0|8f3c", nil)
	status := func(target string, headers ...string) int {
		t.Helper()
		return s.send(request{target: target, header: append(headers, "Accept: application/json")}).status
	}
	routes := map[string]int{"/api": 200, "/api/product-detail/7": 200, "/api/v1/brands": 401}
	for target, want := range routes {
		for name, header := range map[string]string{"in its cookie": "Cookie: a=b; app_token=" + token, "as a bearer": "Authorization: Bearer " + token} {
			if got := status(target, header); got != want {
				t.Errorf("a token %s at %s: %d, want %d", name, target, got, want)
			}
		}
	}
	if n := app.asked.Load(); n != 1 {
		t.Errorf("decision and page have read the keys %d times, want once for both", n)
	}
	stranger, now := newWebApp(t), time.Now().Unix()
	claims := fmt.Sprintf(`{"iss":%q,"aud":"api","iat":%d,"exp":%d,"sub":`, issuer, now, now+600)
	for name, bad := range map[string]string{
		"of another app":        stranger.token("auth0|8f3c", nil),
		"of nobody we know":     app.token("auth0|0000", nil),
		"that has expired":      app.token("auth0|8f3c", func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }),
		"that never expires":    app.token("auth0|8f3c", func(c map[string]any) { delete(c, "exp") }),
		"that is not valid yet": app.token("auth0|8f3c", func(c map[string]any) { c["nbf"] = time.Now().Add(time.Hour).Unix() }),
		"for another API":       app.token("auth0|8f3c", func(c map[string]any) { c["aud"] = "other" }),
		"of another issuer":     app.token("auth0|8f3c", func(c map[string]any) { c["iss"] = "https://evil.example.com/" }),
		"without a signature": strings.Replace(token[:strings.LastIndex(token, ".")+1],
			segment([]byte(`{"alg":"ES256","kid":"k1","typ":"JWT"}`)), segment([]byte(`{"alg":"none","kid":"k1"}`)), 1),
		"with a name for a subject":         app.token("ann", nil),
		"of a kind that is not for logins":  app.sign(`{"alg":"ES256","kid":"k1","typ":"dpop+jwt"}`, claims+`"auth0|8f3c"}`),
		"whose subject is half a character": app.sign(`{"alg":"ES256","kid":"k1"}`, claims+`"\ud800"}`),
		"whose subject is a stray byte":     app.sign(`{"alg":"ES256","kid":"k1"}`, claims+"\"\xff\"}"),
		"that is a key":                     key,
	} {
		for target := range routes {
			if target == "/api/v1/brands" {
				continue
			}
			for _, header := range []string{"Cookie: app_token=" + bad, "Authorization: Bearer " + bad} {
				if got := status(target, header); got != 401 {
					t.Errorf("a token %s at %s: %d, want 401", name, target, got)
				}
			}
		}
	}
	s.tellsWhy(t, app, "auth0|8f3c")
	s.run("session", "revoke", "ann")
	for target := range routes {
		if got := status(target, "Authorization: Bearer "+token); got != 401 {
			t.Errorf("a token that was issued before a revocation, at %s: %d, want 401", target, got)
		}
	}
	var later string
	partstest.EventuallyNil(t, "a token that was issued after a revocation logs in again", func() error {
		later = app.token("auth0|8f3c", nil)
		if got := status("/api", "Authorization: Bearer "+later); got != 200 {
			return fmt.Errorf("%d, want 200", got)
		}
		return nil
	})
	s.run("user", "set", "ann", "--status", "disabled")
	if got := status("/api", "Authorization: Bearer "+later); got != 401 {
		t.Errorf("a token of a disabled user: %d, want 401", got)
	}
	mustNotContain(t, "what Envoy and Keyporter wrote", s.written(), token, later)
}

// tellsWhy asks the service and `keyporter check` for the faults of tokens.
func (s *stack) tellsWhy(t *testing.T, app *webApp, subject string) {
	t.Helper()
	for _, cause := range []string{"iss", "aud", "exp", "nbf", "alg", "typ", "signature", "subject", "unknown_subject"} {
		if s.replicas[0].number(t, `keyporter_tokens_refused_total{cause="`+cause+`"}`) == 0 {
			t.Errorf("no token was refused for %s", cause)
		}
	}
	if n := strings.Count(s.replicas[0].process.Output(), `"cause":"iss"`); n != 1 {
		t.Errorf("tokens of another issuer: %d lines in the log, want one for all", n)
	}
	for words, bad := range map[string]string{
		"its claim iss is not":    app.token(subject, func(c map[string]any) { c["iss"] = "https://evil.example.com/" }),
		"its claim aud does":      app.token(subject, func(c map[string]any) { c["aud"] = "evil.example.com" }),
		"its claim exp says":      app.token(subject, func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }),
		"its header typ":          app.sign(`{"alg":"ES256","kid":"k1","typ":"evil.example.com"}`, `{}`),
		"its header kid":          app.sign(`{"alg":"ES256","kid":"evil.example.com"}`, `{}`),
		"user set NAME --subject": app.token("evil.example.com", nil),
	} {
		out, problems, status := s.try("check", "/api", "-H", "Authorization: Bearer "+bad,
			"--jwt-keys", app.keys, "--jwt-issuer", issuer, "--jwt-audience", "api")
		if status != 1 || !strings.Contains(out, words) || strings.Contains(out+problems, "evil") {
			t.Errorf("check: %d %s%s, want %q and no value", status, out, problems, words)
		}
	}
}
