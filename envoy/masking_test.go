package envoy_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
)

// Envoy's own log contains no key that a client has put into the path, in any spelling; a path
// without one is logged unchanged.
func TestTheLogOfPathsHoldsNoKey(t *testing.T) {
	p := startProxy(t, envoy.Config{}, bearer.Token{})
	key := p.key.Reveal()
	digits := strings.TrimPrefix(key, "wh")
	const short = "canary" // a key that was issued elsewhere and has another shape
	var hidden []string
	for _, before := range []string{
		"%3f", "%3F", ";", "&", "%3b", "%26", "/", "", "%253f", "%3Fa=1&", "%0a",
	} {
		for _, name := range []string{
			"api_key=", "api%5fkey=", "API_KEY=", "Api_Key=", "%61pi_key=", "api_key%3d", "api_key%3D", "api%255fkey%253d", "api%25255Fkey%25253D",
		} {
			hidden = append(hidden, before+name+key, before+name+short)
		}
		hidden = append(hidden, before+key, before+strings.ToUpper(key), before+digits, before+encoded(digits, "%"), before+encoded(digits, "%25"), before+encoded(digits, "%2525"))
	}
	for at := range len(key) { // Envoy refuses the path for its end, and logs it as it came
		hidden = append(hidden, "/"+key[:at]+encoded(key[at:at+1], "%")+key[at+1:]+"/%2f")
	}
	for _, secret := range hidden {
		p.statuses(t, "GET /api/v1/brands"+secret+" HTTP/1.1\r\nHost: api.example\r\n\r\n")
	}
	shown := []string{
		"/api/v1/brands", "/api/v1/brands/api_keys", "/api/v1/brands/my_api_key", "/api/v1/brands/0123456789abcdef0123456789abcdef", "/wh/x",
		"/api/v1/%E4%BD%A0%E5%A5%BD%E4%B8%96%E7%95%8C%E4%BD%A0%E5%A5%BD%E4%B8%96%E7%95%8C%E4%BD%A0%E5%A5%BD%E4%B8%96%E7%95%8C%E4%BD%A0%E5%A5%BD%E4%B8%96%E7%95%8C",
	}
	for _, path := range shown {
		p.statuses(t, "GET "+path+"?api_key="+key+" HTTP/1.1\r\nHost: api.example\r\n\r\n")
	}
	log, logged := p.pathLog()
	for range 4 { // a reader may decode it
		for _, secret := range []string{key, digits, short, "key=w"} {
			if at := strings.Index(strings.ToLower(log), secret); at >= 0 {
				t.Fatalf("the log holds a key:\n%.200s", strings.ReplaceAll(log[max(0, at-100):], digits, "DIGITS"))
			}
		}
		log = escape.ReplaceAllStringFunc(log, func(s string) string {
			decoded, _ := url.PathUnescape(s)
			return decoded
		})
	}
	for _, path := range append(shown, "/api/v1/brands%3f(masked)", "/api/v1/brands/(masked)", "/api/v1/brandswh(masked)") {
		if logged[path] == 0 {
			t.Errorf("the log has no %s", path)
		}
	}
}

// pathLog stops Envoy and returns its log, and how often it has each path.
func (p *proxy) pathLog() (log string, logged map[string]int) {
	p.Stop() // writes the rest of the log
	log, logged = p.Output(), map[string]int{}
	for _, line := range strings.Split(log, "\n") {
		var entry struct{ Path string }
		if json.Unmarshal([]byte(line), &entry) == nil {
			logged[entry.Path]++
		}
	}
	return log, logged
}

// Nor does it contain a key of another system. A path with its prefix within a word is logged
// unchanged. As many formats as there may be fit into Envoy's bounds.
func TestTheLogOfPathsHoldsNoKeyOfAnotherSystem(t *testing.T) {
	formats := []apikey.KeyFormat{{Prefix: "sk_live_", Pattern: "[0-9A-Za-z]{24}"}, {Prefix: "SG.", Pattern: "[0-9A-Za-z_.]{40}"}, {Prefix: "key-", Pattern: ".+"}}
	for len(formats) < apikey.MaxKeyFormats {
		formats = append(formats, apikey.KeyFormat{Prefix: fmt.Sprintf("prefix_%02d.%s", len(formats), strings.Repeat("x", 22)), Pattern: "[a-z]{20}"})
	}
	table, err := defaultTable(t).WithKeyFormats(formats)
	if err != nil {
		t.Fatal(err)
	}
	p := startProxyOf(t, envoy.Config{}, bearer.Token{}, table)
	const canary = "canarycanarycanary123456"
	for _, format := range []apikey.KeyFormat{formats[0], formats[1], formats[2], formats[len(formats)-1]} {
		for _, before := range []string{"/", "/x-", "%3F", "=", "/%2f", ";", "%3fapi_key=", "/%2F%3f"} {
			p.statuses(t, "GET /api/v1/brands"+before+format.Prefix+canary+" HTTP/1.1\r\nHost: api.example\r\n\r\n")
			p.statuses(t, "GET /api/v1/brands"+before+encoded(format.Prefix[:1], "%")+format.Prefix[1:]+canary+"/%2f HTTP/1.1\r\nHost: api.example\r\n\r\n")
		}
	}
	shown := []string{"/api/v1/brands", "/api/v1/monkey-business", "/api/v1/task_live_x", "/api/v1/SGX"}
	for _, path := range shown {
		p.statuses(t, "GET "+path+" HTTP/1.1\r\nHost: api.example\r\n\r\n")
	}
	log, logged := p.pathLog()
	if at := strings.Index(log, canary); at >= 0 {
		t.Errorf("the log holds a key: %.150s", log[max(0, at-100):])
	}
	for _, path := range append(shown, "/api/v1/brands/(masked)", "/api/v1/brands/x-(masked)") {
		if logged[path] == 0 {
			t.Errorf("the log has no %s: %v", path, logged)
		}
	}
}

var escape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// encoded returns a text with each of its bytes written as a number.
func encoded(text, percent string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		fmt.Fprintf(&b, "%s%02x", percent, c)
	}
	return b.String()
}
