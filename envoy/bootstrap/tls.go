package bootstrap

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"text/template"
)

// TLS is how Envoy reaches the ports of Keyporter that have TLS. All files are PEM files as Envoy
// sees them. The zero value is ports without TLS.
type TLS struct {
	CAFile            string // who signs Keyporter's certificates; "": no port has TLS
	AuthzName         string // the name in that of the gRPC port; "": the host of its address
	CertFile, KeyFile string // Envoy's own certificate; "": Keyporter asks for none
	Page              bool   // the page's port has TLS too
	PageName          string // the name in its certificate; "": the host of its address

	// SecretsDir is the folder, as Envoy sees it, with the output of [Secret] in files: Envoy then
	// reads certificates again when they change. "": it reads them when it starts.
	SecretsDir string
}

// flags are the flags of `keyporter envoy` for t.
func (t TLS) flags() (words []string) {
	add := func(flag, value string) {
		if value != "" {
			words = append(words, flag, value)
		}
	}
	add("--authz-tls-ca", t.CAFile)
	add("--authz-tls-name", t.AuthzName)
	add("--authz-tls-cert", t.CertFile)
	add("--authz-tls-key", t.KeyFile)
	if t.Page {
		words = append(words, "--page-tls")
	}
	add("--page-tls-name", t.PageName)
	add("--tls-secrets", t.SecretsDir)
	return words
}

// problem joins all mistakes in t.
func (t TLS) problem() error {
	var problems []error
	for _, f := range []struct{ flag, file string }{
		{"--authz-tls-ca", t.CAFile}, {"--authz-tls-cert", t.CertFile}, {"--authz-tls-key", t.KeyFile}, {"--tls-secrets", t.SecretsDir},
	} {
		if f.file != "" && !filePath.MatchString(f.file) {
			problems = append(problems, fmt.Errorf("%s %q is not an absolute path of plain characters, as Envoy sees it", f.flag, f.file))
		}
	}
	switch {
	case t.CAFile == "" && (t != TLS{}):
		problems = append(problems, errors.New("--authz-tls-ca is missing: without it Envoy cannot tell Keyporter from others, and the other settings of TLS mean nothing"))
	case (t.CertFile == "") != (t.KeyFile == ""):
		problems = append(problems, errors.New("--authz-tls-cert and --authz-tls-key belong together: give both, or none"))
	case t.PageName != "" && !t.Page:
		problems = append(problems, errors.New("--page-tls-name needs --page-tls"))
	}
	return errors.Join(problems...)
}

// tlsClient is the TLS of one cluster.
type tlsClient struct {
	TLS
	SNI, SANType, SAN string
	HTTP2             bool
}

var spiffeID = regexp.MustCompile(`^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)

// client returns the TLS of a cluster whose certificate has a name: by default, that of its host.
func (t TLS) client(flag, name string, to address) (*tlsClient, error) {
	c := &tlsClient{TLS: t}
	if name == "" {
		name = to.host
	}
	ip, err := netip.ParseAddr(name)
	switch {
	case name == "":
		return nil, fmt.Errorf("%s is missing: %s is no name that a certificate could have", flag, to.path)
	case err == nil:
		c.SANType, c.SAN = "IP_ADDRESS", ip.WithZone("").String()
	case spiffeID.MatchString(name):
		c.SANType, c.SAN = "URI", name
	case hostName.MatchString(name):
		c.SANType, c.SAN = "DNS", strings.ToLower(strings.TrimSuffix(name, "."))
		c.SNI = c.SAN
	default:
		return nil, fmt.Errorf("%s %.200q is neither a DNS name, an IP address nor a SPIFFE ID", flag, name)
	}
	return c, nil
}

// clients returns the TLS of the clusters of Keyporter; nil where there is none.
func (t TLS) clients(authz, page address) (ofAuthz, ofPage *tlsClient, err error) {
	if err := t.problem(); err != nil || t.CAFile == "" {
		return nil, nil, err
	}
	ofAuthz, err = t.client("--authz-tls-name", t.AuthzName, authz)
	if err == nil {
		ofAuthz.HTTP2 = true
	}
	if t.Page {
		var other error
		ofPage, other = t.client("--page-tls-name", t.PageName, page)
		err = errors.Join(err, other)
	}
	return ofAuthz, ofPage, err
}

//go:embed secret.yaml.tmpl
var secretText string

var secretTemplate = template.Must(template.New("secret").Funcs(template.FuncMap{"quote": strconv.Quote, "dir": path.Dir}).Parse(secretText))

// SecretNames are the secrets that [Secret] prints.
func SecretNames() []string { return []string{"ca", "client"} }

// Secret returns the content of the file keyporter-NAME.yaml in TLS.SecretsDir. It names the files
// with certificates, and holds none.
func Secret(t TLS, name string) ([]byte, error) {
	t.SecretsDir, t.Page, t.PageName, t.AuthzName = "", false, "", ""
	switch {
	case name != "ca" && name != "client":
		return nil, fmt.Errorf("there is no secret %q: the secrets are %s", name, strings.Join(SecretNames(), ", "))
	case name == "ca" && t.CAFile == "":
		return nil, errors.New("--authz-tls-ca is missing")
	case name == "client" && (t.CertFile == "" || t.KeyFile == ""):
		return nil, errors.New("--authz-tls-cert and --authz-tls-key are missing")
	}
	if name == "client" {
		t.CAFile = t.CertFile // its own is not asked for
	}
	if err := t.problem(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err := secretTemplate.Execute(&out, struct {
		TLS
		Name string
	}{t, name})
	return out.Bytes(), err
}
