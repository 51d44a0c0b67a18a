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

// The figures come from /proc, so the bench requires Linux.

// tick is the unit of CPU time in /proc on every Linux that Go runs on.
const tick = 10 * time.Millisecond

var errProc = errors.New("not what Linux writes there")

// cpuTime returns the CPU time of a process with all its threads, including ended ones.
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

// familyTime returns the CPU time of a process and its children, including children that ended and
// were waited for.
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

// parseFamily returns the CPU time of a process if it is the one with this PID or a child of it.
// For the process itself it includes the fields cutime and cstime, the 16th and the 17th.
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

// parseStat adds the fields utime and stime, the 14th and the 15th. The second field contains the
// program's name in brackets and may contain spaces.
func parseStat(stat []byte) (time.Duration, error) {
	fields, err := statFields(stat)
	if err != nil {
		return 0, err
	}
	return sumTicks(fields[11:13])
}

// statFields returns the fields from the third on, with at least those that the callers need.
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

// machineTime returns the CPU time that the whole machine has used, and the time that it could have
// used.
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

// parseMachineStat parses the first line: user, nice, system, idle, iowait, irq, softirq, steal,
// and two that are already included in the others.
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

// mallocsMetric is the name of the number of allocated objects in Prometheus's collector for Go.
const mallocsMetric = "go_memstats_mallocs_total"

// mallocs returns the number of objects that the server has allocated since its start.
func (s *server) mallocs(ctx context.Context) (float64, error) { return s.metric(ctx, mallocsMetric) }

// metric returns one metric of the server; name includes its labels as written.
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

// get reads a path from the operators' listener.
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

// Fields about a process's memory.
const (
	memoryNow  = "VmRSS"
	memoryMost = "VmHWM" // maximum since the start
)

// memory returns the memory of a process, in bytes.
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
