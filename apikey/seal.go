package apikey

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
)

// sealInfo binds a sealed key to this purpose.
const sealInfo = "keyporter sealed key v1"

// sealPEM is the type of the PEM block in a seal key file.
const sealPEM = "KEYPORTER SEAL PRIVATE KEY"

// ErrSealed is returned by [SealKey.Unseal] for data that was sealed to another seal key or for
// another key ID, or was modified.
var ErrSealed = errors.New("apikey: the sealed key does not open with this seal key")

// SealKey is the private half of a sealing key pair (HPKE, RFC 9180: X25519, HKDF-SHA-256,
// AES-256-GCM). It decrypts every key sealed to its public half, so it belongs only in a process
// that shows users their keys. Like a [Token], it cannot be printed.
type SealKey struct{ private hpke.PrivateKey }

func sealKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// NewSealKey generates a key pair.
func NewSealKey() (*SealKey, error) {
	private, err := sealKEM().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("apikey: making a seal key: %w", err)
	}
	return &SealKey{private}, nil
}

// Public returns the public half, for the database.
func (k *SealKey) Public() []byte { return k.private.PublicKey().Bytes() }

// Encode returns the content of a seal key file.
func (k *SealKey) Encode() ([]byte, error) {
	b, err := k.private.Bytes()
	if err != nil {
		return nil, fmt.Errorf("apikey: encoding a seal key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: sealPEM, Bytes: b}), nil
}

// SealKeys holds the seal keys of a file, newest first. During a rotation there are two.
type SealKeys []*SealKey

// ParseSealKeys parses a seal key file, which holds at least one key. The error quotes nothing of
// it.
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

// Unseal decrypts a result of [Seal] for the key with this ID, with the first seal key that can.
func (keys SealKeys) Unseal(sealed []byte, id string) (Token, error) {
	for _, k := range keys {
		if token, err := k.Unseal(sealed, id); err == nil {
			return token, nil
		}
	}
	return Token{}, ErrSealed
}

// Seal encrypts t to a public key. The result is bound to the key with this ID.
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

// Unseal decrypts a result of [Seal] for the key with this ID.
func (k *SealKey) Unseal(sealed []byte, id string) (Token, error) {
	size := len(k.Public()) // an encapsulated X25519 key has the size of a public one
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
