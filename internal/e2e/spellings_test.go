package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/keyporter/keyporter/internal/contract"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// respelled are metered paths of the shipped table. Paths that only resemble one of them match
// another rule, often one that a session opens.
var respelled = []string{"/api/adlibrary", "/api/v1/brands", "/api/v1/tiktok-shop/products"}

var (
	// slashes are texts that some programs read as a slash.
	slashes = []string{"%2F", "%5C", "\\", "//", "/./", "/x/../", "%EF%BC%8F", "%E2%88%95"}
	// lookAlikes are other letters that some programs treat as equal.
	lookAlikes = map[rune][]rune{'i': {'ı', 'İ'}, 's': {'ſ'}, 'k': {'\u212a'}}
)

// spell returns other spellings of a path, each with and without a final slash: all of those with
// one change, and some with several.
func spell(path string, random *rand.Rand) (all []string) {
	letters, tails := spellLetters(path), slices.Concat(contract.Loose, contract.Unseen, contract.Odd, contract.Suffixes)
	for range 100 {
		all = append(all, one(random, letters)+one(random, tails), one(random, letters)+one(random, tails)+one(random, tails))
	}
	all = slices.Concat(all, letters, spellSegments(path), []string{strings.ToUpper(path)})
	for _, s := range all {
		all = append(all, s+"/")
	}
	for _, s := range letters {
		all = append(all, s+"/7", s+"?page=2")
	}
	return append(all, path+"/")
}

func one[T any](random *rand.Rand, of []T) T { return of[random.IntN(len(of))] }

// spellLetters returns a path with each of its letters in another case, another form, or encoded.
func spellLetters(path string) (all []string) {
	for i, r := range path {
		if !unicode.IsLetter(r) {
			continue
		}
		for _, other := range append(lookAlikes[r], unicode.ToUpper(r), r-'a'+'ａ', r-'a'+'Ａ', r-'a'+'ⓐ', r-'a'+'𝐚') {
			all = append(all, path[:i]+url.PathEscape(string(other))+path[i+1:])
		}
		all = append(all, fmt.Sprintf("%s%%%02X%s", path[:i], r, path[i+1:]), fmt.Sprintf("%s%%25%02X%s", path[:i], r, path[i+1:]))
	}
	return all
}

// spellSegments returns a path with an addition beside or within each of its segments, or in place
// of a slash.
func spellSegments(path string) (all []string) {
	segments := strings.Split(path[1:], "/")
	for i, segment := range segments {
		with := func(before, other string) {
			all = append(all, strings.TrimSuffix("/"+strings.Join(segments[:i], "/"), "/")+before+strings.Join(append([]string{other}, segments[i+1:]...), "/"))
		}
		for _, mark := range slices.Concat(contract.Loose, contract.Unseen, contract.Odd) {
			with("/", segment+mark)
			with("/", mark+segment)
			with("/", segment[:1]+mark+segment[1:])
		}
		for _, suffix := range contract.Suffixes {
			with("/", segment+suffix)
		}
		for _, slash := range slashes {
			with(slash, segment)
		}
	}
	return all
}

// No spelling of a metered path runs its handler without a charged key, however the upstream reads
// the path: Express ignores case, the Django REST framework strips extensions. A session opens
// everything else.
func TestNoSpellingRunsAMeteredHandlerForFree(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	upstreams := map[string]string{
		"Express":               partstest.Express(t, "testdata/express.cjs", respelled...),
		"Django REST framework": partstest.Django(t, "testdata/restframework.py", respelled...),
	}
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	s.user("eve", "none", "--api-access=false")
	session := "Cookie: " + s.session("eve")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var targets []string
	for _, path := range respelled {
		targets = append(targets, spell(path, random)...)
	}
	for name, upstream := range upstreams {
		t.Run(name, func(t *testing.T) {
			user := strings.ToLower(name[:3])
			key := "X-API-Key: " + s.user(user, "metered", "--credits", "1000000")
			s.startEnvoyTo(t, upstream)
			for _, path := range respelled {
				if a := s.send(request{target: path + "/", header: []string{key}}); a.status != 200 || !strings.Contains(a.body, "metered") {
					t.Errorf("%s/ with a key: %d %s", path, a.status, a.body)
				}
			}
			s.balanceBecomes(user, int64(len(respelled)), 0)
			requests := make([]request, len(targets))
			for i, target := range targets {
				requests[i] = request{target: target, header: []string{session, key}}
			}
			var statuses tally
			s.sendAll(requests, func(_ int, o sent) {
				statuses.add(o.status)
				if strings.Contains(o.body, "metered") && o.answer.header.Get("X-Credits-Remaining") == "" {
					t.Errorf("%s has run for free", o.target)
				}
			})
			t.Logf("%d spellings, answered %v", len(targets), statuses.of)
		})
	}
}

// tally counts answers by their status.
type tally struct {
	mu sync.Mutex
	of map[int]int // guarded by mu; status → answers
}

func (c *tally) add(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[int]int{}
	}
	c.of[status]++
}
