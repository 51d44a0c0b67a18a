package authz_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// A rule matches by whole segments. An exact path wins over prefixes and the longest prefix over
// shorter ones, regardless of the order of the rules.
func TestTheLongestRuleWinsByWholeSegments(t *testing.T) {
	rules := []authz.Rule{
		{Path: "/a", Kind: authz.KindPublic}, {Path: "/a/*", Kind: authz.KindPublic}, {Path: "/a/b", Kind: authz.KindPublic},
		{Path: "/a/b/c/*", Kind: authz.KindPublic}, {Path: "/a/b/c/d", Kind: authz.KindPublic}, {Path: "/a/x/", Kind: authz.KindPublic},
		{Path: "/only/*", Kind: authz.KindPublic}, {Path: "/", Kind: authz.KindPublic}, {Path: "/n/*", Kind: authz.KindNone},
	}
	want := map[string]string{
		"/": "/", "/a": "/a", "/a/": "/a/*", "/a/b": "/a/b", "/a/b/": "/a/b", "/a/bc": "/a/*", "/a/b/c": "/a/*", "/a/b/c/": "/a/b/c/*",
		"/a/b/cc": "/a/*", "/a/b/c/d": "/a/b/c/d", "/a/b/c/d/": "/a/b/c/d", "/a/b/c/d/e/f/g": "/a/b/c/*", "/a/b/c/dd": "/a/b/c/*",
		"/a/x": "/a/*", "/a/x/": "/a/x/", "/a/x/y": "/a/*", "/only/x": "/only/*", "/only/": "/only/*", "/n/x": "/n/*",
		"/only": "", "/ab": "", "/aa/b": "", "/A": "", "/A/b": "", "/b": "", "/onl": "", "/only.": "", "/n": "", "/a%20": "", "/a.": "", "/a*": "",
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		random.Shuffle(len(rules), func(i, j int) { rules[i], rules[j] = rules[j], rules[i] })
		routes := newTable(t, rules...)
		for path, rule := range want {
			got := ""
			if r := routes.Match(path); r != nil {
				got = r.Path
			}
			if got != rule {
				t.Errorf("%s: rule %q, want %q", path, got, rule)
			}
		}
	}
	if r := newTable(t, everything).Match("/"); r == nil {
		t.Error("/* does not match /")
	}
	for _, path := range []string{"/", "/x"} {
		if newTable(t).Match(path) != nil {
			t.Errorf("the empty table matches %s", path)
		}
	}
}

// The shipped table equals the documented one, and opens nothing else.
func TestDefaultRules(t *testing.T) {
	routes := newTable(t, defaultRules(t)...)
	type want struct {
		kind    authz.Kind
		to      authz.Destination
		rewrite string
	}
	key, session := want{kind: authz.KindAPIKey}, want{kind: authz.KindSession}
	page, open := want{kind: authz.KindSession, to: authz.ToPage}, want{kind: authz.KindPublic, to: authz.ToPage}
	for path, want := range map[string]want{
		"/api/v1/tiktok-shop/credits": key, "/api/v1/tiktok-shop/x": key, "/api/v1/tiktok-shop/": key, "/api/v1/tiktok-shop/credits/x": key,
		"/api/v1/adlibrary": key, "/api/v1/adlibrary/x/y": key, "/api/v1/magic-ai": key, "/api/v1/magic-ai/x": key,
		"/api/v1/store-tracker": key, "/api/v1/store-tracker/x": key, "/api/v1/store-explorer": key, "/api/v1/store-explorer/x": key,
		"/api/v1/brands": key, "/api/v1/brands/x": key, "/api/v1/brands/": key,
		"/api/adlibrary": key, "/api/adlibrary/x": key, "/api/store-tracker": key, "/api/store-tracker/x": key,
		"/api/store-explorer": key, "/api/store-explorer/x": key,
		"/api/v1/markalar": {authz.KindAPIKey, authz.ToUpstream, "/api/v1/brands"}, "/api/v1/markalar/x": {authz.KindAPIKey, authz.ToUpstream, "/api/v1/brands"},
		"/api/markalar": {authz.KindSession, authz.ToUpstream, "/api/brands"}, "/api/markalar/x": {authz.KindSession, authz.ToUpstream, "/api/brands"},
		"/api": page, "/api/regenerate": page, "/api/-/": page, "/api/-/x": page, "/api/-/login/x": page, "/api/-/static": page,
		"/api/-/login": open, "/api/-/logout": open, "/api/-/static/x.css": open, "/api/-/static/": open,
		"/api/tiktok-shop/x": session, "/api/product-detail/x": session, "/api/magic-ai": session, "/api/brands": session, "/api/x": session,
		"/api/": page, "/api/v2": session, "/api/v1": {}, "/api/adlibraryx": session, "/api/regenerate/x": session, "/api/-": session,
		"/api/v1/": {}, "/api/v1/x": {}, "/api/v1/tiktok-shop": {}, "/api/v1/brandsx": {}, "/api/v1/regenerate": {},
	} {
		r := routes.Match(path)
		if r == nil || (want.kind != r.Kind || want.to != r.To || want.rewrite != r.Rewrite) {
			t.Errorf("%s: %+v, want %+v", path, r, want)
		}
	}
	for _, path := range []string{"/", "/apix", "/Api", "/api.", "/ap", "/v1/brands", "/favicon.ico", "/x/api/v1/brands"} {
		if r := routes.Match(path); r != nil {
			t.Errorf("%s: %+v, want none", path, r)
		}
	}
}

// A rule permits the methods that it names, GET includes HEAD, and CONNECT is never permitted. The
// Allow header agrees.
func TestMethods(t *testing.T) {
	for _, row := range []struct {
		methods           []string
		permitted, denied string
		allow             string
	}{
		{nil, "GET HEAD POST PUT DELETE PATCH OPTIONS PROPFIND get X", "CONNECT TRACE connect Trace", ""},
		{[]string{"GET"}, "GET HEAD", "POST get Get OPTIONS TRACE CONNECT GETX", "GET, HEAD"},
		{[]string{"POST", "GET", "PUT"}, "POST GET HEAD PUT", "PATCH CONNECT", "POST, GET, HEAD, PUT"},
		{[]string{"GET", "HEAD"}, "GET HEAD", "POST", "GET, HEAD"},
		{[]string{"HEAD"}, "HEAD", "GET POST", "HEAD"},
		{[]string{"POST"}, "POST", "GET HEAD OPTIONS", "POST"},
		{[]string{"M-SEARCH"}, "M-SEARCH", "GET", "M-SEARCH"},
	} {
		rule := authz.Rule{Path: "/x", Kind: authz.KindPublic, Methods: row.methods}
		w := newWorld(t, rule)
		for _, m := range strings.Fields(row.permitted) {
			w.expect(t, fmt.Sprint(m, " of ", row.methods), authz.Request{Method: m, Path: "/x"}, authz.Allowed)
		}
		for _, m := range append(strings.Fields(row.denied), "", " ", " GET", "GET ", "GET,POST") {
			if len(row.methods) == 0 && m != "" && m != "CONNECT" {
				continue
			}
			w.expect(t, fmt.Sprintf("%q of %v", m, row.methods), authz.Request{Method: m, Path: "/x"}, authz.MethodNotAllowed)
		}
		if got := rule.Allow(); got != row.allow {
			t.Errorf("%v: Allow: %s, want %s", row.methods, got, row.allow)
		}
		for _, m := range strings.Split(rule.Allow(), ", ") {
			if m != "" && !rule.Permits(m) {
				t.Errorf("%v: Allow names %s", row.methods, m)
			}
		}
	}
}

// The upstream sees the rewritten path; the rest of the path and the query stay unchanged.
func TestRewrite(t *testing.T) {
	w := newWorld(t,
		authz.Rule{Path: "/old", Kind: authz.KindPublic, Rewrite: "/new"}, authz.Rule{Path: "/old/*", Kind: authz.KindPublic, Rewrite: "/new/deep"},
		authz.Rule{Path: "/v0/*", Kind: authz.KindPublic, Rewrite: "/old"}, everything,
	)
	for target, want := range map[string]string{
		"/old": "/new", "/old?a=1": "/new?a=1", "/old/": "/new/deep/", "/old/x/y%20z?a=%2f&b": "/new/deep/x/y%20z?a=%2f&b",
		"/old/x?api_key=1&a=2": "/new/deep/x?a=2", "/old?api_key=1": "/new", "/v0/x": "/old/x", // not rewritten twice
		"/oldx": "", "/x": "", "/x?a=1": "", "/x?api_key": "/x", "/x?api_key=1&": "/x?",
	} {
		if d := w.expect(t, target, get(target), authz.Allowed); d.Rewrite.Path != want {
			t.Errorf("%s: the upstream sees %q, want %q", target, d.Rewrite.Path, want)
		}
	}
	w = newWorld(t, authz.Rule{Path: "/*", Kind: authz.KindPublic, Rewrite: "/below"})
	if d := w.expect(t, "the root", get("/x?a"), authz.Allowed); d.Rewrite.Path != "/below/x?a" {
		t.Errorf("the upstream sees %q", d.Rewrite.Path)
	}
}

// A table with mistakes is refused, and the error names every rule with a mistake.
func TestRulesThatAreRefused(t *testing.T) {
	public, key := authz.KindPublic, authz.KindAPIKey
	second := authz.Span(time.Second)
	bad := map[string]authz.Rule{
		"no path":                 {Kind: public},
		"relative":                {Path: "x", Kind: public},
		"star alone":              {Path: "*", Kind: public},
		"no slash before star":    {Path: "/x*", Kind: public},
		"star inside":             {Path: "/*/x", Kind: public},
		"star inside, and below":  {Path: "/*/x/*", Kind: public},
		"two stars":               {Path: "/x/**", Kind: public},
		"empty segment":           {Path: "/x//y", Kind: public},
		"empty segment at end":    {Path: "/x//", Kind: public},
		"empty segment, below":    {Path: "/x//*", Kind: public},
		"root twice":              {Path: "//*", Kind: public},
		"dots":                    {Path: "/x/../y", Kind: public},
		"dot":                     {Path: "/./*", Kind: public},
		"query":                   {Path: "/x?a", Kind: public},
		"fragment":                {Path: "/x#a", Kind: public},
		"blank":                   {Path: "/x y", Kind: public},
		"not ASCII":               {Path: "/é", Kind: public},
		"parameters":              {Path: "/x;y", Kind: public},
		"backslash":               {Path: `/x\y`, Kind: public},
		"encoded slash":           {Path: "/x%2fy", Kind: public},
		"encoded letter":          {Path: "/%61pi", Kind: public},
		"encoded question mark":   {Path: "/x%3fy", Kind: public},
		"rewrite with a fragment": {Path: "/x", Kind: public, Rewrite: "/y%23z"},
		"too long":                {Path: "/" + strings.Repeat("a", 8<<10), Kind: public},
		"rewrite relative":        {Path: "/x", Kind: public, Rewrite: "y"},
		"rewrite with slash":      {Path: "/x", Kind: public, Rewrite: "/y/"},
		"rewrite to the root":     {Path: "/x", Kind: public, Rewrite: "/"},
		"rewrite with dots":       {Path: "/x", Kind: public, Rewrite: "/.."},
		"rewrite with query":      {Path: "/x", Kind: public, Rewrite: "/y?a"},
		"rewrite with a star":     {Path: "/x/*", Kind: public, Rewrite: "/y/*"},
		"rewrite to another host": {Path: "/x", Kind: public, Rewrite: "//host"},
		"page for a key":          {Path: "/x", Kind: authz.KindAPIKey, To: authz.ToPage},
		"none with methods":       {Path: "/x", Methods: []string{"GET"}},
		"none with rewrite":       {Path: "/x", Rewrite: "/y"},
		"none to the page":        {Path: "/x", To: authz.ToPage},
		"empty method":            {Path: "/x", Kind: public, Methods: []string{""}},
		"small method":            {Path: "/x", Kind: public, Methods: []string{"GET", "post"}},
		"two methods in one":      {Path: "/x", Kind: public, Methods: []string{"GET,POST"}},
		"method with a blank":     {Path: "/x", Kind: public, Methods: []string{"GET "}},
		"CONNECT":                 {Path: "/x", Kind: public, Methods: []string{"CONNECT"}},
		"cost without a key":      {Path: "/x", Kind: public, Cost: 1},
		"refund without a key":    {Path: "/x", Kind: authz.KindSession, Refund: usage.RefundRule{Never: true}},
		"answer without a key":    {Path: "/x", Kind: authz.KindSession, Methods: []string{"GET"}, Answer: authz.AnswerCredits},
		"none with a cost":        {Path: "/x", Cost: 1},
		"negative cost":           {Path: "/x", Kind: key, Cost: -1},
		"cost beyond all":         {Path: "/x", Kind: key, Cost: authz.MaxCost + 1},
		"refund of a success":     {Path: "/x", Kind: key, Refund: usage.RefundRule{Codes: []int{500, 399}}},
		"refund beyond all":       {Path: "/x", Kind: key, Refund: usage.RefundRule{Codes: []int{600}}},
		"refund with one twice":   {Path: "/x", Kind: key, Refund: usage.RefundRule{Codes: []int{500, 503, 500}}},
		"never, but with a code":  {Path: "/x", Kind: key, Refund: usage.RefundRule{Never: true, Codes: []int{500}}},
		"answer to all methods":   {Path: "/x", Kind: key, Answer: authz.AnswerCredits},
		"answer to POST":          {Path: "/x", Kind: key, Answer: authz.AnswerCredits, Methods: []string{"GET", "POST"}},
		"answer with rewrite":     {Path: "/x", Kind: key, Answer: authz.AnswerCredits, Methods: []string{"GET"}, Rewrite: "/y"},
		"answer with refund":      {Path: "/x", Kind: key, Answer: authz.AnswerCredits, Methods: []string{"GET"}, Refund: usage.RefundRule{Never: true}},
		"answer with a time":      {Path: "/x", Kind: key, Answer: authz.AnswerCredits, Methods: []string{"GET"}, Timeout: second},
		"none with a time":        {Path: "/x", IdleTimeout: second},
		"a time below zero":       {Path: "/x", Kind: key, Timeout: -2},
		"a part of a millisecond": {Path: "/x", Kind: key, IdleTimeout: second + 1},
		"more than a year":        {Path: "/x", Kind: key, MaxDuration: authz.MaxSpan + second},
		"beyond the default life": {Path: "/x", Kind: key, Timeout: 3601 * second},
		"a silence beyond a life": {Path: "/x", Kind: key, IdleTimeout: 2 * second, MaxDuration: second},
	}
	for name, rule := range bad {
		routes, err := authz.NewRouteTable([]authz.Rule{{Path: "/fine", Kind: public}, rule})
		var problem *authz.RuleError
		if routes != nil || !errors.As(err, &problem) || problem.Index != 1 || !strings.HasPrefix(problem.Error(), "rule 1: ") || errors.Unwrap(problem) == nil {
			t.Errorf("%s: %v, %v", name, routes, err)
		}
	}
	_, err := authz.NewRouteTable([]authz.Rule{{Path: "x"}, {Path: "/x"}, {Path: "/x"}, {Path: "/x/*"}, {Path: "/x/*"}, {Path: "/y/"}})
	if got := fmt.Sprint(err); strings.Count(got, "\n") != 2 || !strings.Contains(got, "rule 0:") || !strings.Contains(got, "rule 2:") || !strings.Contains(got, "rule 4:") {
		t.Errorf("want the problems of rules 0, 2 and 4, not %s", got)
	}
}

// The test lists valid and invalid settings for credits.
func TestRulesOfCredits(t *testing.T) {
	key, get := authz.KindAPIKey, []string{"GET"}
	newTable(t,
		authz.Rule{Path: "/a", Kind: key, Cost: 1}, authz.Rule{Path: "/b", Kind: key, Cost: authz.MaxCost},
		authz.Rule{Path: "/c", Kind: key, Refund: usage.RefundRule{Never: true}},
		authz.Rule{Path: "/d", Kind: key, Refund: usage.RefundRule{Codes: []int{400, 503, 599}}},
		authz.Rule{Path: "/e", Kind: key, Methods: get, Answer: authz.AnswerCredits, Cost: 2},
	)
	for name, want := range map[string]usage.RefundRule{"never": {Never: true}, "upstream_failure": {}} {
		if got, err := usage.ParseRefundRule(name); err != nil || got.Never != want.Never || got.Codes != nil {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "always", "Never", "500"} {
		if _, err := usage.ParseRefundRule(bad); err == nil {
			t.Errorf("%q is read as a rule for refunds", bad)
		}
	}
}

// The test lists valid and invalid times; each valid time is parsed from the form in which it is
// printed.
func TestRulesOfTime(t *testing.T) {
	second := authz.Span(time.Second)
	table := newTable(t,
		authz.Rule{Path: "/defaults", Kind: authz.KindPublic},
		authz.Rule{Path: "/stream", Kind: authz.KindAPIKey, Timeout: authz.Endless, IdleTimeout: 5 * second, MaxDuration: 7200 * second},
		authz.Rule{Path: "/forever", Kind: authz.KindSession, To: authz.ToPage, IdleTimeout: authz.Endless, MaxDuration: authz.Endless, Timeout: authz.MaxSpan},
	)
	for path, want := range map[string]string{
		"/defaults": "unlimited 1m 1h", "/stream": "unlimited 5s 2h", "/forever": "8760h unlimited unlimited",
	} {
		timeout, idle, life := table.Match(path).Times()
		if got := fmt.Sprint(timeout, " ", idle, " ", life); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if _, err := authz.NewRouteTable([]authz.Rule{
		{Path: "/a", Kind: authz.KindPublic, Timeout: second},
		{Path: "/b", Kind: authz.KindPublic, Timeout: second, MaxDuration: 3600 * second},
		{Path: "/c", Kind: authz.KindPublic, Timeout: second, MaxDuration: 5 * second},
	}); err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "rule 2: ") {
		t.Errorf("rules with a timeout and several durations: %v", err)
	}
	for _, text := range []string{"1ms", "30s", "1.5s", "5m", "1h", "1h30m", "1h0m5s", "8760h", "unlimited"} {
		if span, err := authz.ParseSpan(text); err != nil || span.String() != text {
			t.Errorf("%s: %v, %v", text, span, err)
		}
	}
	for _, bad := range []string{"", "30", "0s", "-1s", "1ns", "1.5ms", "forever", "Unlimited", "8761h", "1d", "999999999h"} {
		if span, err := authz.ParseSpan(bad); err == nil {
			t.Errorf("%q is read as %v", bad, span)
		}
	}
}

// The table is a copy: later changes to the input do not affect it.
func TestTheTableIsACopy(t *testing.T) {
	rules := []authz.Rule{{Path: "/x", Kind: authz.KindNone}}
	routes := newTable(t, rules...)
	rules[0].Kind = authz.KindPublic
	if r := routes.Match("/x"); r.Kind != authz.KindNone || routes.Rules()[0].Kind != authz.KindNone {
		t.Error("it changed")
	}
}

// The names of kinds and destinations are parsed from the form in which they are printed; an
// unknown kind prints "none".
func TestNamesOfKindsAndDestinations(t *testing.T) {
	for kind, name := range map[authz.Kind]string{authz.KindNone: "none", authz.KindAPIKey: "api_key", authz.KindSession: "session", authz.KindPublic: "public"} {
		if got, err := authz.ParseKind(name); got != kind || err != nil || kind.String() != name {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	for to, name := range map[authz.Destination]string{authz.ToUpstream: "default", authz.ToPage: "page", "billing-2": "billing-2"} {
		if got, err := authz.ParseDestination(name); got != to || err != nil || to.String() != name {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	for answer, name := range map[authz.Answer]string{authz.AnswerDestination: "destination", authz.AnswerCredits: "credits"} {
		if got, err := authz.ParseAnswer(name); got != answer || err != nil || answer.String() != name {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "NONE", "api-key", "Public", "public ", "upstreams"} {
		if answer, err := authz.ParseAnswer(bad); err == nil || answer != authz.AnswerDestination {
			t.Errorf("%q is read as the answer %v", bad, answer)
		}
		if kind, err := authz.ParseKind(bad); err == nil || kind != authz.KindNone {
			t.Errorf("%q is read as the kind %v", bad, kind)
		}
	}
	for _, bad := range []string{"", "NONE", "Page", "page ", "-a", "a-", "a.b", "a b", strings.Repeat("a", 65)} {
		if to, err := authz.ParseDestination(bad); err == nil || to != authz.ToUpstream {
			t.Errorf("%q is read as the destination %v", bad, to)
		}
	}
	if got := authz.Kind(99).String(); got != "none" {
		t.Errorf("a kind out of range is %q", got)
	}
}

// A rule's path has a single spelling. If a client could write it in two ways, such as @ and %40,
// one of them would evade the rule and match a wider one.
func TestNoSpellingEscapesARule(t *testing.T) {
	for c := byte('!'); c < 0x7f; c++ {
		for _, spelling := range []string{string(c), fmt.Sprintf("%%%02x", c), fmt.Sprintf("%%%02X", c)} {
			routes, err := authz.NewRouteTable([]authz.Rule{{Path: "/x/*", Kind: authz.KindPublic}, {Path: "/x/a" + spelling + "b", Kind: authz.KindAPIKey}})
			if err != nil {
				continue // no such rule can be written
			}
			w := newWorld(t)
			w.Routes = routes
			for _, sent := range []string{string(c), fmt.Sprintf("%%%02x", c), fmt.Sprintf("%%%02X", c)} {
				if d, err := w.decide(t, get("/x/a"+sent+"b")); d.Allowed() || err != nil {
					t.Errorf("/x/a%sb is open although /x/a%sb wants a key", sent, spelling)
				}
			}
		}
	}
}
