package apikey

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
)

// sealInfo binds a sealed key to its use here.
const sealInfo = "keyporter sealed key v1"

// sealPEM is the type of the PEM block in a seal key file.
const sealPEM = "KEYPORTER SEAL PRIVATE KEY"

// ErrSealed is returned by [SealKey.Unseal] for what was not sealed to this key, or for another key
// id, or was changed since.
var ErrSealed = errors.New("apikey: the sealed key does not open with this seal key")

// SealKey is the private half of a sealing key pair (HPKE, RFC 9180: X25519, HKDF-SHA-256,
// AES-256-GCM). Whoever has it can read the keys that were sealed to its public half, so it belongs
// only to a process that shows users their key. Like a [Token] it cannot be printed.
type SealKey struct{ private hpke.PrivateKey }

func sealKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// NewSealKey makes a key pair.
func NewSealKey() (*SealKey, error) {
	private, err := sealKEM().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("apikey: making a seal key: %w", err)
	}
	return &SealKey{private}, nil
}

// Public returns the public half, which is what the database holds.
func (k *SealKey) Public() []byte { return k.private.PublicKey().Bytes() }

// Encode returns the content of a seal key file.
func (k *SealKey) Encode() ([]byte, error) {
	b, err := k.private.Bytes()
	if err != nil {
		return nil, fmt.Errorf("apikey: encoding a seal key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: sealPEM, Bytes: b}), nil
}

// SealKeys are the seal keys of a file, newest first: while one is replaced there are two.
type SealKeys []*SealKey

// ParseSealKeys reads the content of a seal key file, of which there is at least one key. The error holds
// nothing of it.
func ParseSealKeys(file []byte) (SealKeys, error) {
	var keys SealKeys
	for {
		block, rest := pem.Decode(file)
		if block == nil {
			break
		}
		if block.Type != sealPEM {
			return nil, fmt.Errorf("apikey: not a seal key file: a PEM block that is no %q", sealPEM)
		}
		private, err := sealKEM().NewPrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("apikey: the seal key file holds no X25519 key")
		}
		keys, file = append(keys, &SealKey{private}), rest
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("apikey: not a seal key file: no PEM block %q", sealPEM)
	}
	return keys, nil
}

// Encode returns the content of a seal key file.
func (keys SealKeys) Encode() ([]byte, error) {
	var file []byte
	for _, k := range keys {
		block, err := k.Encode()
		if err != nil {
			return nil, err
		}
		file = append(file, block...)
	}
	return file, nil
}

// Unseal decrypts what [Seal] returned for the key with this id, with the first seal key that opens it.
func (keys SealKeys) Unseal(sealed []byte, id string) (Token, error) {
	for _, k := range keys {
		if token, err := k.Unseal(sealed, id); err == nil {
			return token, nil
		}
	}
	return Token{}, ErrSealed
}

// Seal encrypts t to a public key, for the key with this id only.
func Seal(public []byte, t Token, id string) ([]byte, error) {
	key, err := sealKEM().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("apikey: reading the public seal key: %w", err)
	}
	enc, sender, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(sealInfo))
	if err != nil {
		return nil, fmt.Errorf("apikey: sealing: %w", err)
	}
	ciphertext, err := sender.Seal([]byte(id), []byte(t.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("apikey: sealing: %w", err)
	}
	return append(enc, ciphertext...), nil
}

// Unseal decrypts what [Seal] returned for the key with this id.
func (k *SealKey) Unseal(sealed []byte, id string) (Token, error) {
	size := len(k.Public()) // an encapsulated X25519 key is as long as a public one
	if len(sealed) < size {
		return Token{}, ErrSealed
	}
	recipient, err := hpke.NewRecipient(sealed[:size], k.private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(sealInfo))
	if err != nil {
		return Token{}, ErrSealed
	}
	plaintext, err := recipient.Open([]byte(id), sealed[size:])
	if err != nil {
		return Token{}, ErrSealed
	}
	return newToken(string(plaintext)), nil
}

// String implements [fmt.Stringer].
func (k SealKey) String() string { return hidden }

// Format implements [fmt.Formatter].
func (k SealKey) Format(s fmt.State, _ rune) { fmt.Fprint(s, hidden) }

// LogValue implements [slog.LogValuer].
func (k SealKey) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements [encoding.TextMarshaler]; it fails.
func (k SealKey) MarshalText() ([]byte, error) { return nil, ErrHidden }
