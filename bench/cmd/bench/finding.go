package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// finding is one line of the table about growth: a figure, step by step.
type finding struct {
	what  string
	unit  string
	steps []*step
	goal  goal
	apart bool // do not compare the steps with the first
}

// step is one size in the growth, or one of several compared cases.
type step struct {
	label   string
	samples []float64 // one per round
}

// goal is the target for a figure.
type goal struct {
	text string
	met  func(figures []float64) bool // nil: there is no goal
}

// within is the goal that no step differs from the first by more than this fraction of it.
func within(part float64) goal {
	return goal{fmt.Sprintf("± %.0f %%", part*100), func(figures []float64) bool {
		return !slices.ContainsFunc(ratios(figures), func(r float64) bool { return r < 1-part || r > 1+part })
	}}
}

// atMost is the goal that no step exceeds the given multiple of the first.
func atMost(times float64) goal {
	return goal{fmt.Sprintf("× ≤ %.1f", times), func(figures []float64) bool { return slices.Max(ratios(figures)) <= times }}
}

// atLeast is the goal that the last step is at least the given multiple of the first.
func atLeast(times float64) goal {
	return goal{fmt.Sprintf("× ≥ %.1f", times), func(figures []float64) bool { return ratios(figures)[len(figures)-1] >= times }}
}

// below is the goal that no figure exceeds bound.
func below(bound float64) goal {
	return goal{"≤ " + number3(bound), func(figures []float64) bool { return slices.Max(figures) <= bound }}
}

// newFinding returns a finding with one step per label.
func newFinding(what, unit string, goal goal, labels ...string) *finding {
	f := &finding{what: what, unit: unit, goal: goal}
	for _, label := range labels {
		f.steps = append(f.steps, &step{label: label})
	}
	return f
}

// figures returns the median of each step, and the largest spread.
func (f *finding) figures() (figures []float64, spread float64) {
	for _, s := range f.steps {
		middle, apart := median(s.samples)
		figures, spread = append(figures, middle), max(spread, apart)
	}
	return figures, spread
}

// ratios returns the ratio of each figure to the first.
func ratios(figures []float64) []float64 {
	var all []float64
	for _, f := range figures {
		all = append(all, f/figures[0])
	}
	return all
}

// inTurn measures all steps in turn, round after round, in reverse order every other round, as
// measureAll does.
func inTurn(ctx context.Context, rounds, steps int, measure func(ctx context.Context, step int) error) error {
	for round := range rounds {
		for i := range steps {
			if round%2 == 1 {
				i = steps - 1 - i
			}
			if err := measure(ctx, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// renderFindings returns the table in Markdown.
func renderFindings(findings []*finding, machine string) string {
	var table strings.Builder
	line(&table, []string{"what", "steps", "figures", "×", "±", "goal", "met"})
	line(&table, []string{"---", "---", "---", "---", "---:", "---", "---"})
	for _, f := range findings {
		line(&table, f.cells())
	}
	fmt.Fprintf(&table, "\n%s. Medians; ± is the round furthest off. Absolute figures are of this machine only.\n", machine)
	return table.String()
}

func (f *finding) cells() []string {
	figures, spread := f.figures()
	var labels, values, compared []string
	for i, r := range ratios(figures) {
		labels, values = append(labels, f.steps[i].label), append(values, number3(figures[i]))
		compared = append(compared, fmt.Sprintf("%.2f", r))
	}
	if f.apart || len(figures) == 1 || figures[0] == 0 {
		compared = []string{"–"}
	}
	met := "–"
	if f.goal.met != nil {
		met = map[bool]string{true: "yes", false: "**no**"}[f.goal.met(figures)]
	}
	const next = " → "
	return []string{
		f.what, strings.Join(labels, next), strings.TrimSpace(strings.Join(values, next) + " " + f.unit),
		strings.Join(compared, next), fmt.Sprintf("%.0f %%", spread*100), f.goal.text, met,
	}
}

// number3 formats a number with three significant digits.
func number3(v float64) string {
	switch {
	case math.Abs(v) >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

// count formats a count as briefly as possible: 300k, 1M.
func count(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return strconv.Itoa(n/1_000_000) + "M"
	case n >= 1000 && n%1000 == 0:
		return strconv.Itoa(n/1000) + "k"
	default:
		return strconv.Itoa(n)
	}
}

func counts(all []int) []string {
	var texts []string
	for _, n := range all {
		texts = append(texts, count(n))
	}
	return texts
}

// Finding is a finding as `--json` writes it.
type Finding struct {
	What  string `json:"what"`
	Unit  string `json:"unit"`
	Goal  string `json:"goal,omitempty"`
	Met   *bool  `json:"met,omitempty"`
	Steps []Step `json:"steps"`
}

// Step is one size in the growth, with all of its samples.
type Step struct {
	Label   string    `json:"label"`
	Median  float64   `json:"median"`
	Samples []float64 `json:"samples"`
}

func writeFindings(path string, findings []*finding, machine string) error {
	document := struct {
		Machine  string    `json:"machine"`
		Findings []Finding `json:"findings"`
	}{Machine: machine}
	for _, f := range findings {
		figures, _ := f.figures()
		one := Finding{What: f.what, Unit: f.unit, Goal: f.goal.text}
		if f.goal.met != nil {
			met := f.goal.met(figures)
			one.Met = &met
		}
		for i, s := range f.steps {
			one.Steps = append(one.Steps, Step{s.label, figures[i], s.samples})
		}
		document.Findings = append(document.Findings, one)
	}
	text, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the findings: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the findings: %w", err)
	}
	return nil
}
