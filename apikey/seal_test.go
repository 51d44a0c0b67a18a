package apikey_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/apikey"
)

// A sealed key opens unchanged with its own seal key and ID, and with nothing else.
func TestASealedKeyOpensOnlyForItsIDAndSealKey(t *testing.T) {
	format, err := apikey.NewFormat(apikey.FormatConfig{Secrets: [][]byte{bytes.Repeat([]byte{1}, apikey.MinSecret)}})
	if err != nil {
		t.Fatal(err)
	}
	token := format.Generate()
	key, other := newSealKey(t), newSealKey(t)
	sealed, err := apikey.Seal(key.Public(), token, "key_1")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := apikey.Seal(key.Public(), token, "key_1"); err != nil || bytes.Equal(again, sealed) {
		t.Errorf("the same key sealed twice is the same, or %v", err)
	}
	if bytes.Contains(sealed, []byte(token.Reveal()[3:])) {
		t.Error("the sealed copy holds the plaintext")
	}
	file, err := key.Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := apikey.ParseSealKeys(file)
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := read.Unseal(sealed, "key_1"); err != nil || opened.Reveal() != token.Reveal() {
		t.Errorf("the key read from its file does not open the seal: %v", err)
	}
	changed := bytes.Clone(sealed)
	changed[len(changed)-1] ^= 1
	for name, try := range map[string]func() (apikey.Token, error){
		"another id":       func() (apikey.Token, error) { return key.Unseal(sealed, "key_2") },
		"another seal key": func() (apikey.Token, error) { return other.Unseal(sealed, "key_1") },
		"one bit changed":  func() (apikey.Token, error) { return key.Unseal(changed, "key_1") },
		"cut off":          func() (apikey.Token, error) { return key.Unseal(sealed[:20], "key_1") },
		"nothing":          func() (apikey.Token, error) { return key.Unseal(nil, "key_1") },
	} {
		if opened, err := try(); !errors.Is(err, apikey.ErrSealed) || !opened.IsZero() {
			t.Errorf("%s: error %v, want ErrSealed", name, err)
		}
	}
}

// A seal key cannot be printed.
func TestASealKeyIsNotPrinted(t *testing.T) {
	key := newSealKey(t)
	file, err := key.Encode()
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Split(string(file), "\n")[1]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		if s := fmt.Sprintf(verb, key) + fmt.Sprintf(verb, *key); strings.Contains(s, body) || !strings.Contains(s, "hidden") {
			t.Errorf("%s prints %q", verb, s)
		}
	}
	for _, bad := range []string{"", "x", "-----BEGIN KEYPORTER SEAL PRIVATE KEY-----\nAAAA\n-----END KEYPORTER SEAL PRIVATE KEY-----\n"} {
		if _, err := apikey.ParseSealKeys([]byte(bad)); err == nil {
			t.Errorf("%q was read as a seal key", bad)
		}
	}
}

func newSealKey(t *testing.T) *apikey.SealKey {
	t.Helper()
	key, err := apikey.NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
