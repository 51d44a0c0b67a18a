// Package bearer has the tokens that guard ports: what a caller of the gRPC port, of the settle
// port or of the operators' API must send.
package bearer

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
)

// Token is a caller's secret, sent as `authorization: Bearer TOKEN`: in the metadata of a call to
// the gRPC port, or in the headers of a call to the settle port. The zero Token requires nothing of
// callers. A Token cannot be printed.
type Token struct{ secret *string }

// tokenForm is the token68 of RFC 9110. It excludes '%', which Envoy reads as the start of a format
// in the metadata that it adds to a call.
var tokenForm = regexp.MustCompile(`^[A-Za-z0-9._~+/-]{16,512}=*$`)

// Parse reads a token. The error does not contain it.
func Parse(s string) (Token, error) {
	if !tokenForm.MatchString(s) {
		return Token{}, errors.New("a token is 16 to 512 letters, digits or -._~+/, such as `openssl rand -hex 32` prints")
	}
	return Token{secret: &s}, nil
}

// IsZero reports whether callers need no token.
func (t Token) IsZero() bool { return t.secret == nil }

// Opens reports whether the one authorization value of a call is t; the zero Token opens to all.
// Its timing does not depend on where they differ.
func (t Token) Opens(authorization []string) bool {
	if t.IsZero() {
		return true
	}
	if len(authorization) != 1 {
		return false
	}
	want := sha256.Sum256([]byte("Bearer " + *t.secret))
	got := sha256.Sum256([]byte(authorization[0]))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// Reveal returns the secret; "" for the zero Token. Call it only to send the token.
func (t Token) Reveal() string {
	if t.IsZero() {
		return ""
	}
	return *t.secret
}

const hidden = "[token hidden]"

// String implements [fmt.Stringer].
func (t Token) String() string { return hidden }

// Format implements [fmt.Formatter], so that no verb reaches the field.
func (t Token) Format(s fmt.State, _ rune) { fmt.Fprint(s, hidden) }

// LogValue implements [slog.LogValuer].
func (t Token) LogValue() slog.Value { return slog.StringValue(hidden) }
