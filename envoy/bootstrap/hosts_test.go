package bootstrap_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// tables is the number of route tables to compare, and asked the number of requests for each.
const tables, asked = 64, 64

// A real Envoy with the printed routes takes the route of the deciding rule, for each of a few
// thousand generated tables and requests: hosts and paths that begin or end like one another,
// ports, dots, cases and slashes.
func TestARealEnvoyTakesTheRouteOfTheRule(t *testing.T) {
	dir := t.TempDir()
	var routes []*authz.RouteTable
	sample := rapid.Custom(drawTable)
	for seed := 0; len(routes) < tables; seed++ {
		if table := sample.Example(seed); table != nil {
			routes = append(routes, table)
		}
	}
	partstest.StartEnvoy(t, parts.EnvoyConfig{Bootstrap: allTables(t, dir, routes)})
	compared, matched := 0, 0
	request := rapid.Custom(drawRequest)
	for i, table := range routes {
		conn, err := net.Dial("unix", filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(conn)
		for n := range asked {
			r := request.Example(i*asked + n)
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", r.path, r.host)
			answer, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatalf("table %d, %+v: %v", i, r, err)
			}
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			want := decided(t, table, r)
			if want != "" {
				matched++
			}
			if compared++; string(body) != want {
				t.Errorf("table %d, %s on host %q: Envoy takes %q, the rule that decides is %q", i, r.path, r.host, body, want)
			}
		}
		conn.Close()
	}
	t.Logf("%d tables, %d requests, %d of them with a rule", len(routes), compared, matched)
	if matched < compared/4 || matched > compared*9/10 {
		t.Errorf("%d of %d requests have a rule: the generator is lopsided and proves little", matched, compared)
	}
}

// hostAndPath determines the choice of a route.
type hostAndPath struct{ host, path string }

// drawTable returns a table of public rules, or nil if the rules do not fit together.
func drawTable(t *rapid.T) *authz.RouteTable {
	segment := rapid.SampledFrom([]string{"a", "b", "ab", "-"})
	path := rapid.Custom(func(t *rapid.T) string {
		p := "/" + strings.Join(rapid.SliceOfN(segment, 0, 3).Draw(t, "segments"), "/")
		if p != "/" && rapid.IntRange(0, 5).Draw(t, "slash") == 0 {
			p += "/"
		}
		if rapid.Bool().Draw(t, "below") {
			p = strings.TrimSuffix(p, "/") + "/*"
		}
		return p
	})
	host := rapid.SampledFrom([]string{"a.example", "b.a.example", "*.a.example", "*.example", "*.b.a.example", "a", "127.0.0.1"})
	var rules []authz.Rule
	for range rapid.IntRange(1, 10).Draw(t, "rules") {
		r := authz.Rule{Path: path.Draw(t, "path"), Kind: authz.KindPublic}
		if rapid.Bool().Draw(t, "has hosts") {
			r.Hosts = rapid.SliceOfNDistinct(host, 1, 2, rapid.ID[string]).Draw(t, "hosts")
		}
		rules = append(rules, r)
	}
	table, err := authz.NewRouteTable(rules)
	if err != nil {
		return nil
	}
	return table
}

func drawRequest(t *rapid.T) hostAndPath {
	host := rapid.SampledFrom([]string{"a.example", "b.a.example", "c.a.example", "c.b.a.example", "x.example", "example", "a", "other", "127.0.0.1", "aa.example"}).Draw(t, "host")
	if rapid.Bool().Draw(t, "upper case") {
		host = strings.ToUpper(host)
	}
	host += rapid.SampledFrom([]string{"", "", ".", ":80", ".:8080", "..", "..:80", ".:80."}).Draw(t, "end")
	segments := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab", "-", "c"}), 0, 4).Draw(t, "segments")
	path := "/" + strings.Join(segments, "/")
	if path != "/" && rapid.Bool().Draw(t, "slash") {
		path += "/"
	}
	return hostAndPath{host, path + rapid.SampledFrom([]string{"", "?a=/b"}).Draw(t, "query")}
}

// decided returns the rule that decides a request, in the form that ask returns for a route, or "".
func decided(t *testing.T, table *authz.RouteTable, r hostAndPath) string {
	t.Helper()
	a := authz.New(authz.Config{Routes: table, Sessions: &authz.Sessions{}, Meter: authz.Unmetered{}})
	host := withoutDot(r.host)
	d, err := a.Authorize(context.Background(), &authz.Request{Method: "GET", Host: host, Path: r.path})
	if err != nil || d.Reason != authz.Allowed && d.Reason != authz.NoRoute {
		t.Fatalf("%+v: %v, %v", r, d.Reason, err)
	}
	if d.Rule == nil {
		return ""
	}
	return d.Rule.Path + " of " + strings.Join(d.Rule.Hosts, ",")
}

// withoutDot returns a host as the printed Envoy passes it on: without one dot at its end, or
// before its port.
func withoutDot(host string) string {
	switch dot := strings.LastIndexByte(host, '.'); {
	case dot >= 0 && (dot == len(host)-1 || host[dot+1] == ':'):
		return host[:dot] + host[dot+1:]
	}
	return host
}

// allTables is a configuration with a listener for each table, at a socket with its number. Its
// routes are those of the printed bootstrap, but answer with the name of their rule.
func allTables(t *testing.T, dir string, routes []*authz.RouteTable) []byte {
	t.Helper()
	var all *bootstrapv3.Bootstrap
	var listeners []*listenerv3.Listener
	for i, table := range routes {
		text, err := bootstrap.YAML(bootstrap.Config{Routes: table, Admin: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		all = parse(t, string(text))
		listener := all.GetStaticResources().GetListeners()[0]
		listener.Name = fmt.Sprint(i)
		listener.Address = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: filepath.Join(dir, fmt.Sprint(i))}}}
		manager := connectionManager(t, all)
		// Only the router is left, so nobody is asked.
		manager.HttpFilters = manager.GetHttpFilters()[len(manager.GetHttpFilters())-1:]
		manager.AccessLog, manager.LocalReplyConfig = nil, nil
		hosts := table.Hosts()
		for h, virtual := range manager.GetRouteConfig().GetVirtualHosts() {
			own := hosts[h]
			for _, route := range virtual.GetRoutes() {
				answerWithRule(own, route)
			}
		}
		wrapped, err := anypb.New(manager)
		if err != nil {
			t.Fatal(err)
		}
		listener.GetFilterChains()[0].GetFilters()[0].GetTypedConfig().Value = wrapped.GetValue()
		listeners = append(listeners, proto.Clone(listener).(*listenerv3.Listener))
	}
	all.StaticResources.Listeners, all.OverloadManager = listeners, nil
	config, err := protojson.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// answerWithRule makes a route answer with its rule of host.
func answerWithRule(host *authz.HostRoutes, route *routev3.Route) {
	route.TypedPerFilterConfig = nil
	path := route.GetMatch().GetPath()
	if prefix := route.GetMatch().GetPrefix(); prefix != "" {
		path = prefix + "*"
	}
	name := ""
	for _, rule := range host.Rules() {
		if rule.Path == path || name == "" && rule.Path+"/" == path { // or with a trailing slash
			name = rule.Path + " of " + strings.Join(rule.Hosts, ",")
		}
		if rule.Path == path {
			break
		}
	}
	if len(route.GetMatch().GetHeaders()) > 0 {
		name = "HTTP/1.0"
	}
	route.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: 200, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: name}},
	}}
}
