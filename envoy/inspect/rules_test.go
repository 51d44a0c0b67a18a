package inspect_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/inspect"
)

var update = flag.Bool("update", false, "rewrite the table in docs/envoy.md")

// Every rule has an id of its own and all its texts, and the most severe ones come first.
func TestRulesAreWhole(t *testing.T) {
	seen := map[string]bool{}
	last := inspect.Error
	for _, r := range inspect.Rules() {
		if seen[r.ID] || !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`).MatchString(r.ID) {
			t.Errorf("%q is there twice, or is no id", r.ID)
		}
		seen[r.ID] = true
		if r.Title == "" || r.Why == "" || r.Fix == "" || !strings.HasSuffix(r.Why, ".") || strings.HasSuffix(r.Title, ".") {
			t.Errorf("%s lacks a text", r.ID)
		}
		if r.Severity > last {
			t.Errorf("%s comes after one that matters less", r.ID)
		}
		last = r.Severity
	}
}

// Every fix is YAML that Envoy accepts, at its place.
func TestEveryFixFits(t *testing.T) {
	places := map[string]proto.Message{
		"tcp-beside-http":       &listenerv3.Listener{},
		"authz-cluster-missing": &bootstrapv3.Bootstrap_StaticResources{},
		"authz-cluster-http1":   &clusterv3.Cluster{}, "authz-health-check": &clusterv3.Cluster{}, "authz-cluster-unverified": &clusterv3.Cluster{}, "authz-circuit-breaker": &clusterv3.Cluster{},
		"upstream-circuit-breaker": &clusterv3.Cluster{},
		"identity-headers":         &routev3.Route{}, "route-timeout": &routev3.Route{},
		"rule-name-unknown": &extauthzv3.ExtAuthzPerRoute{}, "rule-name-unused": &extauthzv3.ExtAuthzPerRoute{},
		"upstream-retries": &routev3.RouteAction{}, "rewrite-query": &routev3.RouteAction{},
		"log-query":         &streamlogv3.StdoutAccessLog{},
		"admin-open":        &bootstrapv3.Admin{},
		"access-log-filter": &accesslogv3.AccessLog{},
		"access-log-buffer": &grpclogv3.HttpGrpcAccessLogConfig{}, "access-log-grpc-status": &grpclogv3.HttpGrpcAccessLogConfig{},
	}
	elsewhere := []string{"ext-authz-off"} // in Keyporter's own file
	for _, r := range inspect.Rules() {
		encoded := toJSON(t, r.Fix)
		if string(encoded) == "null" || slices.Contains(elsewhere, r.ID) {
			continue // only words
		}
		place, ok := places[r.ID]
		if !ok {
			place = &hcmv3.HttpConnectionManager{}
			if protojson.Unmarshal(encoded, place) != nil {
				place = &extauthzv3.ExtAuthz{}
			}
		}
		proto.Reset(place)
		if err := protojson.Unmarshal(encoded, place); err != nil {
			t.Errorf("%s: %v", r.ID, err)
		}
	}
}

// The rules' assumptions about Keyporter are true.
func TestRulesKnowKeyporter(t *testing.T) {
	if inspect.OwnTimeout != envoy.DefaultTimeout || inspect.MaxFlushPeriod != envoy.DefaultDrainDelay || inspect.MetadataKey != codec.MetadataKey || inspect.RuleExtension != codec.RuleExtension {
		t.Error("the rules go by other values than the server does")
	}
	own := []string{codec.HeaderUser, codec.HeaderAccount, codec.HeaderPlan, codec.HeaderKeyID, codec.HeaderCharge}
	if diff := cmp.Diff(own, inspect.IdentityHeaders); diff != "" {
		t.Errorf("identity headers (-server +rules):\n%s", diff)
	}
}

// A format with a key or the query in its output is found.
func TestFormatsThatLeakKeys(t *testing.T) {
	const query, credential, nothing = "query", "credential", ""
	for format, want := range map[string]string{
		"%REQ(:PATH)%":                            query,
		"%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%":      query,
		"%REQUEST_HEADER(X-Request-Id?:Path):10%": query,
		"%PATH%":                                   query,
		"%PATH()%":                                 query,
		"%PATH(WQ)%":                               query,
		"%PATH(WQ:ORIG):9%":                        query,
		"%QUERY_PARAMS(ORIG)%":                     query,
		"%CEL(request.path)%":                      query,
		"%CEL(request.query == '' ? 'a' : 'b')%":   query,
		"%CEL(request.headers[':path'])%":          query,
		`%CEL(request.headers["x-api-key"])%`:      credential,
		"%REQ(Authorization)%":                     credential,
		"%REQ(COOKIE):20%":                         credential,
		"%REQ(SEC-WEBSOCKET-PROTOCOL)%":            credential,
		"%QUERY_PARAM(api_key)%":                   credential,
		"%PATH(NQ)%":                               nothing,
		"%PATH(NQ:ORIG)%":                          nothing,
		"%REQ_WITHOUT_QUERY(:PATH)%":               nothing,
		"%QUERY_PARAM(page)%":                      nothing,
		"%REQ(:AUTHORITY)% %START_TIME(%Y-%m-%d)%": nothing,
		"%CEL(request.url_path.matches('a%3f') ? '…' : request.url_path)%": nothing,
		"100%% %RESPONSE_CODE%": nothing,
	} {
		got := nothing
		for _, command := range inspect.Commands(format) {
			if what, isCredential := inspect.LeakOf(command[1], command[2]); isCredential {
				got = credential
			} else if what != "" {
				got = query
			}
		}
		if got != want {
			t.Errorf("%s leaks %q, want %q", format, got, want)
		}
	}
}

// A release of Envoy is judged by its number, wherever it is in the text.
func TestReleases(t *testing.T) {
	for version, want := range map[string]string{
		"9e5580933739775e8bce696a57a2e1bc99368f23/1.40.1/Clean/RELEASE/BoringSSL": "",
		"1.40.2": "", "1.40.0": "envoy-old", "1.41.0": "", "1.52.3": "",
		"1.39.5": "", "1.39.4": "envoy-old", "1.39.0": "envoy-faults",
		"1.38.8": "", "1.38.7": "envoy-old", "1.38.4": "envoy-old", "1.38.3": "envoy-faults",
		"1.37.10": "", "1.37.9": "envoy-old", "1.37.5": "envoy-faults",
		"1.36.13": "", "1.36.9": "envoy-faults", "1.35.13": "envoy-faults", "1.9.0": "envoy-faults",
		"abc/1.38.4-dev/Clean/RELEASE/BoringSSL": "envoy-faults", "abc/1.40.2-dev/Clean/RELEASE/BoringSSL": "",
		"unknown": "",
	} {
		findings, err := inspect.Config([]byte(`{"admin": {}}`), inspect.Known{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range findings {
			got += f.ID
			if f.Path != "server_info.version" {
				t.Errorf("%s: at %s", version, f.Path)
			}
		}
		if got != want {
			t.Errorf("%s: found %q, want %q", version, got, want)
		}
	}
}

// A document that is no configuration of Envoy is refused with a reason.
func TestWhatIsNoConfiguration(t *testing.T) {
	for document, want := range map[string]string{
		``:                                    "not an object",
		`[]`:                                  "not an object",
		`{}`:                                  "neither a bootstrap of Envoy",
		`{"apiVersion": "v1"}`:                "neither a bootstrap of Envoy",
		`{"static_resources": 5}`:             "not a configuration of Envoy",
		`{"configs": [{"@type": 5}]}`:         "not a configuration of Envoy",
		`{"admin": {"address": {"pipe": 1}}}`: "not a configuration of Envoy",
	} {
		if _, err := inspect.Config([]byte(document), inspect.Known{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", document, err, want)
		}
	}
}

// partsInEachRun: a run removes one in this many parts of a configuration, chosen at random.
// KEYPORTER_LONG=1 removes all of them in turn.
const partsInEachRun = 6

// A configuration with any part missing is inspected to the end.
func TestWhatIsMissing(t *testing.T) {
	document := toJSON(t, read(t, "testdata/envoy_gateway.yaml"))
	var count int
	chosen := rand.IntN(partsInEachRun)
	for {
		var value any
		if err := json.Unmarshal(document, &value); err != nil {
			t.Fatal(err)
		}
		left := count
		remove(value, &left)
		if left >= 0 {
			break // nothing more to remove
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if count++; count%partsInEachRun != chosen && os.Getenv("KEYPORTER_LONG") == "" {
			continue
		}
		// The first removed part is everything.
		if _, err := inspect.Config(encoded, inspect.Known{}); err != nil && count > 1 {
			t.Fatal(err)
		}
	}
	if count < 150 {
		t.Errorf("only %d parts were removed", count)
	}
}

// remove deletes the member with index left, in the order of the names and without counting texts,
// and makes left negative.
func remove(value any, left *int) {
	switch value := value.(type) {
	case []any:
		for _, item := range value {
			remove(item, left)
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(value)) {
			if _, isText := value[name].(string); isText {
				continue
			}
			if *left == 0 {
				delete(value, name)
			}
			*left--
			if *left < 0 {
				return
			}
			remove(value[name], left)
			if *left < 0 {
				return
			}
		}
	}
}

const (
	tableBegins = "<!-- Made by go test ./envoy/inspect -update. -->\n"
	tableEnds   = "<!-- End of what is made. -->\n"
)

// The documents list all findings, as the code has them.
func TestDocumentsListAllFindings(t *testing.T) {
	const file = "../../docs/envoy.md"
	text := read(t, file)
	head, rest, begins := strings.Cut(text, tableBegins)
	_, tail, ends := strings.Cut(rest, tableEnds)
	if !begins || !ends {
		t.Fatalf("%s has no place for the table", file)
	}
	want := head + tableBegins + "\n" + table() + "\n" + tableEnds + tail
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != text {
		t.Errorf("%s is not what the code says; write it with: go test ./envoy/inspect -update", file)
	}
}

// table lists the rules, and below them the fixes of more than a line.
func table() string {
	var list, fixes strings.Builder
	list.WriteString("| finding | severity | what is wrong, and why it matters | fix |\n|---|---|---|---|\n")
	cell := strings.NewReplacer("|", "\\|", "<", "&lt;", ">", "&gt;")
	for _, r := range inspect.Rules() {
		fix := "`" + cell.Replace(r.Fix) + "`"
		if strings.Contains(r.Fix, "\n") {
			fix = "[below](#" + r.ID + ")"
			fmt.Fprintf(&fixes, "\n#### %s\n\n```yaml\n%s\n```\n", r.ID, r.Fix)
		}
		fmt.Fprintf(&list, "| `%s` | %s | **%s.** %s | %s |\n", r.ID, r.Severity, cell.Replace(r.Title), cell.Replace(r.Why), fix)
	}
	return list.String() + "\n### What to paste\n" + fixes.String()
}
