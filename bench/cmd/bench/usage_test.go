package main

import (
	"errors"
	"os"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	for stat, want := range map[string]time.Duration{
		"7 (keyporter) S 1 7 7 0 -1 4194304 9 8 0 0 150 50 3 4 20 0 8 0 1 1 1": 2 * time.Second,
		"7 (a ) b (c)) S 1 7 7 0 -1 4194304 9 8 0 0 1 2 3 4 20 0 8 0 1 1 1":    30 * time.Millisecond,
		"7 (keyporter) S 1 7 7 0 -1 4194304 9 8 0 0 one 50 3 4 20 0 8 0 1 1 1": -1,
		"7 (keyporter) S 1 7 7":            -1,
		"7 keyporter S 1 7 7 0 -1 4194304": -1,
		"":                                 -1,
	} {
		got, err := parseStat([]byte(stat))
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("%q: %v, %v; want %v", stat, got, err, want)
		}
	}
}

// PostgreSQL is a process with many children, and some of them have ended.
func TestParseFamily(t *testing.T) {
	for stat, want := range map[string]time.Duration{
		// the process itself, and its ended children
		"7 (postgres) S 1 7 7 0 -1 4194304 9 8 0 0 150 50 30 20 20 0 8 0 1 1 1": 2500 * time.Millisecond,
		"9 (a ) S 7 (b) S 7 7 7 0 -1 4194304 9 8 0 0 1 2 3 4 20 0 8 0 1 1 1":    30 * time.Millisecond, // a child
		"17 (other) S 1 7 7 0 -1 4194304 9 8 0 0 150 50 30 20 20 0 8 0 1 1 1":   0,
		"9 (postgres) S 7 7 7 0 -1 4194304 9 8 0 0 one 2 3 4 20 0 8 0 1 1 1":    -1,
		"7 (postgres) S 1 7 7": -1,
		"":                     -1,
	} {
		got, err := parseFamily([]byte(stat), 7)
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("%q: %v, %v; want %v", stat, got, err, want)
		}
	}
	if _, err := familyTime(os.Getpid()); err != nil {
		t.Error(err)
	}
}

func TestParseMachineStat(t *testing.T) {
	busy, possible, err := parseMachineStat([]byte("cpu  100 10 50 800 20 5 10 5 99 99\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	if busy != 1800*time.Millisecond || possible != 10*time.Second || err != nil {
		t.Errorf("busy %v of %v, %v; want 1.8s of 10s", busy, possible, err)
	}
	for _, stat := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu a b c d e f g h"} {
		if _, _, err := parseMachineStat([]byte(stat)); err == nil {
			t.Errorf("%q: no error", stat)
		}
	}
}

func TestOwnCPUTimeIsReadable(t *testing.T) {
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if busy, possible, err := machineTime(); err != nil || busy <= 0 || busy >= possible {
		t.Errorf("busy %v of %v, %v", busy, possible, err)
	}
}

func TestParseMetric(t *testing.T) {
	const metrics = "# HELP a_total A.\n# TYPE a_total counter\na_total_of 3\na_total 2.0327023e+07\nb{c=\"d\"} 7\n"
	for name, want := range map[string]float64{"a_total": 20327023, `b{c="d"}`: 7} {
		if got, err := parseMetric(metrics, name); got != want || err != nil {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	if _, err := parseMetric(metrics, "a"); !errors.Is(err, errNoMetric) {
		t.Errorf("%v, want %v", err, errNoMetric)
	}
}

func TestParseMemory(t *testing.T) {
	status := "Name:\tkeyporter\nVmHWM:\t   50001 kB\nVmRSS:\t   43012 kB\nThreads:\t9\n"
	for what, want := range map[string]float64{memoryNow: 43012, memoryMost: 50001} {
		if got, err := parseMemory(status, what); got != want || err != nil {
			t.Errorf("%s: %v, %v; want %v", what, got, err, want)
		}
	}
	if _, err := parseMemory("Name:\tkeyporter\n", memoryNow); err == nil {
		t.Error("no error without the figure")
	}
}

// The usage of the measured programs does not count as that of others.
func TestOthers(t *testing.T) {
	before := resources{authorizer: 1, envoy: 2, client: 3, busy: 100, possible: 1000}
	after := resources{authorizer: 11, envoy: 12, client: 13, busy: 150, possible: 1100}
	if got := after.othersSince(before); got != 0.2 {
		t.Errorf("%v, want 0.2", got)
	}
}

func TestMedianAndSpread(t *testing.T) {
	for _, c := range []struct {
		figures        []float64
		middle, spread float64
	}{
		{nil, 0, 0},
		{[]float64{4}, 4, 0},
		{[]float64{9, 10, 2}, 9, 7.0 / 9},
		{[]float64{4, 1, 3, 2}, 2.5, 0.6},
	} {
		r := row{}
		for _, f := range c.figures {
			r.samples = append(r.samples, sample{cpu: f})
		}
		if middle, spread := r.median(cpu); middle != c.middle || spread != c.spread {
			t.Errorf("%v: %v ± %v, want %v ± %v", c.figures, middle, spread, c.middle, c.spread)
		}
	}
}
