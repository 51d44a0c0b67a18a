package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestGoals(t *testing.T) {
	for name, c := range map[string]struct {
		goal    goal
		figures []float64
		met     bool
	}{
		"within":                {within(0.1), []float64{100, 109, 91}, true},
		"within, too much":      {within(0.1), []float64{100, 111}, false},
		"within, too little":    {within(0.1), []float64{100, 89, 100}, false},
		"at most":               {atMost(1.3), []float64{100, 130}, true},
		"at most, more":         {atMost(1.3), []float64{100, 131}, false},
		"at least":              {atLeast(1), []float64{100, 100}, true},
		"at least, less":        {atLeast(1), []float64{100, 99}, false},
		"below":                 {below(512), []float64{-3, 512}, true},
		"below, one of them no": {below(512), []float64{513, 1}, false},
	} {
		if got := c.goal.met(c.figures); got != c.met {
			t.Errorf("%s: %v is met: %t, want %t", name, c.figures, got, c.met)
		}
	}
}

func TestFindingAsALine(t *testing.T) {
	f := newFinding("keys", "µs", within(0.1), counts([]int{1000, 300_000, 1_000_000})...)
	for i, samples := range [][]float64{{40, 39, 41}, {42, 42, 42}, {48.12, 48.12, 48.12}} {
		f.steps[i].samples = samples
	}
	const want = "| keys | 1k → 300k → 1M | 40 → 42 → 48.1 µs | 1.00 → 1.05 → 1.20 | 2 % | ± 10 % | **no** |"
	if table := renderFindings([]*finding{f}, "a machine"); !strings.Contains(table, want) {
		t.Errorf("got  %s\nwant %s", table, want)
	}
}

// Each step is measured once in a round, in reverse order every other round, until one fails.
func TestInTurn(t *testing.T) {
	var order []int
	failure := errors.New("failure")
	err := inTurn(t.Context(), 3, 3, func(_ context.Context, i int) error {
		if order = append(order, i); len(order) == 8 {
			return failure
		}
		return nil
	})
	if want := []int{0, 1, 2, 2, 1, 0, 0, 1}; !slices.Equal(order, want) || err != failure {
		t.Errorf("%v, %v; want %v and the failure", order, err, want)
	}
}
