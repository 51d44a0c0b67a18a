package e2e_test

import (
	"fmt"
	"strings"
	"testing"
)

// place is the content of one of the three places in a row of the matrix.
type place int

const (
	absent place = iota
	empty
	malformed
	goodA
	goodB
	states
)

func (p place) String() string {
	return [...]string{"absent", "empty", "malformed", "good A", "good B"}[p]
}

// The first place that is not empty decides, even if its value is bad: X-API-Key, then Bearer, then
// ?api_key=. The test covers all 3 × 5 states through Envoy, and deliberately restates the rule
// without the product's code.
func TestTheFirstPlaceThatIsNotEmptyWins(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	keys := map[place]string{empty: "", malformed: "wh_nothex", goodA: s.user("ann", "pro"), goodB: s.user("bob", "pro")}
	users := map[place]string{goodA: "ann", goodB: "bob"}

	var requests []request
	var rows [][3]place
	for header := range states {
		for bearer := range states {
			for query := range states {
				r := request{target: "/api/v1/brands?page=2"}
				if header != absent {
					r.header = append(r.header, "X-API-Key: "+keys[header])
				}
				if bearer != absent {
					r.header = append(r.header, "Authorization: Bearer "+keys[bearer])
				}
				if query != absent {
					r.target += "&api_key=" + keys[query]
				}
				requests = append(requests, r)
				rows = append(rows, [3]place{header, bearer, query})
			}
		}
	}
	if len(requests) != 125 {
		t.Fatalf("%d requests, want 125", len(requests))
	}
	s.sendAll(requests, func(i int, o sent) {
		winner := absent
		for _, p := range rows[i] {
			if p != absent && p != empty {
				winner = p
				break
			}
		}
		o.mustBe(t, fmt.Sprint(rows[i]), users[winner])
	})
}

// mustBe judges an outcome: allowed as user, or denied with 401 if user is empty.
func (o sent) mustBe(t *testing.T, row, user string) {
	t.Helper()
	if user == "" {
		if o.status != 401 || o.body != bodies["unauthorized"] || o.arrived {
			t.Errorf("%s: %d %s, arrived: %v; want 401", row, o.status, o.body, o.arrived)
		}
		return
	}
	if o.status != 200 || !o.arrived {
		t.Errorf("%s: %d %s, want 200 for %s", row, o.status, o.body, user)
		return
	}
	if got := o.seen.header.Get("x-keyporter-user"); got != user {
		t.Errorf("%s: passed as %q, want %q", row, got, user)
	}
}

// Authorization counts only as Bearer, in any case, with one space and one token. Other schemes are
// left to the upstream, and the search continues. Anything else after Bearer decides and is bad.
func TestFormsOfAuthorization(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	ann, bob := s.user("ann", "pro"), s.user("bob", "pro")

	type row struct{ value, user string }
	var rows []row
	for _, scheme := range casings("bearer") { // 64
		rows = append(rows, row{scheme + " " + ann, "ann"})
	}
	for _, bad := range []string{ // "" decides and is bad
		"Bearer  " + ann, "Bearer\t" + ann, "Bearer \t" + ann, "Bearer " + ann + " x", "Bearer x " + ann,
		"Bearer " + ann + "\tx", "Bearer " + strings.ToUpper(ann), "Bearer \"" + ann + "\"", "Bearer " + ann + "=",
		"Bearer:" + ann, "Bearer=" + ann, "Bearer/" + ann, "Bearer;" + ann, "Bearer (" + ann + ")",
		"Bearer " + ann[:50], "Bearer " + ann + "0", "Bearer Bearer " + ann, "bearer bearer", "Bearer null",
		"Bearer " + ann + "," + ann, "Bearer " + ann + ", Bearer " + bob, "Basic x, Bearer " + ann, "Bearer a,b,c",
	} {
		rows = append(rows, row{bad, ""})
	}
	for _, ignored := range []string{"", "Bearer", "bearer", "BEARER", "Bearer ", ", ,", "Bearer,"} {
		rows = append(rows, row{ignored, "bob"})
	}
	for _, scheme := range []string{
		"Basic", "Digest", "Negotiate", "NTLM", "Token", "ApiKey", "Api-Key", "Key", "OAuth", "HOBA", "Mutual",
		"DPoP", "GNAP", "PrivateToken", "vapid", "SCRAM-SHA-256", "AWS4-HMAC-SHA256", "Bearerx", "xBearer", "Bea",
		"Bearer-Token", "Bearer_", "Bearer.", "Bearer+", "Bearers", "Bear", "B", "Concealed", "Signature", "JWT",
	} {
		for _, cased := range []string{scheme, strings.ToLower(scheme), strings.ToUpper(scheme)} {
			rows = append(rows, row{cased + " dXNlcjpwYXNz", "bob"}, row{cased, "bob"})
		}
	}
	rows = append(rows, row{ann, "bob"}, row{"wh_short", "bob"}, row{"Basic " + ann, "bob"}, row{`"Bearer" ` + ann, "bob"})
	// parameters separated by commas, and schemes joined by a proxy
	for _, several := range []string{
		`Digest username="u", realm="r"`, `Digest username="u",realm="r",nonce="n",uri="/",response="0"`, "Basic x, Basic y",
		"AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", `Signature keyId="bearer", signature="x="`, "Negotiate a, NTLM b",
	} {
		rows = append(rows, row{several, "bob"})
	}
	for _, mixed := range []string{ // a Bearer item with another one
		`Digest username="u", Bearer ` + ann, "Bearer " + ann + `, Digest username="u"`, "Negotiate a, bearer " + ann, "Bearer, Basic x",
	} {
		rows = append(rows, row{mixed, ""})
	}
	if len(rows) < 200 {
		t.Fatalf("%d forms, want 200 and more", len(rows))
	}

	var requests []request
	for _, row := range rows { // the next place holds bob's key
		requests = append(requests, request{target: "/api/v1/brands?api_key=" + bob, header: []string{"Authorization: " + row.value}})
	}
	s.sendAll(requests, func(i int, o sent) {
		o.mustBe(t, strings.ReplaceAll(rows[i].value, ann, "KEY"), rows[i].user)
		for _, value := range o.seen.header.Values("authorization") {
			if strings.Contains(value, ann) {
				t.Errorf("%q reached the upstream", "Authorization: "+strings.ReplaceAll(value, ann, "KEY"))
			}
		}
	})
}

// casings returns every spelling of an ASCII word in upper and lower case.
func casings(word string) []string {
	all := []string{""}
	for _, c := range word {
		var longer []string
		for _, s := range all {
			longer = append(longer, s+strings.ToLower(string(c)), s+strings.ToUpper(string(c)))
		}
		all = longer
	}
	return all
}

// Two values in the deciding place are rejected in any form; blanks do not count.
func TestRepeatedValuesAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	type row struct {
		name string
		request
		user string
	}
	var rows []row
	add := func(name, user, target string, header ...string) {
		rows = append(rows, row{name, request{target: target, header: header}, user})
	}
	const path = "/api/v1/brands"
	for n := 2; n <= 50; n++ {
		header := strings.Split(strings.Repeat("X-API-Key: "+key+"\n", n), "\n")[:n]
		add(fmt.Sprintf("X-API-Key %d times", n), "", path, header...)
		bearer := strings.Split(strings.Repeat("Authorization: Bearer "+key+"\n", n), "\n")[:n]
		add(fmt.Sprintf("Authorization %d times", n), "", path, bearer...)
		add(fmt.Sprintf("api_key %d times", n), "", path+"?"+strings.Repeat("api_key="+key+"&", n))
		add(fmt.Sprintf("%d keys joined by commas", n), "", path, "X-API-Key: "+strings.Repeat(key+",", n))
		add(fmt.Sprintf("one key among %d commas", n), "ann", path, "X-API-Key: "+strings.Repeat(" ,", n)+key)
	}
	add("an empty header, then the key", "ann", path, "X-API-Key:", "X-API-Key: "+key)
	add("the key, then an empty header", "ann", path, "X-API-Key: "+key, "X-API-Key: ")
	add("blanks around the key", "ann", path, "X-API-Key: \t "+key+" \t")
	add("the name in lower case", "ann", path, "x-api-key: "+key)
	add("the name in upper case", "ann", path, "X-API-KEY: "+key)
	add("an empty parameter, then the key", "ann", path+"?api_key=&api_key="+key)
	add("a blank parameter, then the key", "ann", path+"?api_key=%20%09&api_key="+key)
	add("a parameter without '='", "ann", path+"?api_key&api_key="+key)
	add("a bad header twice, a good query", "", path+"?api_key="+key, "X-API-Key: a", "X-API-Key: b")

	var requests []request
	for _, row := range rows {
		requests = append(requests, row.request)
	}
	s.sendAll(requests, func(i int, o sent) { o.mustBe(t, rows[i].name, rows[i].user) })
}

// A query name that only becomes api_key by decoding is rejected: no spelling authenticates, and no
// spelling reaches the upstream with the key in it. Values are decoded.
func TestSpellingsOfTheQueryName(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{})
	key := s.user("ann", "pro")
	var requests []request
	for _, name := range spellings("api_key") {
		requests = append(requests,
			request{target: "/api/v1/brands?" + name + "=" + key},
			request{target: "/api/v1/brands?" + name + "=" + key, header: []string{"X-API-Key: " + key}},
			request{target: "/api/v1/brands?a=1;" + name + "=" + key, header: []string{"X-API-Key: " + key}})
	}
	s.sendAll(requests, func(_ int, o sent) {
		if o.status != 400 || o.arrived || !strings.Contains(o.body, bodies["bad_request"]) {
			t.Errorf("%s: %d %s, arrived: %v; want 400", strings.ReplaceAll(o.target, key, "KEY"), o.status, o.body, o.arrived)
		}
	})
	t.Logf("%d requests", len(requests))
	encoded := "%77%68%5F" + key[3:]
	s.sendAll([]request{{target: "/api/v1/brands?api_key=" + encoded}}, func(_ int, o sent) { o.mustBe(t, "encoded value", "ann") })
}

// spellings returns all forms of a name with at least one percent-encoded byte, in three cases of
// the hexadecimal digits.
func spellings(name string) []string {
	var all []string
	for mask := 1; mask < 1<<len(name); mask++ {
		for _, digits := range []string{"%%%02x", "%%%02X", "mixed"} {
			var b strings.Builder
			for i := range len(name) {
				switch {
				case mask>>i&1 == 0:
					b.WriteByte(name[i])
				case digits == "mixed" && i%2 == 0:
					fmt.Fprintf(&b, "%%%02x", name[i])
				case digits == "mixed":
					fmt.Fprintf(&b, "%%%02X", name[i])
				default:
					fmt.Fprintf(&b, digits, name[i])
				}
			}
			all = append(all, b.String())
		}
	}
	return all
}
