package e2e_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyporter/keyporter/client"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// way is a way to carry out operations, on a service and a database of its own.
type way struct {
	*administered
	flags []string // of commands; nil: by HTTP
}

// command runs a command, and returns what it prints as JSON.
func (w *way) command(line string) (out, problems string, status int) {
	args := append(strings.Fields(line), "--output", "json")
	if w.flags == nil {
		return w.try(args...)
	}
	return w.tryExactly(append(args, w.flags...)...)
}

// call calls the API, and returns its answer.
func (w *way) call(t *testing.T, method, path, body string) (out string, status int) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.apis[0]+"/v1"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+operatorToken)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), response.StatusCode
}

// differs matches what two runs of the same operations have differently: times, ids, secrets,
// addresses and figures of the machine.
var differs = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z|\b(key|grant|replica)_[0-9a-z]+|(__Host-)?keyporter_session=|\b1[0-9]{12}\b|\b(wh|ks|kl)_[0-9a-f]+|127\.0\.0\.1:\d+|"(id|name|started_at|routes|version)":"[^"]*-[0-9a-f-]{8,}[^"]*"|"(took_ms|lease_left_ms|epoch|lag)":\d+|(command|api):[a-z0-9.-]+`)

// plain returns JSON for a comparison: without what differs and without some fields, a page as its
// items, and with the fields sorted.
func plain(t *testing.T, text string, without ...string) string {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if object, is := value.(map[string]any); is && object["items"] != nil {
		value = object["items"]
	}
	for _, field := range without {
		delete(value.(map[string]any), field)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		t.Fatal(err)
	}
	return differs.ReplaceAllString(out.String(), "…")
}

// Each operation has the same result, and leaves the same entry in the audit, as a command on the
// database, as the same command with --server, and as a call of the API; the audit tells their
// authors apart. An operation that has no command is one of those below.
func TestACommandARemoteCommandAndACallAreTheSame(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	here, there, http := newWay(t, false), newWay(t, true), newWay(t, true)
	done := map[string]bool{}
	for _, row := range []struct {
		id, command        string
		method, path, body string
	}{
		{"plans.set", "plan set pro --rate-limit 100 --rate-window 90s --credits 1000", "PUT", "/plans/pro", `{"rate_limit": 100, "rate_window": "90s", "credits": 1000}`},
		{"plans.set", "plan set spare --credits unlimited --api-access=false --pool account", "PUT", "/plans/spare", `{"credits": "unlimited", "api_access": false, "pool": "account"}`},
		{"accounts.set", "account set acme --plan pro --kind organization", "PUT", "/accounts/acme", `{"plan": "pro", "kind": "organization"}`},
		{"accounts.set", "account set idle --plan spare --status suspended", "PUT", "/accounts/idle", `{"plan": "spare", "status": "suspended"}`},
		{"users.set", "user set ada --account acme --subject auth0|ada", "PUT", "/users/ada", `{"account": "acme", "subject": "auth0|ada"}`},
		{"users.set", "user set eve --account acme --kind service", "PUT", "/users/eve", `{"account": "acme", "kind": "service"}`},
		{"users.set", "user set eve --status disabled", "PUT", "/users/eve", `{"status": "disabled"}`},
		{"keys.create", "key create ada", "POST", "/users/ada/key:create", ""},
		{"keys.create", "key create ada", "POST", "/users/ada/key:create", ""}, // refused
		{"keys.create", "key create eve --idempotency-key e", "POST", "/users/eve/key:create", ""},
		{"keys.regenerate", "key regenerate ada", "POST", "/users/ada/key:regenerate", ""},
		{"keys.list", "key list", "GET", "/keys", ""},
		{"keys.list", "key list ada", "GET", "/keys?user=ada", ""},
		{"users.overview", "user show ada", "GET", "/users/ada/overview", ""},
		{"sessions.create", "session create ada --ttl 1h", "POST", "/users/ada/sessions", `{"ttl": "1h"}`},
		{"login_links.create", "session create ada --link", "POST", "/users/ada/login-links", ""},
		{"sessions.revoke", "session revoke ada", "POST", "/users/ada/sessions:revoke", ""},
		{"credits.grant", "credits grant ada 50", "POST", "/users/ada/credits:grant", `{"credits": 50}`},
		{"credits.get", "credits show ada", "GET", "/users/ada/credits", ""},
		{"credits.get", "credits show nobody", "GET", "/users/nobody/credits", ""}, // refused
		{"credits.statement", "credits statement ada", "GET", "/users/ada/credits/statement", ""},
		{"credits.account_statement", "credits statement --account acme", "GET", "/accounts/acme/credits/statement", ""},
		{"usage.list", "usage", "GET", "/usage", ""},
		{"usage.list", "usage --group-by user --account acme", "GET", "/usage?group_by=user&account=acme", ""},
		{"usage.list", "usage --group-by day --user ada", "GET", "/usage?group_by=day&user=ada", ""},
		{"ledger.verify", "ledger verify", "POST", "/ledger:verify", ""},
		{"keys.revoke", "key revoke ada", "POST", "/users/ada/key:revoke", ""},
		{"users.delete", "user delete eve", "DELETE", "/users/eve", ""},
		{"accounts.set", "account set idle --plan none", "PUT", "/accounts/idle", `{"plan": "none"}`}, // refused
		{"accounts.set", "account set idle --kind none", "PUT", "/accounts/idle", `{"kind": "none"}`}, // wrong
		{"plans.delete", "plan delete spare", "DELETE", "/plans/spare", ""},                           // in use
		{"accounts.delete", "account delete idle", "DELETE", "/accounts/idle", ""},
		{"plans.delete", "plan delete spare", "DELETE", "/plans/spare", ""},
		{"plans.list", "plan list", "GET", "/plans", ""},
		{"accounts.list", "account list", "GET", "/accounts", ""},
		{"users.list", "user list", "GET", "/users", ""},
		{"events.list", "events list --state aside", "GET", "/events?state=aside", ""},
		{"events.retry", "events retry evt_1", "POST", "/events/evt_1/delivery:retry", ""}, // missing
		{"webhooks.list", "events endpoints", "GET", "/webhooks", ""},
		{"webhooks.retry", "events retry --endpoint none", "POST", "/webhooks/none/delivery:retry", ""}, // missing
		{"replicas.list", "replicas", "GET", "/replicas", ""},
		{"audit.list", "audit", "GET", "/audit", ""},
	} {
		done[row.id] = true
		out, problems, status := here.command(row.command)
		remote, remoteProblems, remoteStatus := there.command(row.command)
		answer, code := http.call(t, row.method, row.path, row.body)
		if status != remoteStatus || (status == 0) != (code == 200) {
			t.Errorf("%s: exit status %d, remote %d, the API %d\n%s%s%s", row.command, status, remoteStatus, code, problems, remoteProblems, answer)
			continue
		}
		if status == 2 { // the commands name flags, the API its fields
			continue
		}
		if status != 0 { // the database names the command that helps
			if first, _, _ := strings.Cut(strings.TrimSpace(remoteProblems), "\n"); !strings.HasPrefix(problems, strings.TrimSuffix(first, ".")) {
				t.Errorf("%s: %s, but remote: %s", row.command, problems, remoteProblems)
			}
			continue
		}
		if diff := cmp.Diff(plain(t, out), plain(t, remote)); diff != "" {
			t.Errorf("%s: the command (-) and with --server (+):\n%s", row.command, diff)
		}
		var without []string
		if row.id == "keys.create" { // the command prints the key alone
			without = []string{"confirmed", "replicas", "took_ms"}
		}
		if diff := cmp.Diff(plain(t, remote), plain(t, answer, without...)); diff != "" {
			t.Errorf("%s: the command (-) and the API (+):\n%s", row.command, diff)
		}
	}
	for _, w := range []struct {
		*way
		author string
	}{{here, `"actor":"command:`}, {there, `"actor":"api:billing"`}, {http, `"actor":"api:billing"`}} {
		if out := w.run("audit", "--output", "json"); strings.Count(out, w.author) < 10 || strings.Count(out, `"actor":`) != strings.Count(out, w.author)+strings.Count(out, `"actor":"service"`) {
			t.Errorf("the author is not %s everywhere:\n%s", w.author, out)
		}
	}
	for _, id := range operationsOfTheAPI(t, here) {
		if !done[id] && !slices.Contains(withoutCommand, id) {
			t.Errorf("%s has neither a command here nor a reason to have none", id)
		}
	}
}

// withoutCommand are the operations that no command has: lists show single things too, a PUT
// changes what a PATCH does, a script repeats commands in place of a batch, only the service has the
// seal key that reveals a key, and verifications and the document are for programs.
var withoutCommand = []string{
	"plans.get", "plans.change", "accounts.get", "accounts.change", "users.get", "users.change", "keys.get",
	"users.batch", "keys.create_batch", "keys.revoke_batch", "credits.batch", "keys.reveal", "keys.verify", "openapi.get",
}

// newWay returns a way to carry out operations; remote: by the API.
func newWay(t *testing.T, remote bool) *way {
	t.Helper()
	w := &way{administered: startAdministered(t, "", 1)}
	if remote {
		w.flags = []string{"--server", "http://" + w.apis[0], "--token-file", tokenFile(t)}
	}
	return w
}

func tokenFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(operatorToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// operationsOfTheAPI lists the operations in the document of the running service.
func operationsOfTheAPI(t *testing.T, w *way) (ids []string) {
	t.Helper()
	text, err := w.api(0, operatorToken, client.Options{}).OpenAPI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]struct{ OperationID string }
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	for _, methods := range document.Paths {
		for _, o := range methods {
			ids = append(ids, o.OperationID)
		}
	}
	if len(ids) < 30 {
		t.Fatalf("only %d operations", len(ids))
	}
	return ids
}

// A remote command believes only a certificate of an authority that it knows, and sends its token
// to nobody else, nor in the clear to another machine.
func TestARemoteCommandKnowsItsServer(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	a := startAdministered(t, "", 1)
	var tokens atomic.Int64 // that were sent
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: a.apis[0]})
	front := httptest.NewUnstartedServer(nil)
	front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			tokens.Add(1)
		}
		proxy.ServeHTTP(w, r)
	})
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // of refused certificates
	front.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	front.StartTLS()
	defer front.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	empty, token := filepath.Join(t.TempDir(), "empty"), tokenFile(t)
	if err := os.WriteFile(empty, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		line   string
		status int
		want   string
	}{
		{"--server " + front.URL + " --token-file " + token + " --ca-file " + ca, 0, ""},
		{"--server " + front.URL + " --token-file " + token, 1, x509.UnknownAuthorityError{}.Error()},
		{"--server " + front.URL + " --token-file " + token + " --ca-file " + empty, 2, "--ca-file: " + empty + " has no certificate in PEM"},
		{"--server " + front.URL + " --token-file " + empty + " --ca-file " + ca, 1, "the service does not know the token of --token-file"},
		{"--server " + front.URL, 2, "--server: needs --token-file"},
		{"--server= --token-file " + token, 2, "--server: the value is empty"},
		{"--server http://keyporter.example --token-file " + token, 2, "--server: plain http would send the token in the clear: use https, or --insecure"},
		{"--server " + front.URL + " --token-file " + empty + "none", 2, "--token-file: open"},
		{"--server " + front.URL + " --database sqlite://a.db --token-file " + token, 2, "--database is given as well"},
	} {
		before := tokens.Load()
		_, problems, status := a.tryExactly(strings.Fields("plan list " + row.line)...)
		if status != row.status || !strings.Contains(problems, row.want) {
			t.Errorf("%s: exit status %d, want %d\n%s", row.line, status, row.status, problems)
		}
		if sent := tokens.Load() > before; sent != (status == 0 || strings.Contains(row.want, "does not know")) {
			t.Errorf("%s: the token was sent: %t", row.line, sent)
		}
		if strings.Contains(problems, operatorToken) {
			t.Errorf("%s prints the token: %s", row.line, fmt.Sprint(problems))
		}
	}
}
