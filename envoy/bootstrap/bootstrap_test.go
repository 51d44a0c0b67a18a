package bootstrap_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/envoy/inspect"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/routes"
)

var update = flag.Bool("update", false, "rewrite envoy.yaml")

// The envoy.yaml in the repository is the output of the command in its first line.
func TestShippedBootstrap(t *testing.T) {
	got := whole(t, bootstrap.Config{
		Authz: "unix:///run/keyporter/authz.sock", Upstream: "upstream:8000", Page: "keyporter:8081", Listen: "0.0.0.0:8080",
	})
	const command = "# keyporter envoy --authz unix:///run/keyporter/authz.sock --upstream upstream:8000 --page keyporter:8081 --listen 0.0.0.0:8080\n"
	if !strings.HasPrefix(got, command) {
		t.Errorf("the first line is not the command:\n%.200s", got)
	}
	if *update {
		if err := os.WriteFile("../envoy.yaml", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shipped, err := os.ReadFile("../envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(shipped) != got {
		t.Error("envoy.yaml is not what the command prints; write it with: go test ./envoy/bootstrap -run TestShippedBootstrap -update")
	}
}

// bootstraps are the forms of a bootstrap.
func bootstraps(t *testing.T) map[string]bootstrap.Config {
	token, err := bearer.Parse("s3cret-s3cret-s3cret")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]bootstrap.Config{
		"defaults":         {},
		"sockets":          {Authz: "unix:///run/a.sock", Upstream: "unix:///run/b.sock", Page: "unix:///run/c.sock", Admin: "unix:///run/d.sock"},
		"names":            {Authz: "keyporter:9001", Upstream: "api.example.com:443", Page: "localhost:1"},
		"IPv6":             {Authz: "[::1]:9001", Upstream: "[fd00::1]:80", Listen: "[::]:8080", Admin: "[::1]:0"},
		"token":            {Token: token},
		"gRPC":             {Upstream: "h2c://127.0.0.1:50051"},
		"TLS":              {Upstream: "https://api.example.com", UpstreamCAFile: authorityFile(t)},
		"TLS to Keyporter": {Authz: "keyporter:9001", TLS: bootstrap.TLS{CAFile: authorityFile(t), Page: true}},
		"secrets":          {TLS: bootstrap.TLS{CAFile: "/tls/ca.crt", CertFile: "/tls/tls.crt", KeyFile: "/tls/tls.key", AuthzName: "keyporter", Page: true, PageName: "spiffe://example.org/keyporter", SecretsDir: secretsDir(t)}},
		"any TLS":          {Upstream: "https://[::1]", UpstreamInsecure: true},
		"hosts and upstreams": {Routes: newTable(t,
			authz.Rule{Path: "/*", Kind: authz.KindAPIKey, Hosts: []string{"api.example.com", "*.example.com"}, To: "billing"},
			authz.Rule{Path: "/search/*", Kind: authz.KindAPIKey, To: "search"},
			authz.Rule{Path: "/own", Kind: authz.KindAPIKey},
			authz.Rule{Name: "named", Kind: authz.KindAPIKey},
		), Upstreams: map[string]bootstrap.Upstream{
			"billing": {URL: "https://billing.example.com"}, "search": {URL: "h2c://127.0.0.1:50051"}, "default": {URL: "http://api"},
		}},
		"odd rules": {Routes: newTable(t,
			authz.Rule{Path: "/*", Kind: authz.KindPublic},
			authz.Rule{Path: "/a-b.c_d~e", Kind: authz.KindAPIKey, Methods: []string{"GET"}},
			authz.Rule{Path: "/slow", Kind: authz.KindAPIKey, Timeout: authz.Span(1500 * time.Millisecond), MaxDuration: authz.Endless},
			authz.Rule{Path: "/open", Kind: authz.KindPublic, IdleTimeout: authz.Endless, MaxDuration: authz.MaxSpan},
		)},
	}
}

// Every bootstrap has only fields that Envoy knows, with values that it accepts, in extensions too.
func TestBootstrapIsValid(t *testing.T) {
	for name, c := range bootstraps(t) {
		t.Run(name, func(t *testing.T) {
			config := parse(t, whole(t, c))
			if n := validate(t, config); n < 20 {
				t.Errorf("only %d messages were looked at", n)
			}
		})
	}
}

// The real Envoy accepts every bootstrap.
func TestBootstrapIsAccepted(t *testing.T) {
	path := partstest.Envoy(t)
	for name, c := range bootstraps(t) {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "envoy.yaml")
			if err := os.WriteFile(file, []byte(whole(t, c)), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			output, err := parts.Run(ctx, parts.Command{Path: path, Args: []string{"--mode", "validate", "--config-path", file}})
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"deprecated", "[warning]"} {
				if strings.Contains(strings.ToLower(output), word) {
					t.Errorf("Envoy says %q:\n%s", word, output)
				}
			}
		})
	}
}

// Nothing that we print breaks a promise of ours, according to [inspect.Config].
func TestNothingIsFoundInWhatWePrint(t *testing.T) {
	for name, c := range bootstraps(t) {
		var document any
		if err := yaml.Unmarshal([]byte(whole(t, c)), &document); err != nil {
			t.Fatal(err)
		}
		encoded, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		findings, err := inspect.Config(encoded, inspect.Known{})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			t.Errorf("%s: %s %s at %s: %s", name, f.Severity, f.ID, f.Path, f.What)
		}
	}
}

// The settings that keep a request from getting past the authorizer.
func TestBootstrapIsClosed(t *testing.T) {
	manager := connectionManager(t, parse(t, whole(t, bootstrap.Config{})))
	filters := manager.GetHttpFilters()
	if len(filters) != 4 || filters[0].GetName() != "envoy.filters.http.buffer" || !filters[0].GetDisabled() ||
		filters[1].GetName() != "envoy.filters.http.header_mutation" || filters[3].GetName() != "envoy.filters.http.router" {
		t.Fatalf("want a buffer for some routes, an end of trailers, ext_authz and the router, not %v", filters)
	}
	var filter extauthzv3.ExtAuthz
	if err := filters[2].GetTypedConfig().UnmarshalTo(&filter); err != nil {
		t.Fatal(err)
	}
	for what, ok := range map[string]bool{
		"a failure is a refusal":             !filter.GetFailureModeAllow() && filter.GetStatusOnError().GetCode() == 503,
		"it is asked always":                 filter.GetFilterEnabled() == nil && filter.GetFilterEnabledMetadata() == nil,
		"the route stays the one decided":    !filter.GetClearRouteCache(),
		"headers arrive as they are":         filter.GetEncodeRawHeaders(),
		"bad mutations are refused":          filter.GetValidateMutations(),
		"Check starts before the body":       filter.GetWithRequestBody() == nil,
		"paths have one spelling":            manager.GetNormalizePath().GetValue() && manager.GetMergeSlashes(),
		"escaped slashes are refused":        manager.GetPathWithEscapedSlashesAction() == hcmv3.HttpConnectionManager_REJECT_REQUEST,
		"nobody upgrades":                    len(manager.GetUpgradeConfigs()) == 0,
		"nobody is internal":                 manager.GetInternalAddressConfig() == nil && manager.GetUseRemoteAddress().GetValue(),
		"names with underscores are dropped": manager.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction().String() == "DROP_HEADER",
		"routes rewrite nothing behind it":   !strings.Contains(protojson.Format(manager.GetRouteConfig()), "ewrite"),
		"what nobody is asked about ends":    whatIsNotAskedAboutEnds(manager.GetRouteConfig()),
		"nobody else says who it is":         removesIdentityFirst(t, manager),
		"Keyporter's deadline is nearer":     filter.GetGrpcService().GetTimeout().AsDuration()*3/4 >= envoy.DefaultTimeout,
		"Keyporter drains for long enough":   drainIsLongEnough(t),
		"headers and path fit Check's limit": manager.GetMaxRequestHeadersKb().GetValue()*2 < 256,
	} {
		if !ok {
			t.Errorf("not so: %s", what)
		}
	}
}

// Only charged requests are reported, in messages that the server accepts, with gRPC's form of a
// failure and with the token.
func TestBootstrapReportsCharges(t *testing.T) {
	manager := connectionManager(t, parse(t, whole(t, bootstraps(t)["token"])))
	var filter []string
	var config grpclogv3.HttpGrpcAccessLogConfig
	for _, l := range manager.GetAccessLog() {
		if l.GetTypedConfig().UnmarshalTo(&config) != nil {
			continue
		}
		matcher := l.GetFilter().GetMetadataFilter().GetMatcher()
		filter = append(filter, matcher.GetFilter())
		for _, segment := range matcher.GetPath() {
			filter = append(filter, segment.GetKey())
		}
		if missing := l.GetFilter().GetMetadataFilter().GetMatchIfKeyNotFound(); missing == nil || missing.GetValue() {
			t.Error("what has no key is reported too")
		}
	}
	if got := strings.Join(filter, " "); got != "envoy.filters.http.ext_authz "+codec.MetadataKey+" key_id" {
		t.Errorf("reported is what has %q", got)
	}
	common := config.GetCommonConfig()
	if size := common.GetBufferSizeBytes().GetValue(); size+100<<10 > 256<<10 {
		t.Errorf("a message of %d bytes and an entry more does not fit", size)
	}
	if common.GetBufferFlushInterval().AsDuration() >= envoy.DefaultDrainDelay {
		t.Error("a replica is gone before it is told")
	}
	for _, names := range [][]string{config.GetAdditionalResponseHeadersToLog(), config.GetAdditionalResponseTrailersToLog()} {
		if len(names) != 1 || names[0] != "grpc-status" {
			t.Errorf("reported are %q", names)
		}
	}
	if len(config.GetAdditionalRequestHeadersToLog()) > 0 {
		t.Error("headers of the request, which may hold a key, are reported")
	}
	metadata := common.GetGrpcService().GetInitialMetadata()
	if len(metadata) != 1 || metadata[0].GetValue() != "Bearer s3cret-s3cret-s3cret" {
		t.Errorf("sent with it is %v", metadata)
	}
}

// A client that does not read cannot make the upstream wait before Envoy holds as much as is
// assumed.
func TestBootstrapTakesAnswersFromTheUpstream(t *testing.T) {
	config := parse(t, whole(t, bootstrap.Config{}))
	if n := config.GetStaticResources().GetListeners()[0].GetPerConnectionBufferLimitBytes().GetValue(); n < envoy.Unread {
		t.Errorf("the listener buffers %d bytes", n)
	}
	http2 := connectionManager(t, config).GetHttp2ProtocolOptions()
	if n := http2.GetInitialStreamWindowSize().GetValue(); n < envoy.Unread {
		t.Errorf("a stream of HTTP/2 buffers %d bytes", n)
	}
}

// whatIsNotAskedAboutEnds reports whether Keyporter is asked on all routes but one, which forwards
// nothing. The page's routes, and no others, wait for the whole request.
func whatIsNotAskedAboutEnds(config *routev3.RouteConfiguration) bool {
	hosts := config.GetVirtualHosts()
	for i, route := range hosts[0].GetRoutes() {
		own := route.GetTypedPerFilterConfig()
		delete(own, "envoy.filters.http.buffer")
		if (len(own) > 0) != (i == 0) || i == 0 && route.GetDirectResponse().GetStatus() != 400 {
			return false
		}
	}
	return len(hosts) == 1 && len(hosts[0].GetTypedPerFilterConfig()) == 0 && len(config.GetTypedPerFilterConfig()) == 0
}

// removesIdentityFirst reports whether a client's identity headers are removed before anything else
// reads the request.
func removesIdentityFirst(t *testing.T, manager *hcmv3.HttpConnectionManager) bool {
	var first mutationv3.HeaderMutation
	if err := manager.GetEarlyHeaderMutationExtensions()[0].GetTypedConfig().UnmarshalTo(&first); err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("^(?:" + first.GetMutations()[0].GetRemoveOnMatch().GetKeyMatcher().GetSafeRegex().GetRegex() + ")$")
	return name.MatchString("x-keyporter-user") && name.MatchString("x.keyporter_plan") && !name.MatchString("x-api-key") && !name.MatchString("x-keyporters")
}

func drainIsLongEnough(t *testing.T) bool {
	check := parse(t, whole(t, bootstrap.Config{})).GetStaticResources().GetClusters()[0].GetHealthChecks()[0]
	return time.Duration(check.GetUnhealthyThreshold().GetValue())*check.GetInterval().AsDuration() < envoy.DefaultDrainDelay
}

// For any table, Envoy's first matching route belongs to the rule that the authorizer finds.
func TestRoutesAgreeWithTheTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segment := rapid.SampledFrom([]string{"a", "b", "ab", "-", "~"})
		path := rapid.Custom(func(t *rapid.T) string {
			return "/" + strings.Join(rapid.SliceOfN(segment, 0, 4).Draw(t, "segments"), "/")
		})
		var rules []authz.Rule
		for _, p := range rapid.SliceOfNDistinct(path, 0, 8, rapid.ID[string]).Draw(t, "exact") {
			rules = append(rules, authz.Rule{Path: p, Kind: authz.KindPublic, To: drawDestination(t)})
		}
		for _, p := range rapid.SliceOfNDistinct(path, 0, 8, rapid.ID[string]).Draw(t, "below") {
			rules = append(rules, authz.Rule{Path: strings.TrimSuffix(p, "/") + "/*", Kind: authz.KindPublic, To: drawDestination(t)})
		}
		table, err := authz.NewRouteTable(rules)
		if err != nil {
			t.Fatal(err)
		}
		text, err := bootstrap.YAML(bootstrap.Config{Routes: table})
		if err != nil {
			t.Fatal(err)
		}
		routes := connectionManager(t, parse(t, string(text))).GetRouteConfig().GetVirtualHosts()[0].GetRoutes()
		asked := path.Draw(t, "asked") + rapid.SampledFrom([]string{"", "/"}).Draw(t, "slash")
		want := "404"
		if rule := table.Match(asked); rule != nil {
			want = map[authz.Destination]string{authz.ToUpstream: "upstream", authz.ToPage: "page"}[rule.To]
		}
		if got := destination(t, routes, asked); got != want {
			t.Fatalf("Envoy sends %s to %s, the table to %s", asked, got, want)
		}
	})
}

func drawDestination(t *rapid.T) authz.Destination {
	return rapid.SampledFrom([]authz.Destination{authz.ToUpstream, authz.ToPage}).Draw(t, "to")
}

// destination selects a route as Envoy does: the first match, by equality or as a plain prefix. It
// skips routes for certain headers.
func destination(t rapid.TB, routes []*routev3.Route, path string) string {
	for _, r := range routes {
		if len(r.GetMatch().GetHeaders()) > 0 {
			continue
		}
		exact, isExact := r.GetMatch().GetPathSpecifier().(*routev3.RouteMatch_Path)
		if isExact && exact.Path != path || !isExact && !strings.HasPrefix(path, r.GetMatch().GetPrefix()) {
			continue
		}
		if direct := r.GetDirectResponse(); direct != nil {
			return fmt.Sprint(direct.GetStatus())
		}
		return r.GetRoute().GetCluster()
	}
	t.Fatalf("no route matches %s, so nobody would be asked", path)
	return ""
}

// A rule of kind none leads nowhere, and page rules lead to the page.
func TestRouteDestinations(t *testing.T) {
	routes := connectionManager(t, parse(t, whole(t, bootstrap.Config{}))).GetRouteConfig().GetVirtualHosts()[0].GetRoutes()
	for path, want := range map[string]string{
		"/": "404", "/nowhere": "404", "/apix": "404", "/api/v1/brandsx": "404", "/api/v1/": "404", "/api/v1/brands": "upstream", "/api/v1/brands/": "upstream",
		"/api/v1/brands/7": "upstream", "/api": "page", "/api/": "page", "/api/regenerate/": "page", "/api/v1/tiktok-shop/credits/": "upstream", "/api/regenerate": "page", "/api/-/static/a.css": "page", "/api/-/login": "page", "/api/brands": "upstream",
	} {
		if got := destination(t, routes, path); got != want {
			t.Errorf("%s goes to %s, want %s", path, got, want)
		}
	}
}

// All problems are reported at once, each with its address.
func TestBootstrapErrors(t *testing.T) {
	_, err := bootstrap.YAML(bootstrap.Config{
		Authz: "keyporter", Upstream: "up stream:80", Page: "page:99999", Listen: "localhost:8080", Admin: "unix://relative.sock",
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`authz address: "keyporter" is neither HOST:PORT nor unix:///PATH`,
		`upstream address: "up stream:80" has a host`,
		`page address: "page:99999" has a port`,
		`listen address: "localhost:8080" needs an IP address`,
		`admin address: "unix://relative.sock" is not unix:///PATH`,
		`no route table`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	for _, bad := range []string{"a:0", ":80", "a:b:80", "unix:///a\nb", "unix:///" + strings.Repeat("a", 107), "a\n:80", "a:http", "\"a\":80", "[::1", "-a:80", "[fe80::1%a\nb]:80"} {
		if _, err := bootstrap.YAML(bootstrap.Config{Routes: ownTable(t), Upstream: bad}); err == nil {
			t.Errorf("address %q is accepted", bad)
		}
	}
}

// A bootstrap with a token in it says so, and no other one does.
func TestBootstrapToken(t *testing.T) {
	with := bootstraps(t)["token"]
	if text := whole(t, with); !strings.Contains(text, "THIS FILE IS A SECRET") || !strings.Contains(text, `"Bearer s3cret-s3cret-s3cret"`) {
		t.Error("no token, or no warning")
	}
	if text := whole(t, bootstrap.Config{}); strings.Contains(text, "Bearer") || strings.Contains(text, "SECRET") {
		t.Error("a token that was not configured")
	}
}

func newTable(t testing.TB, rules ...authz.Rule) *authz.RouteTable {
	t.Helper()
	table, err := authz.NewRouteTable(rules)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// ownTable has the default routes.
func ownTable(t testing.TB) *authz.RouteTable {
	t.Helper()
	rules, err := routes.Default()
	if err != nil {
		t.Fatal(err)
	}
	return newTable(t, rules...)
}

// authorityFile returns a PEM file with a certificate.
func authorityFile(t *testing.T) string {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// whole returns the bootstrap of c, for the default routes if c has none.
func whole(t *testing.T, c bootstrap.Config) string {
	t.Helper()
	if c.Routes == nil {
		c.Routes = ownTable(t)
	}
	text, err := bootstrap.YAML(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parse reads a bootstrap as Envoy does: an unknown field is an error.
func parse(t rapid.TB, text string) *bootstrapv3.Bootstrap {
	t.Helper()
	var document any
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	var config bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(encoded, &config); err != nil {
		t.Fatal(err)
	}
	return &config
}

// validate applies the rules of Envoy's API to m and everything in it, and counts the messages.
func validate(t *testing.T, m proto.Message) int {
	t.Helper()
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%s: %v", m.ProtoReflect().Descriptor().FullName(), err)
		}
	}
	if packed, ok := m.(*anypb.Any); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		return validate(t, inner)
	}
	count := 1
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range value.List().Len() {
				count += validate(t, value.List().Get(i).Message().Interface())
			}
		case f.IsMap():
			value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				if f.MapValue().Message() != nil {
					count += validate(t, v.Message().Interface())
				}
				return true
			})
		default:
			count += validate(t, value.Message().Interface())
		}
		return true
	})
	return count
}

func connectionManager(t rapid.TB, config *bootstrapv3.Bootstrap) *hcmv3.HttpConnectionManager {
	t.Helper()
	filters := config.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()
	var manager hcmv3.HttpConnectionManager
	if err := filters[0].GetTypedConfig().UnmarshalTo(&manager); err != nil {
		t.Fatal(err)
	}
	return &manager
}
