package jwt

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxKeys is the size of the largest JWKS that is read, in bytes.
	maxKeys = 1 << 20
	// fetchTimeout bounds the reading of the keys.
	fetchTimeout = 5 * time.Second
	// minRSA is the length of the shortest RSA key that is used, in bits.
	minRSA = 2048
)

// How often keys are read. A key that is not known has them read again, but not more often than pause: so
// made-up keys cause no flood of questions.
type rhythm struct{ age, pause time.Duration }

var (
	ofURL  = rhythm{age: 5 * time.Minute, pause: 30 * time.Second}
	ofFile = rhythm{age: time.Second, pause: time.Second}
)

// keySet is a set of public keys that somebody else keeps.
type keySet struct {
	fetch func(context.Context) ([]byte, error)
	rhythm

	mu      sync.Mutex
	keys    []jose.JSONWebKey // guarded by mu; kept while they cannot be read again
	read    time.Time         // when that was; guarded by mu
	tried   time.Time         // when it was tried last; guarded by mu
	failed  error             // of the last attempt; guarded by mu
	reading *reading          // guarded by mu; nil: nobody reads
}

// reading is one attempt to read the keys, for which several may wait.
type reading struct {
	done chan struct{}
	err  error // once done
}

func checkSource(source string) error {
	if !strings.Contains(source, "://") {
		if source == "" {
			return errors.New("no keys: name a file or a URL with a JWKS")
		}
		return nil
	}
	u, err := url.Parse(source)
	if err != nil || u.Host == "" || u.User != nil {
		return errors.New("the URL of the keys is not of the form https://HOST/PATH")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && !(u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())) {
		return errors.New("the URL of the keys must begin with https://: whoever can change the answer can log in as anybody")
	}
	return nil
}

func newKeySet(source string) *keySet {
	if !strings.Contains(source, "://") {
		return &keySet{rhythm: ofFile, fetch: func(context.Context) ([]byte, error) { return readFile(source) }}
	}
	client := &http.Client{CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 3 {
			return errors.New("too many redirects")
		}
		return checkSource(r.URL.String())
	}}
	return &keySet{rhythm: ofURL, fetch: func(ctx context.Context) ([]byte, error) { return download(ctx, client, source) }}
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
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

// find returns the keys with which a token may be signed. One that is not known is [ErrInvalid]; any other
// error is that the keys could not be read.
func (k *keySet) find(ctx context.Context, id, algorithm string) ([]jose.JSONWebKey, error) {
	keys, due, err := k.look(id, algorithm)
	switch {
	case due && len(keys) == 0:
		if err := k.refresh(ctx); err != nil {
			return nil, err
		}
		keys, _, err = k.look(id, algorithm)
	case due:
		go k.refresh(context.Background()) // bounded by fetchTimeout; meanwhile the old ones do
	}
	if len(keys) == 0 {
		return nil, err
	}
	return keys, nil
}

// firstPause is the pause as long as no keys were read at all: nobody can log in meanwhile.
const firstPause = time.Second

// look returns what is known of a key, and whether it is time to read again: what is known has its age, or
// this key is not among it. The error is for where it is not.
func (k *keySet) look(id, algorithm string) (found []jose.JSONWebKey, due bool, _ error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.keys {
		if (id == "" || key.KeyID == id) && (key.Algorithm == "" || key.Algorithm == algorithm) {
			found = append(found, key)
		}
	}
	now, pause := time.Now(), k.pause
	if k.read.IsZero() {
		pause = min(pause, firstPause)
	}
	due = now.Sub(k.tried) >= pause && (len(found) == 0 || now.Sub(k.read) >= k.age)
	if k.failed != nil {
		return found, due, k.failed // it may be one of those that could not be read
	}
	return found, due, fmt.Errorf("%w: it is signed with a key that we do not know", ErrInvalid)
}

// refresh reads the keys again, once for all who ask at the same time. Where they cannot be read, those that
// are known stay.
func (k *keySet) refresh(ctx context.Context) error {
	k.mu.Lock()
	r := k.reading
	if r == nil {
		r = &reading{done: make(chan struct{})}
		k.reading, k.tried = r, time.Now()
		go k.load(r)
	}
	k.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the keys of tokens: %w", ctx.Err())
	}
}

func (k *keySet) load(r *reading) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	keys, err := k.readKeys(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.keys, k.read = keys, time.Now()
	} else {
		r.err = fmt.Errorf("reading the keys of tokens: %w", err)
	}
	k.reading, k.failed = nil, r.err
	close(r.done)
}

// readKeys leaves out what is no public key for signatures, and what is too weak.
func (k *keySet) readKeys(ctx context.Context) ([]jose.JSONWebKey, error) {
	content, err := k.fetch(ctx)
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
			continue // of a kind that we do not know
		}
		rsaKey, isRSA := key.Key.(*rsa.PublicKey)
		if key.IsPublic() && (key.Use == "" || key.Use == "sig") && (!isRSA || rsaKey.N.BitLen() >= minRSA) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}
