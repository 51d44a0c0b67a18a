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

// visible writes what no reader could see, or what would move others about on a terminal, as
// escapes, which have the form that JSON has: control characters, those that turn the direction of
// text, and what is no text at all. Whoever names a plan, sends a header or acts by SQL writes on
// an operator's terminal.
func visible(s string) string {
	return string(appendVisible(nil, []byte(s), unicode.IsGraphic))
}

// appendVisible appends text, with escapes for all runes that are not wanted.
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

// visibleWriter lets nothing but visible text, tabs and line breaks through. All that the program
// says passes through it, so that nothing has to be remembered where it is said.
type visibleWriter struct {
	mu   sync.Mutex
	w    io.Writer // guarded by mu
	rest []byte    // the beginning of a character; guarded by mu
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

// makeVisible has all that a says pass through such writers, until done is called.
func (a *app) makeVisible() (done func()) {
	out, problems := &visibleWriter{w: a.stdout}, &visibleWriter{w: a.stderr}
	a.stdout, a.stderr = out, problems
	return func() { out.close(); problems.close() }
}

// close writes what is left of a character that never ended.
func (v *visibleWriter) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.write(v.rest) // the last thing that is said
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

// columns lays rows out in columns. What a row holds is known only when it comes, so the columns of
// many rows may become wider on the way.
type columns struct {
	widths []int
	rows   [][]string // not written yet
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

// take returns the rows that were added since the last call.
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
	_ = w.Write(cells) // to memory: cannot fail
	w.Flush()
}

func (c *csvRows) take() string {
	defer c.text.Reset()
	return c.text.String()
}

// table lays rows out in columns.
func table(rows [][]string) string {
	var c columns
	for _, row := range rows {
		c.add(row...)
	}
	return c.take()
}

// pageRows is how many rows of a list are laid out, and written, at a time.
const pageRows = 1000

// printAll prints a list of any length as it comes: as JSON, or in columns.
func printAll[T any](a *app, c config, all iter.Seq2[T, error], shown func(T) any, header []string, row func(T) []string) error {
	return printRows(a, c, all, shown, &columns{}, header, row)
}

// layout lays rows out as text.
type layout interface {
	add(cells ...string)
	take() string // what was added since the last call
}

// printRows is printAll with rows that are laid out in some way.
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
