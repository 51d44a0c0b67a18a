package bearer

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Scope is a permission of a named token.
type Scope string

// The scopes. None includes another one.
const (
	Read    Scope = "read"    // see everything but secrets
	Write   Scope = "write"   // change plans, accounts and users
	Keys    Scope = "keys"    // make, replace and revoke what opens something for a user
	Credits Scope = "credits" // grant credits
	Verify  Scope = "verify"  // ask what a key is
	Charge  Scope = "charge"  // let a verification count like a request
)

// Scopes returns all scopes.
func Scopes() []Scope { return []Scope{Read, Write, Keys, Credits, Verify, Charge} }

// Caller is the bearer of a named token. The zero Caller may do nothing.
type Caller struct {
	Name   string
	Scopes []Scope
	Rate   int // requests per second
}

// May reports whether the caller has a scope.
func (c Caller) May(s Scope) bool { return slices.Contains(c.Scopes, s) }

// Named are the tokens of several callers, by their SHA-256, and the names in their certificates.
// The zero Named opens to nobody. It is safe for concurrent use.
type Named struct{ tokens, certified []namedToken }

type namedToken struct {
	digest [sha256.Size]byte
	san    string // in place of a token: a DNS name in lower case, or a SPIFFE ID
	caller Caller
}

// The bounds of a file with named tokens.
const (
	maxNamed    = 1000
	defaultRate = 100
	maxRate     = 100_000
)

var callerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// sanForm matches what a certificate can be for: a DNS name, or a SPIFFE ID.
var sanForm = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*)$`)

// ParseNamed reads named tokens. Each line is `NAME: SHA256 SCOPE…`, with the hexadecimal digest of
// the token and perhaps a word rate=N, the requests per second; or `NAME: san=SAN SCOPE…`, with a
// DNS name or a SPIFFE ID in the caller's certificate. Empty lines and those that begin
// with # mean nothing. A name with several lines is one caller with several tokens, as during a
// replacement. Without any line nobody is a caller. The error names the line, and nothing of it.
func ParseNamed(text string) (all Named, err error) {
	var problems []error
	number := 0
	for line := range strings.Lines(text) {
		number++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		token, err := parseNamed(line)
		if err == nil && all.has(token) {
			err = errors.New("an earlier line has the same SHA-256 or name of a certificate")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("line %d: %w", number, err))
			continue
		}
		if token.san != "" {
			all.certified = append(all.certified, token)
		} else {
			all.tokens = append(all.tokens, token)
		}
	}
	if len(all.tokens)+len(all.certified) > maxNamed {
		problems = append(problems, fmt.Errorf("there are more than %d tokens in it", maxNamed))
	}
	if err := errors.Join(problems...); err != nil {
		return Named{}, err
	}
	return all, nil
}

func parseNamed(line string) (t namedToken, err error) {
	name, rest, _ := strings.Cut(line, ":")
	words := strings.Fields(rest)
	if !callerName.MatchString(name) || len(words) < 2 {
		return t, errors.New("want NAME: SHA256 SCOPE…, with a name of 1 to 64 letters, digits and ._-")
	}
	if san, certified := strings.CutPrefix(words[0], "san="); certified {
		if t.san = san; !sanForm.MatchString(san) {
			return t, errors.New("want san= and a DNS name or a SPIFFE ID, without *")
		}
		if !strings.HasPrefix(san, "spiffe:") {
			t.san = strings.ToLower(san)
		}
	} else if digest, err := hex.DecodeString(words[0]); err == nil && len(digest) == sha256.Size {
		t.digest = [sha256.Size]byte(digest)
	} else {
		return t, errors.New("the SHA-256 of a token has 64 hexadecimal digits, as `printf %s TOKEN | sha256sum` prints them")
	}
	t.caller = Caller{Name: name, Rate: defaultRate}
	for _, word := range words[1:] {
		if n, found := strings.CutPrefix(word, "rate="); found {
			if t.caller.Rate, err = strconv.Atoi(n); err != nil || t.caller.Rate < 1 || t.caller.Rate > maxRate {
				return t, fmt.Errorf("want rate=N, 1 to %d requests per second", maxRate)
			}
			continue
		}
		scope := Scope(word)
		if !slices.Contains(Scopes(), scope) || t.caller.May(scope) {
			return t, fmt.Errorf("want each scope once, of %v", Scopes())
		}
		t.caller.Scopes = append(t.caller.Scopes, scope)
	}
	if len(t.caller.Scopes) == 0 {
		return t, fmt.Errorf("want a scope, of %v", Scopes())
	}
	return t, nil
}

func (n Named) has(other namedToken) bool {
	of := n.tokens
	if other.san != "" {
		of = n.certified
	}
	return slices.ContainsFunc(of, func(t namedToken) bool { return t.digest == other.digest && t.san == other.san })
}

// Certifies reports whether a caller may show a certificate in place of a token.
func (n Named) Certifies() bool { return len(n.certified) > 0 }

// Certified returns the caller with a certificate for these names: DNS names in lower case, and a
// SPIFFE ID. A certificate for several callers is that of nobody.
func (n Named) Certified(names []string) (caller Caller, known bool) {
	for _, t := range n.certified {
		if !slices.Contains(names, t.san) {
			continue
		}
		if known && caller.Name != t.caller.Name {
			return Caller{}, false
		}
		if !known {
			caller, known = t.caller, true
		}
	}
	return caller, known
}

// Caller returns the bearer of the one authorization value of a call. Its timing depends on neither
// the token nor the one that it is.
func (n Named) Caller(authorization []string) (caller Caller, known bool) {
	if len(authorization) != 1 {
		return Caller{}, false
	}
	token, isBearer := strings.CutPrefix(authorization[0], "Bearer ")
	if !isBearer || !tokenForm.MatchString(token) {
		return Caller{}, false
	}
	digest, found := sha256.Sum256([]byte(token)), -1
	for i := range n.tokens {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(digest[:], n.tokens[i].digest[:]), i, found)
	}
	if found < 0 {
		return Caller{}, false
	}
	return n.tokens[found].caller, true
}
