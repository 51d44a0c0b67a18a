// Package contract has the requests that the tests of the contract send through every Envoy, with
// the outcome that the contract promises. It restates the rules and uses none of the product's
// code.
package contract

import (
	"fmt"
	"strings"
)

// Row is a request to a path that needs a key, with keys in any of the three places.
type Row struct {
	Name   string
	Target string
	Header []string // lines, "Name: value"
	User   string   // whose key decides; empty: the answer is 401
}

// Keys are the keys of the users ann and bob.
type Keys struct{ Ann, Bob string }

// place is the content of one of the three places.
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

// Places are all 125 combinations of three places in five states: X-API-Key, then Bearer, then
// ?api_key=. The first place that is not empty decides, even if its value is bad.
func Places(path string, keys Keys) (rows []Row) {
	values := map[place]string{malformed: "wh_nothex", goodA: keys.Ann, goodB: keys.Bob}
	users := map[place]string{goodA: "ann", goodB: "bob"}
	for header := range states {
		for bearer := range states {
			for query := range states {
				row := Row{Name: fmt.Sprintf("X-API-Key %v, Bearer %v, ?api_key= %v", header, bearer, query), Target: path + "?page=2"}
				if header != absent {
					row.Header = append(row.Header, "X-API-Key: "+values[header])
				}
				if bearer != absent {
					row.Header = append(row.Header, "Authorization: Bearer "+values[bearer])
				}
				if query != absent {
					row.Target += "&api_key=" + values[query]
				}
				for _, p := range []place{header, bearer, query} {
					if p != absent && p != empty {
						row.User = users[p]
						break
					}
				}
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// Authorization are forms of the header, each before a good key of bob in the query. The header
// counts only as Bearer, in any case, with one space and one token. Other schemes are left to the
// upstream, and the search continues. Anything else after Bearer decides and is bad.
func Authorization(path string, keys Keys) (rows []Row) {
	ann, bob := keys.Ann, keys.Bob
	add := func(user string, values ...string) {
		for _, value := range values {
			rows = append(rows, Row{
				Name: strings.NewReplacer(ann, "KEY", bob, "OTHER").Replace(value), Target: path + "?api_key=" + bob,
				Header: []string{"Authorization: " + value}, User: user,
			})
		}
	}
	for _, scheme := range casings("bearer") { // 64
		add("ann", scheme+" "+ann)
	}
	add("", // decides and is bad
		"Bearer  "+ann, "Bearer\t"+ann, "Bearer \t"+ann, "Bearer "+ann+" x", "Bearer x "+ann,
		"Bearer "+ann+"\tx", "Bearer "+strings.ToUpper(ann), "Bearer \""+ann+"\"", "Bearer "+ann+"=",
		"Bearer:"+ann, "Bearer="+ann, "Bearer/"+ann, "Bearer;"+ann, "Bearer ("+ann+")",
		"Bearer "+ann[:50], "Bearer "+ann+"0", "Bearer Bearer "+ann, "bearer bearer", "Bearer null",
		"Bearer "+ann+","+ann, "Bearer "+ann+", Bearer "+bob, "Basic x, Bearer "+ann, "Bearer a,b,c")
	add("bob", "", "Bearer", "bearer", "BEARER", "Bearer ", ", ,", "Bearer,")
	for _, scheme := range []string{
		"Basic", "Digest", "Negotiate", "NTLM", "Token", "ApiKey", "Api-Key", "Key", "OAuth", "HOBA", "Mutual",
		"DPoP", "GNAP", "PrivateToken", "vapid", "SCRAM-SHA-256", "AWS4-HMAC-SHA256", "Bearerx", "xBearer", "Bea",
		"Bearer-Token", "Bearer_", "Bearer.", "Bearer+", "Bearers", "Bear", "B", "Concealed", "Signature", "JWT",
	} {
		for _, cased := range []string{scheme, strings.ToLower(scheme), strings.ToUpper(scheme)} {
			add("bob", cased+" dXNlcjpwYXNz", cased)
		}
	}
	add("bob", ann, "wh_short", "Basic "+ann, `"Bearer" `+ann)
	// parameters separated by commas, and schemes joined by a proxy
	add("bob", `Digest username="u", realm="r"`, `Digest username="u",realm="r",nonce="n",uri="/",response="0"`, "Basic x, Basic y",
		"AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", `Signature keyId="bearer", signature="x="`, "Negotiate a, NTLM b")
	// a Bearer item with another one
	add("", `Digest username="u", Bearer `+ann, "Bearer "+ann+`, Digest username="u"`, "Negotiate a, bearer "+ann, "Bearer, Basic x")
	return rows
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

// Repeated are values that are repeated in the deciding place, up to so many times: two that are
// not blank are rejected in any form.
func Repeated(path, key string, most int) (rows []Row) {
	add := func(name, user, target string, header ...string) {
		rows = append(rows, Row{name, target, header, user})
	}
	for n := 2; n <= most; n++ {
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
	return rows
}

// IdentityHeaders are headers of a client that pretends to be somebody: lines with the value
// victim, in every spelling that some upstream takes for one of ours.
func IdentityHeaders() (lines []string) {
	for _, name := range []string{"user", "account", "plan", "key-id", "charge", "admin", "x"} {
		for _, spelling := range []string{
			"x-keyporter-" + name, "X-KEYPORTER-" + strings.ToUpper(name), "X-Keyporter-" + strings.ToUpper(name[:1]) + name[1:],
			"x.keyporter." + strings.ReplaceAll(name, "-", "."), "x-keyporter." + name, "x.keyporter-" + name,
			"x_keyporter_" + strings.ReplaceAll(name, "-", "_"), "x-keyporter_" + name,
			"x-keyporter!" + name, "x~keyporter~" + name, "x-keyporter+" + name, "X|Keyporter`" + name, "x#keyporter$" + name, "x'keyporter*" + name,
		} {
			lines = append(lines, spelling+": victim")
		}
	}
	return lines
}
