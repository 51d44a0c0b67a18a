// Package terminal makes text of any origin harmless to the terminal that shows it.
package terminal

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Visible replaces invisible characters by escapes in the form of JSON: control characters,
// characters that change the direction of text, and invalid UTF-8. Names of plans, headers and
// actors come from others, and must not control an operator's terminal.
func Visible(s string) string {
	return string(appendVisible(nil, []byte(s), unicode.IsGraphic))
}

// appendVisible appends text, with escapes for all runes for which wanted is false.
func appendVisible(b, text []byte, wanted func(rune) bool) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			b = fmt.Appendf(b, `\x%02x`, text[0])
		case wanted(r):
			b = append(b, text[:size]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		text = text[size:]
	}
	return b
}

// Writer writes only visible text, tabs and line breaks. All output of the program passes
// through it, so that no caller has to escape.
type Writer struct {
	mu   sync.Mutex
	w    io.Writer // guarded by mu
	rest []byte    // an incomplete character; guarded by mu
}

// NewWriter returns a Writer that writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write implements [io.Writer].
func (v *Writer) Write(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	text := p
	if len(v.rest) > 0 {
		text = append(v.rest, p...)
	}
	whole := len(text)
	for back := 1; back < utf8.UTFMax && back <= len(text); back++ {
		if start := len(text) - back; utf8.RuneStart(text[start]) {
			if !utf8.FullRune(text[start:]) {
				whole = start
			}
			break
		}
	}
	v.rest = bytes.Clone(text[whole:])
	return len(p), v.write(text[:whole])
}

// Close writes the rest of an incomplete character.
func (v *Writer) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.write(v.rest) // the last output
	v.rest = nil
}

func (v *Writer) write(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	_, err := v.w.Write(appendVisible(make([]byte, 0, len(text)), text, func(r rune) bool {
		return r == '\n' || r == '\t' || unicode.IsGraphic(r)
	}))
	return err
}
