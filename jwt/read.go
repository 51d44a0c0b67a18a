package jwt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// FromFile reports whether the keys are in a file, rather than at a URL.
func (c Config) FromFile() bool { return c.Keys != "" && !strings.Contains(c.Keys, "://") }

// ReadKeys returns an error unless the keys can be read and one of them can verify tokens.
func (c Config) ReadKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	set := &keySet{fetch: func(ctx context.Context) ([]byte, error) {
		if c.FromFile() {
			return readFile(c.Keys)
		}
		return download(ctx, &http.Client{CheckRedirect: func(r *http.Request, _ []*http.Request) error { return checkSource(r.URL.String()) }}, c.Keys)
	}}
	keys, err := set.readKeys(ctx)
	if err != nil {
		return fmt.Errorf("reading the keys of tokens from %s: %w", c.Keys, err)
	}
	if !slices.ContainsFunc(keys, c.fits) {
		return fmt.Errorf("reading the keys of tokens from %s: %w", c.Keys, errors.New("there is no public key for signatures of "+strings.Join(c.algorithms(), ", ")))
	}
	return nil
}

func (c Config) algorithms() []string {
	if len(c.Algorithms) == 0 {
		return DefaultAlgorithms()
	}
	return c.Algorithms
}

// fits reports whether a key is for one of the algorithms, or does not say for which it is.
func (c Config) fits(key jose.JSONWebKey) bool {
	return key.Algorithm == "" || slices.Contains(c.algorithms(), key.Algorithm)
}
