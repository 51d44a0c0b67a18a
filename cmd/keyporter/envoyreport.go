package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/envoy/inspect"
	"github.com/keyporter/keyporter/internal/service"
)

// envoyReport holds the findings in a configuration of Envoy. It is the JSON that is printed.
type envoyReport struct {
	Source   string         `json:"source"`
	Errors   int            `json:"errors"`
	Warnings int            `json:"warnings"`
	Notes    int            `json:"notes"`
	Findings []envoyFinding `json:"findings"`

	isFile bool
}

type envoyFinding struct {
	inspect.Finding
	Line int `json:"line,omitempty"` // line in the file
}

func newEnvoyReport(d *envoyDocument, findings []inspect.Finding) *envoyReport {
	r := &envoyReport{Source: d.source, isFile: d.isFile, Findings: []envoyFinding{}}
	lines := lineIndex{}
	if len(findings) > 0 {
		lines = newLineIndex(d.text)
	}
	for _, f := range findings {
		r.Findings = append(r.Findings, envoyFinding{f, lines.of(f.Path)})
		switch f.Severity {
		case inspect.Error:
			r.Errors++
		case inspect.Warning:
			r.Warnings++
		case inspect.Note:
			r.Notes++
		}
	}
	return r
}

func (r *envoyReport) write(to io.Writer, format string) error {
	switch format {
	case "json":
		return json.NewEncoder(to).Encode(r)
	case "sarif":
		encoder := json.NewEncoder(to)
		encoder.SetIndent("", "  ")
		return encoder.Encode(r.sarif())
	}
	_, err := io.WriteString(to, r.text())
	return err
}

// text explains each rule once, why it matters and what to do, below all places that break it.
func (r *envoyReport) text() string {
	if len(r.Findings) == 0 {
		return r.Source + ": ok\n"
	}
	var out strings.Builder
	for i, f := range r.Findings {
		if i == 0 || f.ID != r.Findings[i-1].ID {
			fmt.Fprintf(&out, "%s %s: %s\n", f.Severity, f.ID, f.Title)
		}
		place := r.Source
		if f.Line > 0 {
			place += fmt.Sprintf(":%d", f.Line)
		}
		fmt.Fprintf(&out, "  %s: %s\n      %s\n", place, f.Path, f.What)
		if i == len(r.Findings)-1 || f.ID != r.Findings[i+1].ID {
			fmt.Fprintf(&out, "  why: %s\n  fix:\n%s\n", f.Why, indented(f.Fix))
		}
	}
	fmt.Fprintf(&out, "%s: errors %d, warnings %d, notes %d\n", r.Source, r.Errors, r.Warnings, r.Notes)
	return out.String()
}

func indented(text string) string {
	return "    " + strings.ReplaceAll(text, "\n", "\n    ") + "\n"
}

// lineIndex maps the path of each part of a file, as a finding writes it, to its line.
type lineIndex map[string]int

// maxIndexed bounds the files for which findings have lines, in bytes. Larger files are not edited
// by hand.
const maxIndexed = 8 << 20

func newLineIndex(text []byte) lineIndex {
	index := lineIndex{}
	var node yaml.Node
	if len(text) <= maxIndexed && yaml.Unmarshal(text, &node) == nil && len(node.Content) > 0 {
		index.add(node.Content[0], "")
	}
	return index
}

func (index lineIndex) add(node *yaml.Node, at inspect.Path) {
	switch node.Kind {
	case yaml.SequenceNode:
		for i, item := range node.Content {
			index[snake(at.Item(i))] = item.Line
			index.add(item, at.Item(i))
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			member := at.At(node.Content[i].Value)
			index[snake(member)] = node.Content[i].Line
			index.add(node.Content[i+1], member)
		}
	}
}

// of returns the line of a path, or of its nearest parent in the file; 0 if there is none.
func (index lineIndex) of(at inspect.Path) int {
	for text := snake(at); text != ""; text = text[:max(0, strings.LastIndexAny(text, ".["))] {
		if line, ok := index[text]; ok {
			return line
		}
	}
	return 0
}

var upper = regexp.MustCompile(`[A-Z]`)

// snake makes paths equal that differ only in the spelling of field names: Envoy reads both
// static_resources and staticResources.
func snake(p inspect.Path) string {
	return strings.ToLower(upper.ReplaceAllString(string(p), "_$0"))
}

// The parts of SARIF 2.1.0 that the report uses.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool    sarifTool     `json:"tool"`
		Results []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		Version        string      `json:"version"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID                   string    `json:"id"`
		ShortDescription     sarifText `json:"shortDescription"`
		FullDescription      sarifText `json:"fullDescription"`
		Help                 sarifText `json:"help"`
		DefaultConfiguration struct {
			Level inspect.Severity `json:"level"`
		} `json:"defaultConfiguration"`
	}
	sarifText struct {
		Text     string `json:"text"`
		Markdown string `json:"markdown,omitempty"`
	}
	sarifResult struct {
		RuleID    string           `json:"ruleId"`
		RuleIndex int              `json:"ruleIndex"`
		Level     inspect.Severity `json:"level"`
		Message   sarifText        `json:"message"`
		Locations []sarifLocation  `json:"locations"`
	}
	sarifLocation struct {
		Physical sarifPhysical  `json:"physicalLocation"`
		Logical  []sarifLogical `json:"logicalLocations"`
	}
	sarifPhysical struct {
		Artifact struct {
			URI string `json:"uri"`
		} `json:"artifactLocation"`
		Region *sarifRegion `json:"region,omitempty"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
	sarifLogical struct {
		FullyQualifiedName string `json:"fullyQualifiedName"`
	}
)

func (r *envoyReport) sarif() sarifLog {
	driver := sarifDriver{Name: "keyporter", Version: service.BuildVersion().Version, InformationURI: "https://github.com/keyporter/keyporter"}
	index := map[string]int{} // ID of a rule → its index in driver.Rules
	for i, rule := range inspect.Rules() {
		described := sarifRule{
			ID: rule.ID, ShortDescription: sarifText{Text: rule.Title}, FullDescription: sarifText{Text: rule.Why},
			Help: sarifText{Text: rule.Fix, Markdown: "```yaml\n" + rule.Fix + "\n```"},
		}
		described.DefaultConfiguration.Level = rule.Severity
		driver.Rules, index[rule.ID] = append(driver.Rules, described), i
	}
	run := sarifRun{Tool: sarifTool{driver}, Results: []sarifResult{}}
	for _, f := range r.Findings {
		place := sarifLocation{Logical: []sarifLogical{{string(f.Path)}}}
		place.Physical.Artifact.URI = r.uri()
		if f.Line > 0 {
			place.Physical.Region = &sarifRegion{f.Line}
		}
		run.Results = append(run.Results, sarifResult{
			RuleID: f.ID, RuleIndex: index[f.ID], Level: f.Severity,
			Message:   sarifText{Text: fmt.Sprintf("%s: %s. %s", f.Title, f.What, f.Why)},
			Locations: []sarifLocation{place},
		})
	}
	return sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}}
}

// uri returns the source as a SARIF URI: a file relative to the working directory, or unchanged.
func (r *envoyReport) uri() string {
	if !r.isFile {
		return strings.ReplaceAll(r.Source, " ", "%20")
	}
	file := url.URL{Path: filepath.ToSlash(r.Source)}
	if filepath.IsAbs(r.Source) {
		file.Scheme = "file"
	}
	return file.String()
}
