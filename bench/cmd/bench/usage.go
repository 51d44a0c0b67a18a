package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The figures come from /proc, so the bench needs Linux.

// tick is the unit of CPU time in /proc on every Linux that Go runs on.
const tick = 10 * time.Millisecond

var errProc = errors.New("not what Linux writes there")

// cpuTime returns the CPU time that a process has used with all its threads, those that ended included.
func cpuTime(pid int) (time.Duration, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading a program's CPU time: %w", err)
	}
	used, err := parseStat(stat)
	if err != nil {
		return 0, fmt.Errorf("reading a program's CPU time from %s: %w", path, err)
	}
	return used, nil
}

// familyTime returns the CPU time of a process and of its children, those that ended and were waited for included.
func familyTime(pid int) (time.Duration, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	var all time.Duration
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		used, err := parseFamily(stat, pid)
		if err != nil {
			return 0, fmt.Errorf("reading a program's CPU time from %s: %w", path, err)
		}
		all += used
	}
	return all, nil
}

// parseFamily adds up the CPU time of a process, if it is the one with this number or a child of it: of the first one
// also the fields cutime and cstime, the 16th and the 17th.
func parseFamily(stat []byte, pid int) (time.Duration, error) {
	number, _, _ := bytes.Cut(stat, []byte(" "))
	fields, err := statFields(stat)
	if err != nil {
		return 0, err
	}
	switch strconv.Itoa(pid) {
	case string(number):
		return sumTicks(fields[11:15])
	case string(fields[1]):
		return sumTicks(fields[11:13])
	}
	return 0, nil
}

// parseStat adds up the fields utime and stime, the 14th and the 15th. The second holds the
// program's name in brackets and may contain blanks.
func parseStat(stat []byte) (time.Duration, error) {
	fields, err := statFields(stat)
	if err != nil {
		return 0, err
	}
	return sumTicks(fields[11:13])
}

// statFields returns the fields from the third on, as far as anything here needs them at least.
func statFields(stat []byte) ([][]byte, error) {
	name := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[name+1:])
	if name < 0 || len(fields) < 15 {
		return nil, errProc
	}
	return fields, nil
}

func sumTicks(fields [][]byte) (time.Duration, error) {
	var ticks int64
	for _, field := range fields {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, errProc
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// machineTime returns the CPU time that the whole machine has used, and how much it could have used.
func machineTime() (busy, possible time.Duration, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("reading the machine's CPU time: %w", err)
	}
	busy, possible, err = parseMachineStat(stat)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the machine's CPU time from /proc/stat: %w", err)
	}
	return busy, possible, nil
}

// parseMachineStat reads the first line: user, nice, system, idle, iowait, irq, softirq, steal, and
// two that are already counted in the others.
func parseMachineStat(stat []byte) (busy, possible time.Duration, err error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 || string(fields[0]) != "cpu" {
		return 0, 0, errProc
	}
	if possible, err = sumTicks(fields[1:9]); err != nil {
		return 0, 0, err
	}
	idle, err := sumTicks(fields[4:6])
	return possible - idle, possible, err
}

// mallocsMetric is what Go's collector for Prometheus calls the number of allocated objects.
const mallocsMetric = "go_memstats_mallocs_total"

// mallocs returns how many objects the server has allocated since it started.
func (s *server) mallocs(ctx context.Context) (float64, error) { return s.metric(ctx, mallocsMetric) }

// metric returns one metric of the server, which is named with its labels, as it is written.
func (s *server) metric(ctx context.Context, name string) (float64, error) {
	metrics, err := s.get(ctx, "/metrics")
	if err != nil {
		return 0, fmt.Errorf("reading the metrics of %s: %w", s.name, err)
	}
	value, err := parseMetric(metrics, name)
	if err != nil {
		return 0, fmt.Errorf("reading the metrics of %s: %w", s.name, err)
	}
	return value, nil
}

// get asks the operators' listener.
func (s *server) get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.ops+path, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, response.Status)
	}
	return string(body), err
}

var errNoMetric = errors.New("there is none of this name")

func parseMetric(metrics, name string) (float64, error) {
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("%s: %w", name, errNoMetric)
}

// What of a process's memory is asked for.
const (
	memoryNow  = "VmRSS"
	memoryMost = "VmHWM" // since it started
)

// memory returns how much memory a process occupies, in bytes.
func memory(pid int, what string) (float64, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/status"
	status, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading a program's memory: %w", err)
	}
	kilobytes, err := parseMemory(string(status), what)
	if err != nil {
		return 0, fmt.Errorf("reading a program's memory from %s: %w", path, err)
	}
	return kilobytes * 1024, nil
}

func parseMemory(status, what string) (kilobytes float64, err error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, what+":"); ok {
			return strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
		}
	}
	return 0, errProc
}
