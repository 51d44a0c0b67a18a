package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// docs/metrics.md has a row for every metric that a replica exposes, with its labels and its type,
// and no others. The recommended alerts use only these metrics.
func TestTheDocumentOfMetricsIsComplete(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	app := newWebApp(t)
	operators := &administered{tokens: filepath.Join(t.TempDir(), "admin.tokens"), apis: []string{address(t)}}
	operators.admit(t, operatorToken)
	certificate := partstest.NewCertificateFiles(t, partstest.NewAuthority(t).For(t, "keyporter"))
	s := start(t, stackConfig{noEnvoy: true, database: partstest.Database(t, 18), flags: append(append(operators.flags(0), tells(t, "http://127.0.0.1:1")...),
		"--grpc-tls-cert", certificate.Cert, "--grpc-tls-key", certificate.Key,
		"--redis", "redis://"+partstest.Valkey(t).Addr(), "--jwt-keys", app.keys, "--jwt-issuer", issuer, "--jwt-audience", "api")})
	delivering(s)
	get("http://" + s.replicas[0].page + "/api") // exposes no series before the first request
	_, text, err := get("http://" + s.replicas[0].ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	exposed := map[string][]string{} // metric → its labels
	for _, line := range regexp.MustCompile(`(?m)^(keyporter_\w+)(\{.*\})? `).FindAllStringSubmatch(text, -1) {
		name := line[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && strings.Contains(text, "# TYPE "+base+" histogram") {
				name = base
			}
		}
		labels := []string{}
		for _, label := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(line[2], -1) {
			if label[1] != "le" {
				labels = append(labels, label[1])
			}
		}
		slices.Sort(labels)
		exposed[name] = labels
	}
	if len(exposed) < 30 {
		t.Fatalf("only %d metrics were found", len(exposed))
	}
	document := file(t, "../../docs/metrics.md")
	rows := map[string]string{} // metric → its type
	for _, row := range regexp.MustCompile("(?m)^\\| `(keyporter_\\w+)[^`]*` \\| (\\w+) \\| ").FindAllStringSubmatch(document, -1) {
		rows[row[1]] = row[2]
	}
	told := map[string]bool{}
	for _, name := range regexp.MustCompile("`(keyporter_\\w+)(\\{([\\w,]*)\\})?`").FindAllStringSubmatch(document, -1) {
		labels := strings.FieldsFunc(name[3], func(r rune) bool { return r == ',' })
		slices.Sort(labels)
		want, known := exposed[name[1]]
		if !known {
			t.Errorf("docs/metrics.md names %s, which no replica has", name[1])
		}
		if !told[name[1]] && !slices.Equal(labels, want) { // the first row is that of the table
			t.Errorf("docs/metrics.md gives %s the labels %q, and a replica %q", name[1], labels, want)
		}
		told[name[1]] = true
	}
	for name := range exposed {
		if !strings.Contains(text, "# TYPE "+name+" "+rows[name]+"\n") {
			t.Errorf("docs/metrics.md gives %s the type %q, and a replica another", name, rows[name])
		}
	}
	for _, name := range regexp.MustCompile(`keyporter_\w+`).FindAllString(file(t, "../../alerts/rules.yaml"), -1) {
		if _, known := exposed[name]; !known {
			t.Errorf("an alert asks for %s, which no replica has", name)
		}
	}
}

func file(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
