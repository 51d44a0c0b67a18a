package events

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Secret signs what an endpoint gets. It cannot be printed. The zero Secret is none.
type Secret struct{ key []byte }

// The bounds of a secret, in bytes; those of Standard Webhooks.
const minSecret, maxSecret = 24, 64

// maxSecrets is the number of secrets of an endpoint: the new and the old one of a rotation.
const maxSecrets = 2

// ParseSecrets reads the secrets of an endpoint, one in a line: whsec_ and 24 to 64 bytes in base64.
// Empty lines and those that begin with # mean nothing. Errors name the line, and nothing of it.
func ParseSecrets(text string) (all []Secret, err error) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		encoded, found := strings.CutPrefix(line, "whsec_")
		key, err := base64.StdEncoding.DecodeString(encoded)
		if !found || err != nil || len(key) < minSecret || len(key) > maxSecret {
			return nil, fmt.Errorf("line %d: want whsec_ and %d to %d bytes in base64, as `echo whsec_$(openssl rand -base64 32)` prints them", number, minSecret, maxSecret)
		}
		all = append(all, Secret{key})
	}
	if len(all) == 0 {
		return nil, errors.New("there is no secret in it: want a line whsec_…")
	}
	if len(all) > maxSecrets {
		return nil, fmt.Errorf("there are more than %d secrets in it: want one, and a second one only while they are rotated", maxSecrets)
	}
	return all, nil
}

// String hides the secret.
func (Secret) String() string { return "whsec_***" }

// GoString hides the secret.
func (Secret) GoString() string { return "whsec_***" }

// LogValue hides the secret.
func (Secret) LogValue() slog.Value { return slog.StringValue("whsec_***") }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte("whsec_***"), nil }

// sign returns the header webhook-signature: one signature by each secret.
func sign(secrets []Secret, id string, at time.Time, body []byte) string {
	signatures := make([]string, len(secrets))
	for i, s := range secrets {
		mac := hmac.New(sha256.New, s.key)
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(body)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(signatures, " ")
}
