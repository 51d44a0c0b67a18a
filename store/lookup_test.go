package store

import (
	"testing"
	"unsafe"
)

// The names in a look-up are one object, whatever is empty: it is kept for each key in memory, and the collector
// looks at each object.
func TestNamesAreOneObject(t *testing.T) {
	for _, want := range [][3]string{{"key_1", "ada", "acme"}, {"", "ada", "acme"}, {"key_1", "", ""}, {"", "", ""}} {
		got := want
		join(&got[0], &got[1], &got[2])
		if got != want {
			t.Errorf("joined: %q, want %q", got, want)
		}
		for i, next := range got[1:] {
			if end := unsafe.StringData(got[i]); end != nil && next != "" && got[i] != "" && unsafe.Add(unsafe.Pointer(end), len(got[i])) != unsafe.Pointer(unsafe.StringData(next)) {
				t.Errorf("%q: the text after %q is another object", want, got[i])
			}
		}
	}
}
