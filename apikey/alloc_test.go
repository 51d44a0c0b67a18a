//go:build !race

// Under the race detector, sync.Pool drops items at random.

package apikey_test

import (
	"strings"
	"testing"

	"github.com/keyporter/keyporter/apikey"
)

// The work on every request allocates nothing, so that a flood of random keys is cheap.
func TestParsingAllocatesNothing(t *testing.T) {
	f := newFormat(t, apikey.FormatConfig{Secrets: [][]byte{secret(2), secret(1)}})
	good := keyOf("wh_", random, secret(1))
	token, err := f.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	forged := "wh_" + strings.Repeat("0f", 24)
	var d apikey.Digest
	for name, do := range map[string]func(){
		"a key":         func() { token, _ = f.Parse(good) },
		"a wrong tag":   func() { f.Parse(forged) },
		"a wrong shape": func() { f.Parse("Bearer") },
		"the digest":    func() { d = token.Digest() },
		"found":         func() { f.FoundIn(good) },
		"not found":     func() { f.FoundIn("Basic dXNlcjpwYXNz") },
	} {
		if n := testing.AllocsPerRun(200, do); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	_ = d
}
