package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
)

// hidden is printed in place of every Secret.
const hidden = "[secret hidden]"

// ErrHidden is returned by the encoders of a [Secret], so that encoding one by accident fails and
// does not leak it.
var ErrHidden = errors.New("client: a secret is not encoded; call Reveal where it must be shown")

// Secret is a token of the API, a key, a cookie or a login link. The zero Secret is empty.
//
// It cannot be printed: all formatting verbs, slog and the encoders of text, JSON and gob show none
// of it. The text lies behind a pointer, so a Secret inside another struct prints as an address.
// [Secret.Reveal] is the only way to it.
type Secret struct{ text *string }

// NewSecret returns a text as a Secret.
func NewSecret(text string) Secret { return Secret{&text} }

// Reveal returns the text. Call it only to use the secret, or to show it to its owner.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether s is empty.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String implements [fmt.Stringer].
func (s Secret) String() string { return hidden }

// Format implements [fmt.Formatter], so that no verb reaches the field.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements [encoding.TextMarshaler], also for the JSON encoder; it fails.
func (s Secret) MarshalText() ([]byte, error) { return nil, ErrHidden }

// GobEncode implements [encoding/gob.GobEncoder]; it fails.
func (s Secret) GobEncode() ([]byte, error) { return nil, ErrHidden }

// UnmarshalJSON implements [json.Unmarshaler]. The JSON null is the empty Secret.
func (s *Secret) UnmarshalJSON(text []byte) error {
	var plain *string
	if json.Unmarshal(text, &plain) != nil {
		return errors.New("client: a secret that is no text") // the cause may quote it
	}
	s.text = plain
	return nil
}
