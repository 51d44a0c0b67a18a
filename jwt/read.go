package jwt

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxKeys is the largest accepted JWKS, in bytes.
	maxKeys = 1 << 20
	// fetchTimeout bounds one read of the keys.
	fetchTimeout = 5 * time.Second
	// minRSA is the length of the shortest accepted RSA key, in bits.
	minRSA = 2048
)

// ReadKeys returns an error unless the keys can be read and at least one can verify tokens.
func (c Config) ReadKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	transport := newTransport()
	defer transport.CloseIdleConnections()
	if _, err := c.readKeys(ctx, fetcher(c.Keys, transport)); err != nil {
		return fmt.Errorf("reading the keys of tokens from %s: %w", c.Keys, err)
	}
	return nil
}

// readKeys returns the usable public keys for signatures, without those that are too weak. A set
// without any is an error, because it would lock everybody out.
func (c Config) readKeys(ctx context.Context, fetch func(context.Context) ([]byte, error)) ([]jose.JSONWebKey, error) {
	content, err := fetch(ctx)
	if err != nil {
		return nil, err
	}
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(content, &set); err != nil || set.Keys == nil {
		return nil, errors.New("they are no JWKS")
	}
	keys := []jose.JSONWebKey{}
	for _, text := range set.Keys {
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(text); err != nil {
			continue // of an unknown kind
		}
		rsaKey, isRSA := key.Key.(*rsa.PublicKey)
		if key.IsPublic() && (key.Use == "" || key.Use == "sig") && (!isRSA || rsaKey.N.BitLen() >= minRSA) {
			keys = append(keys, key)
		}
	}
	if !slices.ContainsFunc(keys, c.fits) {
		return nil, fmt.Errorf("there is no public key for signatures of %s", strings.Join(c.algorithms(), ", "))
	}
	return keys, nil
}

// fits reports whether key can verify signatures of one of the algorithms.
func (c Config) fits(key jose.JSONWebKey) bool {
	return slices.ContainsFunc(c.algorithms(), func(algorithm string) bool { return fits(&key, algorithm) })
}

// fits reports whether key can verify signatures of an algorithm.
func fits(key *jose.JSONWebKey, algorithm string) bool {
	if key.Algorithm != "" && key.Algorithm != algorithm {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		return curves[algorithm] == public.Curve
	case ed25519.PublicKey:
		return algorithm == string(jose.EdDSA)
	}
	return false
}

var curves = map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}

func newTransport() *http.Transport { return http.DefaultTransport.(*http.Transport).Clone() }

// fetcher returns a function that reads a source of keys once.
func fetcher(source string, transport *http.Transport) func(context.Context) ([]byte, error) {
	if !isURL(source) {
		return func(context.Context) ([]byte, error) { return readFile(source) }
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 3 {
			return errors.New("too many redirects")
		}
		return checkSource(r.URL.String())
	}}
	return func(ctx context.Context) ([]byte, error) { return download(ctx, client, source) }
}

// readFile reads a regular file. It refuses pipes and does not wait for their writers, because it
// must be able to read the source again.
func readFile(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: the keys are read again and again", path)
	}
	return readAll(file)
}

func download(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", address, response.Status)
	}
	return readAll(response.Body)
}

func readAll(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxKeys+1))
	if err == nil && len(content) > maxKeys {
		err = fmt.Errorf("the keys are more than %d bytes", maxKeys)
	}
	return content, err
}
