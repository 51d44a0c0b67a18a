package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeTable can be repeated, replaces the text between the markers, and changes nothing else in
// the file.
func TestWriteTableReplacesWhatIsBetweenTheMarkers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "README.md")
	text := "# Bench\n\n" + tableMarkers.start + "\nold\n" + tableMarkers.end + "\n\nThe end.\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"| a |\n", "| b |\n| c |\n"} {
		if err := writeTable(file, tableMarkers, table); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if want := "# Bench\n\n" + tableMarkers.start + "\n\n" + table + "\n" + tableMarkers.end + "\n\nThe end.\n"; string(got) != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

func TestWriteTableRefusesAFileWithoutOnePairOfMarkers(t *testing.T) {
	for _, text := range []string{
		"",
		tableMarkers.start + "\n",
		tableMarkers.end + "\n" + tableMarkers.start + "\n",
		tableMarkers.start + "\n" + tableMarkers.end + "\n" + tableMarkers.start + "\n" + tableMarkers.end + "\n",
	} {
		if _, err := tableMarkers.replace([]byte(text), "| a |\n"); !errors.Is(err, errMarkers) {
			t.Errorf("%q: %v, want %v", text, err, errMarkers)
		}
	}
}

// A figure is compared with the yardstick of its own way.
func TestRatiosAreToTheYardstickOfTheSameWay(t *testing.T) {
	rows := []*row{
		{way: "straight", server: "empty", yardstick: true, samples: []sample{{perSecond: 1000, cpu: 30, aloneP50: 100}}},
		{way: "straight", server: "ours", samples: []sample{{perSecond: 2000, cpu: 15, aloneP50: 90}}},
		{way: "through Envoy", server: "empty", yardstick: true, envoy: &server{}, samples: []sample{{perSecond: 500, cpu: 40, aloneP50: 400}}},
		{way: "through Envoy", server: "ours", envoy: &server{}, samples: []sample{{perSecond: 750, cpu: 30, aloneP50: 200, envoyCPU: 44}}},
	}
	lines := strings.Split(render(rows, "a machine"), "\n")
	for i, want := range map[int]string{
		2: "| straight | empty | 1.0k ± 0 % | 1.00 | 30.0 | 1.00 | – |",
		3: "| straight | ours | 2.0k ± 0 % | 2.00 | 15.0 | 0.50 | – |",
		4: "| through Envoy | empty | 0.5k ± 0 % | 1.00 | 40.0 | 1.00 | 0.0 |",
		5: "| through Envoy | ours | 0.8k ± 0 % | 1.50 | 30.0 | 0.75 | 44.0 |",
	} {
		got := strings.Replace(lines[i], "|  |", "|", 1) // this row names no answer
		if !strings.HasPrefix(got, want) {
			t.Errorf("line %d: %s\nwant     %s", i, got, want)
		}
		if strings.Count(got, "|") != strings.Count(lines[0], "|")-1 {
			t.Errorf("line %d has another number of columns than the head: %s", i, lines[i])
		}
	}
}

func TestBusyMachineIsMentioned(t *testing.T) {
	for others, want := range map[float64]bool{0: false, 0.04: false, 0.2: true} {
		text := conditions([]*row{{samples: []sample{{otherCPU: others}}}, {samples: []sample{{}}}})
		if got := strings.Contains(text, "not idle"); got != want {
			t.Errorf("others used %v: %s", others, text)
		}
	}
}
