// Package apikey is the credential: it generates keys, parses them and reduces them to the digest
// that is stored, cached and compared. It does no I/O and does not depend on users or databases.
// All code that handles a key's plaintext holds it as a [Token], which cannot be printed.
package apikey

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"unsafe"
)

// hidden is printed in place of every Token.
const hidden = "[key hidden]"

// ErrHidden is returned by the encoders of a [Token], so that encoding a key by accident fails and
// does not leak it.
var ErrHidden = errors.New("apikey: a key is not encoded; call Reveal where it must be shown")

// Token is the plaintext of a key or session. The zero Token is empty and opens nothing.
//
// It cannot be printed: all formatting verbs, slog and the text encoders show a fixed text. The
// bytes lie behind a pointer, so a Token inside another struct prints as an address. [Token.Reveal]
// is the only way to the plaintext. Compare Tokens by their [Digest].
type Token struct {
	data *byte
	size int
}

// newToken wraps s without a copy; the string keeps the bytes immutable.
func newToken(s string) Token {
	return Token{data: unsafe.StringData(s), size: len(s)}
}

// Reveal returns the plaintext. Call it only to show a key to its owner.
func (t Token) Reveal() string {
	if t.size == 0 {
		return ""
	}
	return unsafe.String(t.data, t.size)
}

// IsZero reports whether t is empty.
func (t Token) IsZero() bool { return t.size == 0 }

// Digest returns the SHA-256 of the whole plaintext, including the prefix. It is stored, cached and
// compared. The random part has 160 bits, so a fast hash is safe and imported digests work.
func (t Token) Digest() Digest {
	return sha256.Sum256(unsafe.Slice(t.data, t.size))
}

// String implements [fmt.Stringer].
func (t Token) String() string { return hidden }

// Format implements [fmt.Formatter], so that no verb reaches the fields.
func (t Token) Format(s fmt.State, _ rune) { fmt.Fprint(s, hidden) }

// LogValue implements [slog.LogValuer].
func (t Token) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements [encoding.TextMarshaler], also for the JSON and YAML encoders; it fails.
func (t Token) MarshalText() ([]byte, error) { return nil, ErrHidden }

// GobEncode implements [encoding/gob.GobEncoder]; it fails.
func (t Token) GobEncode() ([]byte, error) { return nil, ErrHidden }

// Digest is the SHA-256 of a key. It may be stored, compared and used as a map key. It does not
// reveal the key.
type Digest [sha256.Size]byte

// ParseDigest parses a digest of 64 hexadecimal digits, as in an import of keys.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != hex.EncodedLen(len(d)) {
		return Digest{}, fmt.Errorf("apikey: a digest has %d hexadecimal digits, not %d", hex.EncodedLen(len(d)), len(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, errors.New("apikey: a digest consists of hexadecimal digits")
	}
	return d, nil
}
