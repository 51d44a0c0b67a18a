package authz_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/authz"
)

const api = "/api/v1/brands"

func header(values ...string) authz.Request {
	return authz.Request{Method: "GET", Path: api, APIKey: values}
}

func authorization(values ...string) authz.Request {
	return authz.Request{Method: "GET", Path: api, Authorization: values}
}

func query(s string) authz.Request { return authz.Request{Method: "GET", Path: api + "?" + s} }

// The order is X-API-Key, then Bearer, then ?api_key=. The first place that is not empty wins, even
// if its value is bad. The test covers all combinations of values in the three places.
func TestTheFirstPlaceThatIsNotEmptyWins(t *testing.T) {
	w := newWorld(t)
	type state struct {
		name  string
		value []string // of the parameter and the headers; the test adds the scheme
		want  authz.Reason
		user  string
	}
	const empty = authz.MissingKey
	states := []state{
		{"absent", nil, empty, ""},
		{"empty", []string{""}, empty, ""},
		{"blank", []string{"  "}, empty, ""},
		{"malformed", []string{"canary"}, authz.MalformedKey, ""},
		{"forged", []string{w.forged}, authz.ForgedKey, ""},
		{"unknown", []string{w.unknown}, authz.UnknownKey, ""},
		{"two", []string{w.ada, w.bob}, authz.AmbiguousKey, ""},
		{"of ada", []string{w.ada}, authz.Allowed, "ada"},
		{"of bob", []string{w.bob}, authz.Allowed, "bob"},
	}
	places := []authz.Place{authz.PlaceHeader, authz.PlaceBearer, authz.PlaceQuery}
	for _, h := range states {
		for _, b := range states {
			for _, q := range states {
				r := header(h.value...)
				for _, value := range b.value {
					r.Authorization = append(r.Authorization, strings.TrimRight("Bearer "+value, " "))
				}
				r.Path += "?page=2"
				for _, value := range q.value {
					r.Path += "&api_key=" + strings.ReplaceAll(value, " ", "%20")
				}
				place, want := authz.PlaceNone, state{want: empty}
				for i, s := range []state{h, b, q} {
					if s.want != empty {
						place, want = places[i], s
						break
					}
				}
				row := fmt.Sprintf("header %s, bearer %s, query %s", h.name, b.name, q.name)
				if d := w.expect(t, row, r, want.want); d.Place != place || d.Principal.User != want.user {
					t.Errorf("%s: %q found in %v, want %q in %v", row, d.Principal.User, d.Place, want.user, place)
				}
			}
		}
	}
}

// Each form of an Authorization header is ignored or wins. If it is ignored, the search goes on to
// the query, which holds ada's key. A bad value that wins ends the search.
func TestFormsOfAuthorization(t *testing.T) {
	w := newWorld(t)
	type row struct {
		value string
		want  authz.Reason
		place authz.Place
	}
	opens := func(value string) row { return row{value, authz.Allowed, authz.PlaceBearer} }
	ignored := func(value string) row { return row{value, authz.Allowed, authz.PlaceQuery} }
	bad := func(value string, why authz.Reason) row { return row{value, why, authz.PlaceBearer} }
	rows := []row{
		opens("Bearer " + w.bob),
		opens(" Bearer " + w.bob + "\t"),
		opens("Bearer " + w.bob + ","),
		opens(", ,Bearer " + w.bob),

		ignored(""), ignored(" \t"), ignored(","), ignored(" , ,"),
		ignored("Bearer"), ignored("bearer"), ignored("BEARER"), ignored("Bearer "), ignored("Bearer,"), ignored("Bearer \t "),
		ignored("Basic dXNlcjpwYXNz"), ignored("Basic " + w.bob), ignored("Digest x"), ignored("Negotiate"), ignored("Token " + w.bob),
		ignored("Bearers " + w.bob), ignored("Bear " + w.bob), ignored("xBearer " + w.bob), ignored("Bearer-x " + w.bob), ignored("Bearer_ x"),
		ignored(w.bob), ignored("canary"), ignored(`"Bearer" ` + w.bob), ignored("(Bearer) " + w.bob), ignored("=" + w.bob),

		bad("Bearer  "+w.bob, authz.MalformedKey), // two spaces
		bad("Bearer\t"+w.bob, authz.MalformedKey),
		bad("Bearer \t"+w.bob, authz.MalformedKey),
		bad("Bearer "+w.bob+" x", authz.MalformedKey),
		bad("Bearer x "+w.bob, authz.MalformedKey),
		bad("Bearer Bearer "+w.bob, authz.MalformedKey),
		bad("Bearer:"+w.bob, authz.MalformedKey),
		bad("Bearer=", authz.MalformedKey),
		bad("Bearer/"+w.bob, authz.MalformedKey),
		bad("Bearer\x00"+w.bob, authz.MalformedKey),
		bad("Bearer\xa0"+w.bob, authz.MalformedKey),
		bad(`Bearer "`+w.bob+`"`, authz.MalformedKey),
		bad("Bearer canary", authz.MalformedKey),
		bad("Bearer "+strings.ToUpper(w.bob), authz.MalformedKey),
		bad("Bearer "+w.bob+"\x00", authz.MalformedKey),
		bad("Bearer "+w.forged, authz.ForgedKey),
		bad("Bearer "+w.unknown, authz.UnknownKey),
		bad("Bearer "+w.bob+","+w.bob, authz.AmbiguousKey),
		bad("Bearer "+w.bob+", Bearer "+w.bob, authz.AmbiguousKey),
		bad("Basic x, Bearer "+w.bob, authz.AmbiguousKey),
		bad("Bearer a,b", authz.AmbiguousKey),
		bad("Bearer, Basic x", authz.AmbiguousKey),
		bad(`Digest username="u", realm="r", Bearer `+w.bob, authz.AmbiguousKey),
		ignored(`Digest username="u", realm="r"`), // with or without commas
		ignored(`Signature keyId="bearer",algorithm="hmac-sha256",signature="x="`),
		ignored("AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host;date, Signature=c"),
		ignored("Basic a, Basic b"),
		ignored("wh_short, x"),
	}
	for n := range 1 << len("bearer") { // all casings
		scheme := []byte("bearer")
		for i := range scheme {
			if n>>i&1 == 1 {
				scheme[i] -= 'a' - 'A'
			}
		}
		rows = append(rows, opens(string(scheme)+" "+w.bob), ignored(string(scheme)))
	}
	for _, row := range rows {
		r := authorization(row.value)
		r.Path += "?api_key=" + w.ada
		d := w.expect(t, fmt.Sprintf("%q", row.value), r, row.want)
		if d.Place != row.place {
			t.Errorf("%q: found in %v, want %v", row.value, d.Place, row.place)
		}
		if user := map[authz.Place]string{authz.PlaceBearer: "bob", authz.PlaceQuery: "ada"}[row.place]; d.Allowed() && d.Principal.User != user {
			t.Errorf("%q: opened for %q", row.value, d.Principal.User)
		}
	}
}

// All values of x-api-key count, split at commas, without the blank ones: a proxy may have joined
// them.
func TestCommasAndBlanksInHeaders(t *testing.T) {
	w := newWorld(t)
	for _, row := range []struct {
		values []string
		want   authz.Reason
	}{
		{[]string{w.ada}, authz.Allowed},
		{[]string{" " + w.ada + "\t"}, authz.Allowed},
		{[]string{w.ada + ","}, authz.Allowed},
		{[]string{"," + w.ada}, authz.Allowed},
		{[]string{", \t," + w.ada + " , ,"}, authz.Allowed},
		{[]string{"", w.ada}, authz.Allowed},
		{[]string{w.ada, ""}, authz.Allowed},
		{[]string{" ", ",", w.ada, "\t"}, authz.Allowed},

		{nil, authz.MissingKey},
		{[]string{""}, authz.MissingKey},
		{[]string{"", " ", "\t", ","}, authz.MissingKey},
		{[]string{" , ,, "}, authz.MissingKey},

		{[]string{w.ada, w.bob}, authz.AmbiguousKey},
		{[]string{w.ada, w.ada}, authz.AmbiguousKey},
		{[]string{w.ada + "," + w.ada}, authz.AmbiguousKey},
		{[]string{w.ada + ", canary"}, authz.AmbiguousKey},
		{[]string{"canary", w.ada}, authz.AmbiguousKey},
		{strings.Split(strings.Repeat(w.ada+" ", 50), " "), authz.AmbiguousKey},

		{[]string{"canary"}, authz.MalformedKey},
		{[]string{w.ada + " " + w.ada}, authz.MalformedKey},
		{[]string{w.ada + ";" + w.ada}, authz.MalformedKey},
		{[]string{`"` + w.ada + `"`}, authz.MalformedKey},
		{[]string{"Bearer " + w.ada}, authz.MalformedKey},
		{[]string{"\u00a0" + w.ada}, authz.MalformedKey}, // a blank to some programs, but not here
		{[]string{"\v" + w.ada}, authz.MalformedKey},
		{[]string{w.session}, authz.MalformedKey},
		{[]string{w.forged}, authz.ForgedKey},
		{[]string{w.unknown}, authz.UnknownKey},
	} {
		w.expect(t, fmt.Sprintf("%q", row.values), header(row.values...), row.want)
	}
}

// Repeated header lines are decided like the same lines joined by a proxy.
func TestJoinedHeadersAreDecidedLikeSeparateOnes(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.SampledFrom([]string{
			"", " ", "\t", "canary", w.ada, w.bob, " " + w.ada, w.forged, "Bearer", "Bearer " + w.ada, "bearer  x", "Basic x", w.ada + ",", ",",
		}), 0, 4).Draw(t, "values")
		separator := rapid.SampledFrom([]string{",", ", ", " ,\t"}).Draw(t, "separator")
		for _, request := range []func(...string) authz.Request{header, authorization} {
			apart, err := w.decide(t, request(values...))
			if err != nil {
				t.Fatal(err)
			}
			joined := w.expect(t, fmt.Sprintf("%q", values), request(strings.Join(values, separator)), apart.Reason)
			if joined.Principal != apart.Principal || joined.Place != apart.Place {
				t.Errorf("%q: %+v apart, %+v joined", values, apart, joined)
			}
		}
	})
}

// The value of ?api_key= is percent-decoded. Several non-empty values are refused.
func TestTheKeyInTheQuery(t *testing.T) {
	w := newWorld(t)
	encoded := ""
	for _, c := range []byte(w.ada) {
		encoded += fmt.Sprintf("%%%02x", c)
	}
	for _, row := range []struct {
		query string
		want  authz.Reason
	}{
		{"api_key=" + w.ada, authz.Allowed},
		{"a=1&api_key=" + w.ada + "&b=2", authz.Allowed},
		{"api_key=" + encoded, authz.Allowed},
		{"api_key=" + strings.ToUpper(encoded), authz.Allowed},
		{"api_key=" + strings.Replace(w.ada, "_", "%5F", 1), authz.Allowed},
		{"api_key=&api_key=" + w.ada, authz.Allowed},
		{"api_key&api_key=" + w.ada, authz.Allowed},
		{"api_key=%20%09&api_key=" + w.ada, authz.Allowed},

		{"", authz.MissingKey},
		{"api_key", authz.MissingKey},
		{"api_key=", authz.MissingKey},
		{"api_key=%20", authz.MissingKey},
		{"api_key=&api_key=&api_key", authz.MissingKey},
		{"API_KEY=" + w.ada, authz.MissingKey},
		{"api-key=" + w.ada, authz.MissingKey},
		{"apikey=" + w.ada, authz.MissingKey},
		{"xapi_key=" + w.ada, authz.MissingKey},
		{"api_keyx=" + w.ada, authz.MissingKey},
		{"api_key[]=" + w.ada, authz.MissingKey},
		{"?api_key=" + w.ada, authz.MissingKey},
		{"x=api_key=" + w.ada, authz.MissingKey},
		{"api%255Fkey=" + w.ada, authz.MissingKey}, // encoded twice decodes to api%5Fkey

		{"api_key=" + w.ada + "&api_key=" + w.ada, authz.AmbiguousKey},
		{"api_key=" + w.ada + "&x=1&api_key=canary", authz.AmbiguousKey},

		{"api_key=canary", authz.MalformedKey},
		{"api_key=" + w.ada + "+", authz.MalformedKey},
		{"api_key=+" + w.ada, authz.MalformedKey},
		{"api_key=+", authz.MalformedKey}, // a plus, not a blank
		{"api_key=+%20", authz.MalformedKey},
		{"api_key=%20" + w.ada, authz.MalformedKey},
		{"api_key=" + w.ada + ";x=1", authz.MalformedKey},
		{"api_key=" + w.ada + ",", authz.MalformedKey},
		{"api_key==" + w.ada, authz.MalformedKey},
		{"api_key=" + w.ada + "%", authz.MalformedKey},
		{"api_key=%zz", authz.MalformedKey},
		{"api_key=" + strings.ReplaceAll(encoded, "%", "%25"), authz.MalformedKey}, // encoded twice
		{"api_key=" + w.ada + "%00", authz.MalformedKey},
		{"api_key=" + w.forged, authz.ForgedKey},
		{"api_key=" + w.unknown, authz.UnknownKey},

		{"api_key=" + w.ada + "#", authz.BadQuery},
		{"api_key= " + w.ada, authz.BadQuery},
		{"api_key=" + w.ada + "\n", authz.BadQuery},
		{"api_key=" + w.ada + "\x00", authz.BadQuery},
		{"api_key=" + w.ada + "\x7f", authz.BadQuery},

		{"x=1;api_key=" + w.ada, authz.DisguisedKey},
		{"api_key;x=" + w.ada, authz.DisguisedKey},
		{";api_key=" + w.ada, authz.DisguisedKey},
		{"a=1&amp;api_key=" + w.ada, authz.DisguisedKey},
		{"api_key=" + w.ada + "&x;api%5fkey=1", authz.DisguisedKey},
	} {
		if d := w.expect(t, row.query, query(row.query), row.want); d.Allowed() && strings.Contains(d.Rewrite.Path, "api_key") {
			t.Errorf("%s: the upstream would see %s", row.query, d.Rewrite.Path)
		}
	}
}

// A name that becomes api_key only when decoded is refused on every kind of route, in all 2⁷
// spellings and both cases of the digits: the upstream would read a key that was neither checked
// nor removed.
func TestEveryPercentEncodingOfAPIKeyIsRefused(t *testing.T) {
	w := newWorld(t, append(defaultRules(t), authz.Rule{Path: "/open", Kind: authz.KindPublic})...)
	const name = "api_key"
	spellings := 0
	for n := 1; n < 1<<len(name); n++ {
		for _, verb := range []string{"%%%02x", "%%%02X"} {
			disguise := ""
			for i, c := range []byte(name) {
				if n>>i&1 == 1 {
					disguise += fmt.Sprintf(verb, c)
				} else {
					disguise += string(c)
				}
			}
			spellings++
			for _, path := range []string{api, "/open", "/api", "/api/-/login", "/nowhere"} {
				for _, rest := range []string{"=" + w.ada, "=", "", "=" + w.ada + "&a=1", "&api_key=" + w.ada} {
					for _, before := range []string{"", "a=1&", "&", "api_key=" + w.ada + "&", "a;"} {
						r := authz.Request{Method: "GET", Path: path + "?" + before + disguise + rest, APIKey: []string{w.ada}}
						w.expect(t, r.Path, r, authz.DisguisedKey)
					}
				}
			}
		}
	}
	if spellings != 254 || w.finds+w.sessions != 0 {
		t.Errorf("%d spellings, %d look-ups", spellings, w.finds+w.sessions)
	}
	w.expect(t, "the name itself", query(name+"="+w.ada), authz.Allowed)
}
