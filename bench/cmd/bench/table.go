package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
)

// markers are the lines of a file that enclose a table.
type markers struct{ start, end string }

var (
	tableMarkers  = markers{"<!-- table -->", "<!-- /table -->"}
	growthMarkers = markers{"<!-- growth -->", "<!-- /growth -->"}
	costMarkers   = markers{"<!-- costs -->", "<!-- /costs -->"}
)

// columns are the columns of the table. A column with × is the ratio of the one before it to the
// yardstick's.
var columns = []struct {
	title string
	cell  func(r, yardstick *row) string
}{
	{"way", func(r, _ *row) string { return r.way }},
	{"server", func(r, _ *row) string { return r.server }},
	{"answer", func(r, _ *row) string { return r.answer }},
	{"answers/s", func(r, _ *row) string {
		middle, spread := r.median(perSecond)
		return fmt.Sprintf("%.1fk ± %.0f %%", middle/1000, spread*100)
	}},
	{"×", ratio(perSecond)},
	{"server CPU µs", number("%.1f", cpu)},
	{"×", ratio(cpu)},
	{"Envoy CPU µs", func(r, _ *row) string {
		if r.envoy == nil {
			return "–"
		}
		return number("%.1f", envoyCPU)(r, nil)
	}},
	{"allocations", number("%.1f", mallocs)},
	{"p50 µs", number("%.0f", func(s sample) float64 { return s.p50 })},
	{"p99 µs", number("%.0f", func(s sample) float64 { return s.p99 })},
	{"p99.9 µs", number("%.0f", func(s sample) float64 { return s.p999 })},
	{"alone p50 µs", number("%.0f", aloneP50)},
	{"×", ratio(aloneP50)},
	{"alone p99 µs", number("%.0f", func(s sample) float64 { return s.aloneP99 })},
}

func perSecond(s sample) float64 { return s.perSecond }
func cpu(s sample) float64       { return s.cpu }
func envoyCPU(s sample) float64  { return s.envoyCPU }
func mallocs(s sample) float64   { return s.mallocs }
func aloneP50(s sample) float64  { return s.aloneP50 }

func number(format string, figure func(sample) float64) func(r, yardstick *row) string {
	return func(r, _ *row) string {
		middle, _ := r.median(figure)
		return fmt.Sprintf(format, middle)
	}
}

func ratio(figure func(sample) float64) func(r, yardstick *row) string {
	return func(r, yardstick *row) string {
		ours, _ := r.median(figure)
		theirs, _ := yardstick.median(figure)
		if theirs == 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f", ours/theirs)
	}
}

// render returns the table in Markdown, with the notes for reading it.
func render(rows []*row, machine string) string {
	var table strings.Builder
	var titles []string
	for _, c := range columns {
		titles = append(titles, c.title)
	}
	line(&table, titles)
	line(&table, append([]string{"---", "---", "---"}, repeat("---:", len(columns)-3)...))
	yardsticks := map[string]*row{} // way → the row to compare with
	for _, r := range rows {
		if r.yardstick {
			yardsticks[r.way] = r
		}
	}
	for _, r := range rows {
		var cells []string
		for _, c := range columns {
			cells = append(cells, c.cell(r, yardsticks[r.way]))
		}
		line(&table, cells)
	}
	return table.String() + notes(rows, machine)
}

// notes says where and how a table was measured.
func notes(rows []*row, machine string) string {
	return fmt.Sprintf("\n%s. Medians of %d rounds; ± is the round furthest off. Absolute figures are of this machine only: compare ratios.\n",
		machine, len(rows[0].samples)) + conditions(rows)
}

func line(table *strings.Builder, cells []string) {
	fmt.Fprintf(table, "| %s |\n", strings.Join(cells, " | "))
}

func repeat(s string, n int) []string {
	return strings.Split(strings.Repeat(s+" ", n-1)+s, " ")
}

// quiet is the share of the machine that other programs may use before the figures become doubtful.
const quiet = 0.05

// conditions reports the cost of the load client itself, and whether other programs kept the
// machine busy.
func conditions(rows []*row) string {
	var client, database, others float64
	for _, r := range rows {
		c, _ := r.median(func(s sample) float64 { return s.clientCPU })
		o, _ := r.median(func(s sample) float64 { return s.otherCPU })
		d, _ := r.median(func(s sample) float64 { return s.databaseCPU })
		client, database, others = max(client, c), max(database, d), max(others, o)
	}
	text := fmt.Sprintf("The load took at most %.1f µs of CPU for each answer; other programs at most %.0f %% of the machine.\n", client, others*100)
	if rows[0].database != nil {
		text += fmt.Sprintf("PostgreSQL took at most %.1f µs beside that, not counted above.\n", database)
	}
	if others > quiet {
		text += "**The machine was not idle: measure again before believing a figure.**\n"
	}
	return text
}

var errMarkers = errors.New("it must have one line of each marker, in this order")

// writeTable replaces the table between the markers of a file.
func writeTable(path string, between markers, table string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	text, err = between.replace(text, table)
	if err != nil {
		return fmt.Errorf("writing the table into %s: %w", path, err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

func (m markers) replace(text []byte, table string) ([]byte, error) {
	before, rest, found := bytes.Cut(text, []byte(m.start+"\n"))
	_, after, closed := bytes.Cut(rest, []byte(m.end+"\n"))
	if !found || !closed || bytes.Contains(after, []byte(m.start+"\n")) {
		return nil, fmt.Errorf("%w: %s and %s", errMarkers, m.start, m.end)
	}
	return fmt.Appendf(nil, "%s%s\n\n%s\n%s\n%s", before, m.start, table, m.end, after), nil
}
