// Package routes reads and writes route tables, and other parts of a configuration, as YAML. Every
// mistake is told with file, line and column. The table that Keyporter ships with is a file like
// any other.
package routes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.yaml.in/yaml/v4"
)

// Document is a file while it is read. All its mistakes are collected.
type Document struct {
	File     string
	Problems []error
}

// Read reads a file as YAML. The node is nil where there is nothing in it, or where it is no YAML,
// which is one of the problems then.
func Read(file string, text []byte) (*Document, *yaml.Node) {
	d := &Document{File: file}
	var node yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&node); errors.Is(err, io.EOF) {
		return d, nil // empty, or comments only
	} else if err != nil {
		d.Problems = append(d.Problems, SyntaxError(file, err))
		return d, nil
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		d.Problems = append(d.Problems, fmt.Errorf("%s: a second document begins after ---: put everything into one", file))
		return d, nil
	}
	if len(node.Content) == 0 {
		return d, nil
	}
	return d, node.Content[0]
}

// SyntaxError is a mistake that keeps the file from being read as YAML. Bytes that are no text have
// no line.
func SyntaxError(file string, err error) error {
	wrong := (*yaml.LoadError)(nil)
	if !errors.As(err, &wrong) || wrong.Mark.Line == 0 {
		return fmt.Errorf("%s: %w", file, err)
	}
	return fmt.Errorf("%s:%d:%d: %s", file, wrong.Mark.Line, wrong.Mark.Column, wrong.Message)
}

// Complain adds a mistake at a node.
func (d *Document) Complain(n *yaml.Node, format string, args ...any) {
	d.Problems = append(d.Problems, fmt.Errorf("%s:%d:%d: %w", d.File, n.Line, n.Column, fmt.Errorf(format, args...)))
}

// Mapping calls each for the entries of a mapping that are known, and complains about the others.
func (d *Document) Mapping(node *yaml.Node, known []string, each func(name string, key, value *yaml.Node)) {
	if node.Kind != yaml.MappingNode {
		d.Complain(node, "want lines of the form `name: value`")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		switch line, again := seen[key.Value]; {
		case !slices.Contains(known, key.Value):
			d.Complain(key, "%.80q: there is no such setting%s", key.Value, Nearest(key.Value, known))
		case again:
			d.Complain(key, "%s: set already in line %d", key.Value, line)
		case value.Kind == yaml.AliasNode:
			d.Complain(value, "%s: aliases are not supported", key.Value)
		default:
			seen[key.Value] = key.Line
			each(key.Value, key, value)
		}
	}
}

// Scalar returns a single value, or false where there is another kind of node.
func (d *Document) Scalar(name string, node *yaml.Node) (string, bool) {
	if node.Kind != yaml.ScalarNode || node.Tag == "!!null" {
		d.Complain(node, "%s: want a single value", name)
		return "", false
	}
	return node.Value, true
}

// Parsed reads a single value by a function, whose error is a mistake.
func (d *Document) Parsed(name string, node *yaml.Node, parse func(string) error) {
	text, ok := d.Scalar(name, node)
	if !ok {
		return
	}
	if err := parse(text); err != nil {
		d.Complain(node, "%s: %w", name, err)
	}
}

// Texts reads a list of values, or one value that stands alone.
func (d *Document) Texts(name string, node *yaml.Node) []string {
	if node.Kind == yaml.ScalarNode {
		node = &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{node}}
	}
	if node.Kind != yaml.SequenceNode {
		d.Complain(node, "%s: want a list", name)
		return nil
	}
	if len(node.Content) == 0 {
		d.Complain(node, "%s: the list is empty: leave the line out to name none", name)
	}
	var all []string
	for _, item := range node.Content {
		if text, ok := d.Scalar(name, item); ok {
			all = append(all, text)
		}
	}
	return all
}

// Nearest suggests one of the known names, or returns "". A short name has to be nearer than a long
// one.
func Nearest(name string, known []string) string {
	best, distance := "", min(4, (len(name)+1)/2)
	for _, k := range known {
		if len(name) >= len(k)+distance || len(k) >= len(name)+distance {
			continue // as far apart as their lengths, at least
		}
		if d := editDistance(name, k); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// editDistance counts the letters to insert, remove or replace to make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
