package apikey

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
)

const (
	randomSize = 20 // bytes from the operating system's generator
	tagSize    = 4  // bytes of the keyed tag
	hexSize    = 2 * (randomSize + tagSize)

	// MaxPrefix is the longest prefix of a key, in bytes.
	MaxPrefix = 16
	// MinSecret is the shortest tag secret, in bytes.
	MinSecret = 16
	// DefaultPrefix is the prefix of keys unless the operator chooses another.
	DefaultPrefix = "wh_"
	// SessionPrefix is the prefix of session secrets, which have the form of a key.
	SessionPrefix = "ks_"
	// LinkPrefix is the prefix of login link secrets, which have the form of a key.
	LinkPrefix = "kl_"
)

// Parse returns these errors for a value that is not a key. Neither case costs a look-up.
var (
	ErrMalformed = errors.New("apikey: not of the shape of a key")
	ErrWrongTag  = errors.New("apikey: the tag is wrong")
)

// Format generates and parses keys. A key is a prefix and 48 lower-case hexadecimal digits: 20
// random bytes and a 4-byte tag, the truncated HMAC-SHA-256 of these bytes. Without the secret,
// only one guess in 2³² passes, so a flood of random keys costs no look-ups.
//
// A Format is immutable and safe for concurrent use.
type Format struct {
	prefix string
	tags   []*tagger // the first makes new tags; all are accepted
}

// FormatConfig configures a [Format].
type FormatConfig struct {
	// Prefix begins every key; empty means [DefaultPrefix]. It has at most [MaxPrefix] bytes of
	// letters, digits, '_' and '-', so that a key needs no quoting anywhere.
	Prefix string
	// Secrets authenticate the tags: at least one, each of at least [MinSecret] bytes. The first
	// makes new tags and all are accepted. To rotate a secret, put the new one first.
	Secrets [][]byte
}

// NewFormat returns the Format that c describes, or an error if c is invalid.
func NewFormat(c FormatConfig) (*Format, error) {
	f := &Format{prefix: c.Prefix}
	if f.prefix == "" {
		f.prefix = DefaultPrefix
	}
	if err := CheckPrefix(f.prefix); err != nil {
		return nil, err
	}
	if len(c.Secrets) == 0 {
		return nil, errors.New("apikey: no tag secret")
	}
	for _, secret := range c.Secrets {
		if len(secret) < MinSecret {
			return nil, fmt.Errorf("apikey: a tag secret has at least %d bytes, not %d", MinSecret, len(secret))
		}
		f.tags = append(f.tags, newTagger(secret))
	}
	return f, nil
}

// CheckPrefix returns an error if prefix is invalid.
func CheckPrefix(prefix string) error {
	if len(prefix) > MaxPrefix {
		return fmt.Errorf("apikey: prefix %q is longer than %d bytes", prefix, MaxPrefix)
	}
	for _, c := range []byte(prefix) {
		if !isAlphanumeric(c) && c != '_' && c != '-' {
			return fmt.Errorf("apikey: prefix %q may hold only letters, digits, '_' and '-'", prefix)
		}
	}
	return nil
}

// Generate returns a new key with 160 bits from the operating system's generator.
func (f *Format) Generate() Token {
	var b [randomSize + tagSize]byte
	rand.Read(b[:randomSize]) // never returns an error: it ends the program instead
	var sum [sha256.Size]byte
	f.tags[0].sum(b[:randomSize], &sum)
	copy(b[randomSize:], sum[:tagSize])
	return newToken(f.prefix + hex.EncodeToString(b[:]))
}

// Parse parses a key. It returns [ErrMalformed] for a value of another shape and [ErrWrongTag] for
// one that was not made with one of the secrets. Neither error holds any part of the value.
func (f *Format) Parse(s string) (Token, error) {
	var b [randomSize + tagSize]byte
	if !f.decode(&b, s) {
		return Token{}, ErrMalformed
	}
	if !f.authentic(&b) {
		return Token{}, ErrWrongTag
	}
	return newToken(s), nil
}

// FoundIn reports whether s contains a value shaped like a key, whatever its tag.
func (f *Format) FoundIn(s string) bool { return f.IndexIn(s) >= 0 }

// IndexIn returns the index of the first value in s that is shaped like a key, whatever its tag, or
// -1.
func (f *Format) IndexIn(s string) int {
	for from := 0; ; from++ {
		i := strings.Index(s[from:], f.prefix)
		if i < 0 {
			return -1
		}
		from += i
		rest := s[from+len(f.prefix):]
		if len(rest) >= hexSize && isLowerHex(rest[:hexSize]) {
			return from
		}
	}
}

// decode decodes the bytes of a key and reports whether s has the shape of one.
func (f *Format) decode(b *[randomSize + tagSize]byte, s string) bool {
	if len(s) != len(f.prefix)+hexSize || s[:len(f.prefix)] != f.prefix {
		return false
	}
	digits := s[len(f.prefix):]
	for i := range b {
		hi, lo := fromHex(digits[2*i]), fromHex(digits[2*i+1])
		if hi|lo > 0x0f {
			return false
		}
		b[i] = hi<<4 | lo
	}
	return true
}

func (f *Format) authentic(b *[randomSize + tagSize]byte) bool {
	var sum [sha256.Size]byte
	for _, t := range f.tags {
		t.sum(b[:randomSize], &sum)
		if subtle.ConstantTimeCompare(sum[:tagSize], b[randomSize:]) == 1 {
			return true
		}
	}
	return false
}

// fromHex returns the value of a lower-case hexadecimal digit, and 0xff for any other byte.
func fromHex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		if fromHex(s[i]) > 0x0f {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// tagger computes tags with one secret. It reuses hashes, because creating one costs two blocks of
// SHA-256 and three allocations.
type tagger struct{ pool sync.Pool }

type taggerState struct {
	mac hash.Hash
	in  [randomSize]byte
	out [sha256.Size]byte
}

func newTagger(secret []byte) *tagger {
	secret = append([]byte(nil), secret...)
	return &tagger{pool: sync.Pool{New: func() any {
		return &taggerState{mac: hmac.New(sha256.New, secret)}
	}}}
}

// sum writes the HMAC of random to out. The copies keep the caller's arrays on its stack.
func (t *tagger) sum(random []byte, out *[sha256.Size]byte) {
	s := t.pool.Get().(*taggerState)
	copy(s.in[:], random)
	s.mac.Reset()
	s.mac.Write(s.in[:])
	s.mac.Sum(s.out[:0])
	*out = s.out
	t.pool.Put(s)
}
