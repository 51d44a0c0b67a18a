package jwt

import (
	"context"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// FromFile reports whether the keys are in a file and not at a URL.
func (c Config) FromFile() bool { return c.Keys != "" && !isURL(c.Keys) }

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

func (c Config) algorithms() []string {
	if len(c.Algorithms) == 0 {
		return DefaultAlgorithms()
	}
	return c.Algorithms
}

// fits reports whether key can verify signatures of one of the algorithms.
func (c Config) fits(key jose.JSONWebKey) bool {
	return slices.ContainsFunc(c.algorithms(), func(algorithm string) bool { return fits(&key, algorithm) })
}
