package bootstrap_test

import (
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
)

// upstreamCluster returns the upstream's cluster.
func upstreamCluster(t *testing.T, text string) *clusterv3.Cluster {
	t.Helper()
	for _, c := range parse(t, text).GetStaticResources().GetClusters() {
		if c.GetName() == "upstream" {
			return c
		}
	}
	t.Fatal("there is no upstream")
	return nil
}

// The scheme of an upstream's URL determines how Envoy speaks to it, the port, and the
// verification; and the first line of the bootstrap repeats all of that.
func TestWhatAnUpstreamIs(t *testing.T) {
	const system = "/etc/ssl/certs/ca-certificates.crt"
	for _, row := range []struct {
		flags                 string
		address               string
		protocol              string
		sni, san, authorities string
	}{
		{"api:8000", "api:8000", "HTTP/1.1", "", "", ""},
		{"http://api:8000", "api:8000", "HTTP/1.1", "", "", ""},
		{"http://api", "api:80", "HTTP/1.1", "", "", ""},
		{"http://[::1]/", "::1:80", "HTTP/1.1", "", "", ""},
		{"unix:///run/api.sock", "/run/api.sock", "HTTP/1.1", "", "", ""},
		{"h2c://10.0.0.1:50051", "10.0.0.1:50051", "HTTP/2", "", "", ""},
		{"https://api.example.com", "api.example.com:443", "as chosen", "api.example.com", "DNS api.example.com", system},
		{"HTTPS://API.example.com.:8443", "API.example.com.:8443", "as chosen", "api.example.com", "DNS api.example.com", system},
		{"https://10.0.0.1", "10.0.0.1:443", "as chosen", "", "IP_ADDRESS 10.0.0.1", system},
		{"https://[FD00:0::1]:1", "FD00:0::1:1", "as chosen", "", "IP_ADDRESS fd00::1", system},
		{"https://[fe80::1%eth0]", "fe80::1%eth0:443", "as chosen", "", "IP_ADDRESS fe80::1", system},
		{"https://api --upstream-ca-file /etc/ca.pem", "api:443", "as chosen", "api", "DNS api", "/etc/ca.pem"},
		{"https://api --upstream-insecure", "api:443", "as chosen", "api", "", ""},
	} {
		upstream, rest, _ := strings.Cut(row.flags, " ")
		c := bootstrap.Config{Upstream: upstream, UpstreamInsecure: rest == "--upstream-insecure"}
		if file, ok := strings.CutPrefix(rest, "--upstream-ca-file "); ok {
			c.UpstreamCAFile = file
		}
		text := whole(t, c)
		if line, _, _ := strings.Cut(text, "\n"); !strings.Contains(line+" ", "--upstream "+row.flags+" ") {
			t.Errorf("%s: the first line is %s", row.flags, line)
		}
		if strings.Contains(text, "INSECURE") != c.UpstreamInsecure {
			t.Errorf("%s: a warning where none is due, or none where one is", row.flags)
		}
		cluster := upstreamCluster(t, text)
		address := cluster.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress()
		got := address.GetPipe().GetPath()
		if socket := address.GetSocketAddress(); socket != nil {
			got = fmt.Sprint(socket.GetAddress(), ":", socket.GetPortValue())
		}
		if got != row.address {
			t.Errorf("%s: at %s, want %s", row.flags, got, row.address)
		}
		if got := protocolOf(t, cluster); got != row.protocol {
			t.Errorf("%s: speaks %s, want %s", row.flags, got, row.protocol)
		}
		sni, san, authorities := verificationOf(t, cluster)
		if sni != row.sni || san != row.san || authorities != row.authorities {
			t.Errorf("%s: asks for %q, verifies %q by %q; want %q, %q, %q", row.flags, sni, san, authorities, row.sni, row.san, row.authorities)
		}
	}
}

func protocolOf(t *testing.T, cluster *clusterv3.Cluster) string {
	t.Helper()
	for _, packed := range cluster.GetTypedExtensionProtocolOptions() {
		var options httpv3.HttpProtocolOptions
		if err := packed.UnmarshalTo(&options); err != nil {
			t.Fatal(err)
		}
		protocol, http2 := "HTTP/2", options.GetExplicitHttpConfig().GetHttp2ProtocolOptions()
		if auto := options.GetAutoConfig(); auto != nil {
			protocol, http2 = "as chosen", auto.GetHttp2ProtocolOptions()
		}
		if http2.GetInitialStreamWindowSize().GetValue() < envoy.Unread {
			t.Error("the upstream waits for a slow reader earlier than is assumed")
		}
		return protocol
	}
	return "HTTP/1.1"
}

// verificationOf returns "" for everything that is not verified.
func verificationOf(t *testing.T, cluster *clusterv3.Cluster) (sni, san, authorities string) {
	t.Helper()
	if cluster.GetTransportSocket() == nil {
		return "", "", ""
	}
	var config tlsv3.UpstreamTlsContext
	if err := cluster.GetTransportSocket().GetTypedConfig().UnmarshalTo(&config); err != nil {
		t.Fatal(err)
	}
	validation := config.GetCommonTlsContext().GetValidationContext()
	for _, m := range validation.GetMatchTypedSubjectAltNames() {
		san += m.GetSanType().String() + " " + m.GetMatcher().GetExact()
	}
	return config.GetSni(), san, validation.GetTrustedCa().GetFilename()
}

// Settings that Envoy could not or would not follow as meant are refused with a suggestion; and no
// error repeats a possible password.
func TestWhatNoUpstreamIs(t *testing.T) {
	for _, row := range []struct {
		config bootstrap.Config
		want   string
	}{
		{bootstrap.Config{Upstream: "api"}, `"api" is neither HOST:PORT nor a URL`},
		{bootstrap.Config{Upstream: "h2c://api"}, `"api" needs a port, since h2c means none`},
		{bootstrap.Config{Upstream: "http://"}, `has a host that is neither`},
		{bootstrap.Config{Upstream: "https://:443"}, `has a host that is neither`},
		{bootstrap.Config{Upstream: "https://api:"}, `has a port that is not a number`},
		{bootstrap.Config{Upstream: "https://api:0"}, `needs a port other than 0`},
		{bootstrap.Config{Upstream: "https://::1"}, `"::1" is neither HOST:PORT`},
		{bootstrap.Config{Upstream: "https:api:443"}, `"https:api:443" is neither HOST:PORT`},
		{bootstrap.Config{Upstream: "grpc://api:1"}, `the scheme "grpc" is none of http, https, h2c (HTTP/2 without TLS, as for gRPC) and unix`},
		{bootstrap.Config{Upstream: "://api:1"}, `the scheme "" is none of`},
		{bootstrap.Config{Upstream: "http://api/v1"}, `after "api" there is a path`},
		{bootstrap.Config{Upstream: "https://api?key=hunter2"}, `after "api" there is a path, a query`},
		{bootstrap.Config{Upstream: "https://api:1#hunter2"}, `after "api:1" there is a path, a query or a fragment`},
		{bootstrap.Config{Upstream: "https://ann:hunter2@api"}, `a user or a password before the host`},
		{bootstrap.Config{Upstream: "https://ann:hunter2/x@api"}, `a user or a password before the host`},
		{bootstrap.Config{Upstream: "ann:hunter2@api:1"}, `a user or a password before the host`},
		{bootstrap.Config{Upstream: "unix://run/api.sock"}, `is not unix:///PATH with an absolute path`},
		{bootstrap.Config{Upstream: "https://a\nb"}, `has a host that is neither`},
		{bootstrap.Config{Upstream: "http://[fe80::1%a\nb]:80"}, `has a host that is neither`},
		{bootstrap.Config{Upstream: "[fe80::1%a\nb]:80"}, `has a host that is neither`},
		{bootstrap.Config{Upstream: "h2c://api:1", UpstreamInsecure: true}, `"h2c://api:1" is not https, so it has no certificate`},
		{bootstrap.Config{Upstream: "api:1", UpstreamCAFile: "/ca.pem"}, `"api:1" is not https, so it has no certificate`},
		{bootstrap.Config{Upstream: "https://api", UpstreamCAFile: "/ca.pem", UpstreamInsecure: true}, `leave one of them out`},
		{bootstrap.Config{Upstream: "https://api", UpstreamCAFile: "ca.pem"}, `--upstream-ca-file "ca.pem" is not an absolute path`},
		{bootstrap.Config{Upstream: "https://api", UpstreamCAFile: "/a\nb"}, `--upstream-ca-file "/a\nb" is not an absolute path`},
	} {
		row.config.Routes = ownTable(t)
		_, err := bootstrap.YAML(row.config)
		if err == nil || !strings.Contains(err.Error(), "upstream address: ") || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: %v, want %s", row.config.Upstream, err, row.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error repeats it: %v", row.config.Upstream, err)
		}
	}
}

// The command line's settings for the upstream's certificate also apply to the upstream that a file
// calls default: with a CA file in both, the command line's counts.
func TestTheCommandLineSaysHowTheDefaultUpstreamIsVerified(t *testing.T) {
	table, err := authz.NewRouteTable([]authz.Rule{{Path: "/*", Kind: authz.KindAPIKey}})
	if err != nil {
		t.Fatal(err)
	}
	got := whole(t, bootstrap.Config{
		Routes: table, UpstreamCAFile: "/etc/own.pem", Upstreams: map[string]bootstrap.Upstream{"default": {URL: "https://api.example.com", CAFile: "/etc/file.pem"}},
	})
	if !strings.Contains(got, `trusted_ca: { filename: "/etc/own.pem" }`) {
		t.Error("--upstream-ca-file is ignored")
	}
}
