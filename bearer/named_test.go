package bearer_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/bearer"
)

const ofBilling, ofWeb = "the-token-of-billing", "the-token-of-the-web-app"

func digest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// A token opens to the caller of its line, with the scopes of that line, and to nobody else.
func TestANamedTokenIsThatOfItsLine(t *testing.T) {
	t.Parallel()
	named, err := bearer.ParseNamed("# who may\n\nbilling: " + digest(ofBilling) + " read credits\r\nweb: " + strings.ToUpper(digest(ofWeb)) + " verify rate=7")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		what          string
		authorization []string
		want          string
	}{
		{"the first", []string{"Bearer " + ofBilling}, "billing"},
		{"the second", []string{"Bearer " + ofWeb}, "web"},
		{"none", nil, ""},
		{"two", []string{"Bearer " + ofBilling, "Bearer " + ofBilling}, ""},
		{"another", []string{"Bearer " + ofBilling + "x"}, ""},
		{"a digest", []string{"Bearer " + digest(ofBilling)}, ""},
		{"no bearer", []string{"Basic " + ofBilling}, ""},
		{"no scheme", []string{ofBilling}, ""},
		{"an empty one", []string{"Bearer "}, ""},
	} {
		caller, known := named.Caller(row.authorization)
		if caller.Name != row.want || known != (row.want != "") {
			t.Errorf("%s: %q, %t", row.what, caller.Name, known)
		}
	}
	billing, _ := named.Caller([]string{"Bearer " + ofBilling})
	web, _ := named.Caller([]string{"Bearer " + ofWeb})
	for _, scope := range bearer.Scopes() {
		if got := billing.May(scope); got != (scope == bearer.Read || scope == bearer.Credits) {
			t.Errorf("billing may %s: %t", scope, got)
		}
		if got := web.May(scope); got != (scope == bearer.Verify) {
			t.Errorf("web may %s: %t", scope, got)
		}
	}
	if billing.Rate != 100 || web.Rate != 7 {
		t.Errorf("the rates are %d and %d, want 100 and 7", billing.Rate, web.Rate)
	}
	for _, nobody := range []string{"", "\n", "# billing: " + digest(ofBilling) + " read\n"} {
		named, err := bearer.ParseNamed(nobody)
		if _, known := named.Caller([]string{"Bearer " + ofBilling}); known || err != nil {
			t.Errorf("a file with no line is read as one with tokens: %v", err)
		}
	}
}

// A mistake in a file of tokens is named by its line. The error holds nothing of the line, which
// may be a token.
func TestAMistakeInAFileOfTokensIsNamedByItsLine(t *testing.T) {
	t.Parallel()
	good := digest(ofBilling)
	for _, row := range []struct{ line, want string }{
		{ofWeb, "line 1: want NAME"},
		{"billing: " + ofWeb + " read", "line 1: the SHA-256"},
		{"billing: " + good[:62] + " read", "line 1: the SHA-256"},
		{"billing: " + good, "line 1: want NAME"},
		{"billing: " + good + " rate=1", "line 1: want a scope"},
		{"billing: " + good + " admin", "line 1: want each scope once"},
		{"billing: " + good + " read read", "line 1: want each scope once"},
		{"billing: " + good + " read rate=0", "line 1: want rate=N"},
		{"bill ing: " + good + " read", "line 1: want NAME"},
		{": " + good + " read", "line 1: want NAME"},
		{"billing: " + good + " read\nweb: " + good + " write", "line 2: an earlier line"},
		{"billing: san=a.example read\nweb: san=A.example write", "line 2: an earlier line"},
		{"billing: san=*.example read", "line 1: want san="},
		{"billing: san= read", "line 1: want san="},
		{"billing: san=spiffe://example.org/* read", "line 1: want san="},
		{"billing: san=a.example", "line 1: want NAME"},
	} {
		_, err := bearer.ParseNamed(row.line)
		if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), ofWeb) {
			t.Errorf("%q: %v, want %s", row.line, err, row.want)
		}
	}
}

// A certificate opens to the caller of its line. One for two callers opens to nobody, and no token
// is a name.
func TestANamedCertificateIsThatOfItsLine(t *testing.T) {
	t.Parallel()
	named, err := bearer.ParseNamed("billing: san=Billing.example read\nweb: san=spiffe://example.org/web write rate=7\nweb: san=web.example keys\nother: " + digest(ofWeb) + " read")
	if err != nil || !named.Certifies() {
		t.Fatal(err)
	}
	for _, row := range []struct {
		what  string
		names []string
		want  string
	}{
		{"a DNS name", []string{"billing.example"}, "billing"},
		{"a SPIFFE ID among other names", []string{"pod.example", "spiffe://example.org/web"}, "web"},
		{"two names of one caller", []string{"web.example", "spiffe://example.org/web"}, "web"},
		{"names of two callers", []string{"billing.example", "web.example"}, ""},
		{"an unknown name", []string{"web.example.com"}, ""},
		{"a digest", []string{digest(ofWeb), ""}, ""},
		{"no name", nil, ""},
	} {
		caller, known := named.Certified(row.names)
		if caller.Name != row.want || known != (row.want != "") {
			t.Errorf("%s: %q, %t", row.what, caller.Name, known)
		}
	}
	if _, known := named.Caller([]string{"Bearer billing.example-billing.example"}); known {
		t.Error("a name opens as a token")
	}
}
