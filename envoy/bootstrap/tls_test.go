package bootstrap_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// secretsDir returns a folder with the secrets of files that exist.
func secretsDir(t *testing.T) string {
	t.Helper()
	a, dir := partstest.NewAuthority(t), t.TempDir()
	files := partstest.NewCertificateFiles(t, a.For(t, "envoy"), a)
	for _, name := range bootstrap.SecretNames() {
		text, err := bootstrap.Secret(bootstrap.TLS{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key}, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "keyporter-"+name+".yaml"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Envoy accepts only a certificate for one name, by default that of the address, and shows its own
// where that is named.
func TestHowEnvoyKnowsKeyporter(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		authz, name string
		san, sni    string
	}{
		{"keyporter:9001", "", "DNS keyporter", "keyporter"},
		{"Keyporter.example.com.:9001", "", "DNS keyporter.example.com", "keyporter.example.com"},
		{"10.0.0.1:9001", "", "IP_ADDRESS 10.0.0.1", ""},
		{"10.0.0.1:9001", "keyporter", "DNS keyporter", "keyporter"},
		{"unix:///run/a.sock", "spiffe://example.org/keyporter", "URI spiffe://example.org/keyporter", ""},
	} {
		text := whole(t, bootstrap.Config{Authz: row.authz, TLS: bootstrap.TLS{CAFile: "/tls/ca.crt", AuthzName: row.name, CertFile: "/tls/a.crt", KeyFile: "/tls/a.key"}})
		var secure tlsv3.UpstreamTlsContext
		for _, c := range parse(t, text).GetStaticResources().GetClusters() {
			switch {
			case c.GetName() == "authz":
				if err := c.GetTransportSocket().GetTypedConfig().UnmarshalTo(&secure); err != nil {
					t.Fatal(err)
				}
			case c.GetTransportSocket() != nil:
				t.Errorf("%s: the cluster %s has TLS", row.authz, c.GetName())
			}
		}
		common := secure.GetCommonTlsContext()
		names := common.GetValidationContext().GetMatchTypedSubjectAltNames()
		if len(names) != 1 || fmt.Sprint(names[0].GetSanType(), " ", names[0].GetMatcher().GetExact()) != row.san || secure.GetSni() != row.sni {
			t.Errorf("%s %s: %v, sni %q", row.authz, row.name, names, secure.GetSni())
		}
		if fmt.Sprint(common.GetAlpnProtocols()) != "[h2]" || common.GetTlsCertificates()[0].GetPrivateKey().GetFilename() != "/tls/a.key" {
			t.Errorf("%s: %v", row.authz, common)
		}
		if line, _, _ := strings.Cut(text, "\n"); !strings.Contains(line, "--authz-tls-ca /tls/ca.crt") || !strings.Contains(line, "--authz-tls-cert /tls/a.crt --authz-tls-key /tls/a.key") {
			t.Errorf("%s: the first line is %s", row.authz, line)
		}
	}
}

// Half a set of TLS settings is an error that names the flag.
func TestMistakesInTLS(t *testing.T) {
	t.Parallel()
	const ca = "/tls/ca.crt"
	for _, row := range []struct {
		authz string
		tls   bootstrap.TLS
		want  string
	}{
		{"a:1", bootstrap.TLS{CertFile: "/a", KeyFile: "/b"}, "--authz-tls-ca is missing"},
		{"a:1", bootstrap.TLS{Page: true}, "--authz-tls-ca is missing"},
		{"a:1", bootstrap.TLS{CAFile: ca, CertFile: "/a"}, "--authz-tls-cert and --authz-tls-key belong together"},
		{"a:1", bootstrap.TLS{CAFile: ca, PageName: "a"}, "--page-tls-name needs --page-tls"},
		{"a:1", bootstrap.TLS{CAFile: "ca.crt"}, "--authz-tls-ca \"ca.crt\" is not an absolute path"},
		{"a:1", bootstrap.TLS{CAFile: ca, SecretsDir: "/a b"}, "--tls-secrets \"/a b\" is not an absolute path"},
		{"a:1", bootstrap.TLS{CAFile: ca, AuthzName: "a b"}, "--authz-tls-name \"a b\" is neither"},
		{"a:1", bootstrap.TLS{CAFile: ca, AuthzName: "spiffe://example.org/*"}, "--authz-tls-name"},
		{"unix:///a", bootstrap.TLS{CAFile: ca}, "--authz-tls-name is missing"},
	} {
		_, err := bootstrap.YAML(bootstrap.Config{Routes: ownTable(t), Authz: row.authz, TLS: row.tls})
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: %v, want %q", row.tls, err, row.want)
		}
	}
	for name, tls := range map[string]bootstrap.TLS{"ca": {}, "client": {CertFile: "/a"}, "other": {CAFile: ca}} {
		if text, err := bootstrap.Secret(tls, name); err == nil {
			t.Errorf("the secret %s is printed:\n%s", name, text)
		}
	}
}
