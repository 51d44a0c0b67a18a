package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/store/outbox"
)

// A file of webhooks is read strictly: each mistake is named with its place, and no text shows a
// URL or a secret.
func TestFilesOfWebhooks(t *testing.T) {
	t.Parallel()
	const secret = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
	dir := t.TempDir()
	for name, text := range map[string]string{"good.secret": secret + "\n", "bad.secret": "secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const url, good = "https://example.com/hidden-path?token=hidden", "secret_file: good.secret"
	for _, test := range []struct {
		text, problem string // the problem begins with the place
		endpoints     int
	}{
		{"webhooks: []", "", 0},
		{"webhooks:\n- {name: billing, url: '" + url + "', " + good + "}\n- {name: app, url: 'http://app', types: [key.created], " + good + "}", "", 2},
		{"", "want `webhooks:`", 0},
		{"webhook: []", "1:1: \"webhook\": there is no such setting; did you mean webhooks?", 0},
		{"webhooks: {}", "1:11: webhooks: want a list", 0},
		{"webhooks:\n- {name: billing, url: '" + url + "'}", "2:3: an endpoint needs name, url and secret_file", 0},
		{"webhooks:\n- {name: Billing, url: '" + url + "', " + good + "}", "2:10: name: want 1 to 63", 0},
		{"webhooks:\n- {name: a, url: '" + url + "', " + good + ", kinds: []}", `"kinds": there is no such setting`, 0},
		{"webhooks:\n- {name: a, url: '" + url + "', " + good + ", types: [key.create]}", `types: there is no type "key.create"; did you mean key.created?`, 0},
		{"webhooks:\n- {name: a, url: '" + url + "', " + good + ", types: [key.created, key.created]}", "named twice", 0},
		{"webhooks:\n- {name: a, url: '" + url + "', " + good + "}\n- {name: a, url: '" + url + "', " + good + "}", "3:3: name: an earlier endpoint is named a too", 0},
		{"webhooks:\n- {name: a, url: 'ftp://hidden', " + good + "}", "url: want https://HOST/PATH", 0},
		{"webhooks:\n- {name: a, url: 'https://u:hidden@example.com', " + good + "}", "leave the user name and password out", 0},
		{"webhooks:\n- {name: a, url: '" + url + "', secret_file: none}", "no such file", 0},
		{"webhooks:\n- {name: a, url: '" + url + "', secret_file: bad.secret}", "bad.secret: line 1: want whsec_", 0},
	} {
		c := Config{WebhooksFile: filepath.Join(dir, "webhooks.yaml")}
		if err := os.WriteFile(c.WebhooksFile, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := c.Webhooks()
		if len(all) != test.endpoints || (err == nil) != (test.problem == "") || err != nil && !strings.Contains(err.Error(), test.problem) {
			t.Errorf("%s: %d endpoints, %v; want %d, %s", test.text, len(all), err, test.endpoints, test.problem)
		}
		if err != nil && (strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), secret)) {
			t.Errorf("the error shows a secret: %v", err)
		}
		if len(all) == 2 && (len(all[0].Types) != len(outbox.Types()) || len(all[1].Types) != 1) {
			t.Errorf("types %v, %v", all[0].Types, all[1].Types)
		}
	}
}

// Ranges of addresses are whole.
func TestRangesOfAddresses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"": 0, "10.0.0.0/8": 1, "10.0.0.0/8, ::1/128": 2, "10.0.0.1": -1, "10.0.0.1/8": -1, "all": -1} {
		if got, err := parsePrefixes(text); (err != nil) != (want < 0) || err == nil && len(got) != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
