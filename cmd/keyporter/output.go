package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"io"
	"iter"
	"strings"
	"unicode/utf8"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/terminal"
)

// makeVisible sends all output of a through such writers, until done is called.
func (a *app) makeVisible() (done func()) {
	out, problems := terminal.NewWriter(a.stdout), terminal.NewWriter(a.stderr)
	a.stdout, a.stderr = out, problems
	return func() { out.Close(); problems.Close() }
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
		row[i] = terminal.Visible(cell)
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
		cells[i] = terminal.Visible(cell)
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
func printAll[T any](a *app, c config.Config, all iter.Seq2[T, error], header []string, row func(T) []string) error {
	return printRows(a, c, all, &columns{}, header, row)
}

// layout formats rows as text.
type layout interface {
	add(cells ...string)
	take() string // the text added since the previous call
}

// printRows is printAll with the given layout.
func printRows[T any](a *app, c config.Config, all iter.Seq2[T, error], rows layout, header []string, row func(T) []string) error {
	p := listPrinter{asJSON: c.Output == "json", rows: rows}
	p.rows.add(header...)
	for one, err := range all {
		if err == nil {
			err = p.add(one, row(one))
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
