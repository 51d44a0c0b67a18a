package authz_test

import (
	"strings"
	"testing"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// Another spelling of a metered path never lets a session pass: the answer is 404 before any
// look-up, whatever an upstream folds.
func TestAnotherSpellingOpensNoOtherRule(t *testing.T) {
	w := newWorld(t)
	session := []string{authz.SessionCookie + "=" + w.session}
	for _, path := range []string{
		"/api/V1/brands", "/API/v1/brands", // (these match no rule at all)
		"/api/v1./brands", "/api/v1../brands", "/api/v1%20/brands", "/api/%20v1/brands", "/api/v1%C2%A0/brands",
		"/api/v1%E3%80%80/brands", "/api/v1%C2%85/brands", "/api/v1%E2%80%8B/brands", "/api/%E2%80%8Bv1/brands", "/api/v%E2%80%8B1/brands",
		"/api/v%C2%AD1/brands", "/api/v1%EF%B8%8F/brands", "/api/%E2%80%8B/v1/brands", "/api/v1~/brands", "/api/v1,/brands", "/api/v1:/brands",
		"/api/v1.,:~/brands", "/api/%EF%BD%961/brands", "/api/%EF%BD%96%EF%BC%91/brands", "/api/v%C2%B9/brands", "/api/v%E2%91%A0/brands",
		"/api/x/%EF%BC%8E%EF%BC%8E/v1/brands", "/api/%EF%BC%8E/v1/brands", "/api/v1%EF%BC%8Fbrands", "/api/x%EF%BC%BC..%EF%BC%BCv1/brands",
		"/api/V1", "/api/V1/", "/api/v1.json", "/api/V1/nothing",
		"/api/Adlibrary", "/api/ADLIBRARY", "/api/adlibrary.json", "/api/adlibrary.JSON", "/api/adlibrary.", "/api/adlibrary..json", "/api/adlibrary.json.",
		"/api/adlibrary.json/", "/api/adlibrary%20", "/api/adlibrary%20/", "/api/adl%C4%B1brary", "/api/adl%C4%B0brary", "/api/%EF%BD%81dlibrary",
		"/api/Adlibrary/x", "/api/adlibrary./x", "/api/.adlibrary", "/api/..v1/brands", "/api/adlibrary~", "/api/adlibrary:", "/api/adlibrary,", "/api/%F0%9D%94%9Edlibrary",
		"/api/%C5%BFtore-tracker", "/api/store-trac%E2%84%AAer", "/api/Store-Explorer/7.html", "/api/store%EF%BC%8Dtracker",
	} {
		d, err := w.decide(t, authz.Request{Method: "GET", Path: path, Cookie: session})
		if err != nil || d.Outcome().Status != 404 && d.Outcome().Status != 400 {
			t.Errorf("%s: %v, %v; want 404", path, d.Reason, err)
		}
	}
	if w.finds != 0 {
		t.Error("a key was looked up")
	}
}

// A spelling that matches no other rule is decided by the rule of its own path.
func TestOddPathsOfOneRulePass(t *testing.T) {
	w := newWorld(t)
	session := []string{authz.SessionCookie + "=" + w.session}
	for _, path := range []string{
		"/api/product-detail/Amazon.com", "/api/product-detail/%C3%87ay%20%26%20Co", "/api/other.json", "/api/Other", "/api/v2.0/x", "/api/brands.json",
		"/api/magic-ai~", "/api/v1x.json", "/api/a:b", "/api/users/%E2%80%8B/x", "/api/-/openapi.yaml", "/api/-/static/App.v2.css",
	} {
		w.expect(t, path, authz.Request{Method: "GET", Path: path, Cookie: session}, authz.Allowed)
	}
	for _, path := range []string{"/api/v1/brands/Nike", "/api/v1/brands/nike.com", "/api/v1/brands/A%20B", "/api/v1/tiktok-shop/X.json", "/api/adlibrary/Q.1"} {
		w.expect(t, path, authz.Request{Method: "GET", Path: path, APIKey: []string{w.ada}}, authz.Allowed)
	}
}

// The rule of another spelling matters if it has another kind, cost or refund, or does not permit
// the method. Upper case and extensions in a rule's path belong to its own spelling.
func TestTheNormalFormOfRules(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Path: "/*", Kind: authz.KindPublic},
		authz.Rule{Path: "/Shop/*", Kind: authz.KindAPIKey},
		authz.Rule{Path: "/Shop", Kind: authz.KindSession},
		authz.Rule{Path: "/Shop/Export.csv", Kind: authz.KindAPIKey, Cost: 25},
		authz.Rule{Path: "/Shop/never", Kind: authz.KindAPIKey, Refund: usage.RefundRule{Never: true}},
		authz.Rule{Path: "/Shop/read", Kind: authz.KindAPIKey, Methods: []string{"GET"}},
		authz.Rule{Path: "/v1.0/*", Kind: authz.KindAPIKey},
	)
	for _, row := range []struct {
		method, path string
		want         authz.Reason
	}{
		{"GET", "/Shop/x", authz.Allowed},
		{"GET", "/Shop/", authz.Allowed},
		{"GET", "/Shop/Export.csv", authz.Allowed},
		{"GET", "/Shop/export.csv", authz.OtherSpelling},
		{"GET", "/Shop/Export.CSV", authz.OtherSpelling},
		{"GET", "/Shop/export", authz.OtherSpelling},
		{"GET", "/Shop/Export.json", authz.OtherSpelling},
		{"GET", "/Shop/Never", authz.OtherSpelling},
		{"GET", "/Shop/Read", authz.Allowed},
		{"POST", "/Shop/Read", authz.OtherSpelling},
		{"POST", "/Shop/read", authz.MethodNotAllowed},
		{"GET", "/shop/x", authz.OtherSpelling},
		{"GET", "/shop/export", authz.OtherSpelling},
		{"GET", "/shopping", authz.Allowed},
		{"GET", "/SHOP", authz.OtherSpelling},
		{"GET", "/v1.0/x", authz.Allowed},
		{"GET", "/v1.0/", authz.Allowed},
		{"GET", "/v1.0./x", authz.OtherSpelling},
		{"GET", "/V1.0/x", authz.OtherSpelling},
	} {
		w.expect(t, row.method+" "+row.path, authz.Request{Method: row.method, Path: row.path, APIKey: []string{w.ada}}, row.want)
	}
}

// Only one extension is cut off, whatever extensions other rules name. A rule whose path consists
// only of cut-off characters still opens.
func TestExtensionsOfRules(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Path: "/x/*", Kind: authz.KindPublic},
		authz.Rule{Path: "/x/report", Kind: authz.KindAPIKey},
		authz.Rule{Path: "/x/report.tar.gz", Kind: authz.KindPublic},
		authz.Rule{Path: "/~/*", Kind: authz.KindPublic},
	)
	for path, want := range map[string]authz.Reason{
		"/x/report.tar": authz.OtherSpelling, "/x/Report.tar": authz.OtherSpelling, "/x/report.tar.gz": authz.Allowed, "/~/x": authz.Allowed,
	} {
		w.expect(t, path, authz.Request{Method: "GET", Path: path}, want)
	}
}

// A warning reports a weaker rule below a path: it decides the path with a trailing slash, which
// many upstreams treat as the path itself.
func TestAWarningOfAWeakerRuleBelow(t *testing.T) {
	key, public := authz.KindAPIKey, authz.KindPublic
	for _, row := range []struct {
		name  string
		rules []authz.Rule
		warns bool
	}{
		{"public below", []authz.Rule{{Path: "/a", Kind: key}, {Path: "/a/*", Kind: public}}, true},
		{"cheaper below", []authz.Rule{{Path: "/a", Kind: key, Cost: 5}, {Path: "/a/*", Kind: key}}, true},
		{"the slash has its own rule", []authz.Rule{{Path: "/a", Kind: key}, {Path: "/a/", Kind: key}, {Path: "/a/*", Kind: public}}, false},
		{"the same below", []authz.Rule{{Path: "/a", Kind: key}, {Path: "/a/*", Kind: key}}, false},
		{"nothing below", []authz.Rule{{Path: "/a", Kind: key}, {Path: "/b/*", Kind: public}}, false},
	} {
		warned := false
		for _, w := range newTable(t, row.rules...).Warnings() {
			warned = warned || strings.Contains(w.Text, "asks for more than")
		}
		if warned != row.warns {
			t.Errorf("%s: warned: %v, want %v", row.name, warned, row.warns)
		}
	}
	if all := newTable(t, defaultRules(t)...).Warnings(); strings.Contains(all[len(all)-1].Text, "asks for more than") {
		t.Errorf("the shipped table is warned of: %v", all)
	}
}
