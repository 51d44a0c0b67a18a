package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// visible replaces invisible characters by escapes in the form of JSON: control characters,
// characters that change the direction of text, and invalid UTF-8. Names of plans, headers and
// actors come from others, and must not control an operator's terminal.
func visible(s string) string {
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

// visibleWriter writes only visible text, tabs and line breaks. All output of the program passes
// through it, so that no caller has to escape.
type visibleWriter struct {
	mu   sync.Mutex
	w    io.Writer // guarded by mu
	rest []byte    // an incomplete character; guarded by mu
}

func (v *visibleWriter) Write(p []byte) (int, error) {
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

// makeVisible sends all output of a through such writers, until done is called.
func (a *app) makeVisible() (done func()) {
	out, problems := &visibleWriter{w: a.stdout}, &visibleWriter{w: a.stderr}
	a.stdout, a.stderr = out, problems
	return func() { out.close(); problems.close() }
}

// close writes the rest of an incomplete character.
func (v *visibleWriter) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.write(v.rest) // the last output
	v.rest = nil
}

func (v *visibleWriter) write(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	_, err := v.w.Write(appendVisible(make([]byte, 0, len(text)), text, func(r rune) bool {
		return r == '\n' || r == '\t' || unicode.IsGraphic(r)
	}))
	return err
}

// columns aligns rows in columns. Rows arrive one by one, so the columns of a long list may become
// wider on the way.
type columns struct {
	widths []int
	rows   [][]string // not yet written
}

func (c *columns) add(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = visible(cell)
		if i == len(c.widths) {
			c.widths = append(c.widths, 0)
		}
		c.widths[i] = max(c.widths[i], utf8.RuneCountInString(row[i]))
	}
	c.rows = append(c.rows, row)
}

// take returns the rows added since the previous call.
func (c *columns) take() string {
	var b strings.Builder
	for _, row := range c.rows {
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", c.widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	c.rows = c.rows[:0]
	return b.String()
}

// csvRows writes rows as CSV.
type csvRows struct{ text bytes.Buffer }

func (c *csvRows) add(cells ...string) {
	for i, cell := range cells {
		cells[i] = visible(cell)
	}
	w := csv.NewWriter(&c.text)
	_ = w.Write(cells) // cannot fail: writes to memory
	w.Flush()
}

func (c *csvRows) take() string {
	defer c.text.Reset()
	return c.text.String()
}

// table aligns rows in columns.
func table(rows [][]string) string {
	var c columns
	for _, row := range rows {
		c.add(row...)
	}
	return c.take()
}

// pageRows is how many rows of a list are aligned and written at a time.
const pageRows = 1000

// printAll prints a list of any length as it arrives: as JSON, or in columns.
func printAll[T any](a *app, c config, all iter.Seq2[T, error], shown func(T) any, header []string, row func(T) []string) error {
	return printRows(a, c, all, shown, &columns{}, header, row)
}

// layout formats rows as text.
type layout interface {
	add(cells ...string)
	take() string // the text added since the previous call
}

// printRows is printAll with the given layout.
func printRows[T any](a *app, c config, all iter.Seq2[T, error], shown func(T) any, rows layout, header []string, row func(T) []string) error {
	p := listPrinter{asJSON: c.Output == "json", rows: rows}
	p.rows.add(header...)
	for one, err := range all {
		if err == nil {
			err = p.add(shown(one), row(one))
		}
		if err == nil && p.n%pageRows == 0 {
			err = p.flush(a.stdout)
		}
		if err != nil {
			return err
		}
	}
	if p.asJSON && p.n == 0 {
		p.json.WriteByte('[')
	}
	p.json.WriteString("]\n")
	return p.flush(a.stdout)
}

// listPrinter collects some elements of a list.
type listPrinter struct {
	asJSON bool
	n      int
	json   bytes.Buffer
	rows   layout
}

func (p *listPrinter) add(value any, row []string) error {
	p.n++
	if !p.asJSON {
		p.rows.add(row...)
		return nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	p.json.WriteByte("[,"[min(p.n-1, 1)])
	p.json.Write(text)
	return nil
}

func (p *listPrinter) flush(w io.Writer) error {
	text := p.json.Bytes()
	if !p.asJSON {
		text = []byte(p.rows.take())
	}
	_, err := w.Write(text)
	p.json.Reset()
	if err != nil {
		return writeError{err}
	}
	return nil
}
