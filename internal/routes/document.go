// Package routes reads and writes route tables, and other parts of a configuration, as YAML. It
// reports every mistake with file, line and column. The table that Keyporter ships with is read
// like any other file.
package routes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.yaml.in/yaml/v4"
)

// Document is a file being read. It collects all mistakes of the file.
type Document struct {
	File     string
	Problems []error
}

// Read parses a file as YAML. The node is nil if the file is empty, or if it is not valid YAML,
// which is then among the problems.
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

// SyntaxError returns an error for a file that is not valid YAML, with its position. Invalid bytes
// have no position.
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

// Mapping calls each for the known entries of a mapping, and complains about the others.
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

// Scalar returns the text of a single value, or false if the node is of another kind.
func (d *Document) Scalar(name string, node *yaml.Node) (string, bool) {
	if node.Kind != yaml.ScalarNode || node.Tag == "!!null" {
		d.Complain(node, "%s: want a single value", name)
		return "", false
	}
	return node.Value, true
}

// Parsed parses a single value and reports an error of parse as a mistake.
func (d *Document) Parsed(name string, node *yaml.Node, parse func(string) error) {
	text, ok := d.Scalar(name, node)
	if !ok {
		return
	}
	if err := parse(text); err != nil {
		d.Complain(node, "%s: %w", name, err)
	}
}

// Texts returns the texts of a list, or of a single value.
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

// Nearest returns a text that suggests the closest of the known names, or "" if none is close. For
// short names, the limit is lower.
func Nearest(name string, known []string) string {
	best, distance := "", min(4, (len(name)+1)/2)
	for _, k := range known {
		if len(name) >= len(k)+distance || len(k) >= len(name)+distance {
			continue // the distance is at least the difference in length
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

// editDistance returns the number of bytes to insert, remove or replace to turn a into b.
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
