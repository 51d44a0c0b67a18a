package main

import (
	"encoding/json"
	"fmt"
	"os"
)

// Row is one row of the table with all of its samples, as `--json` writes it.
type Row struct {
	Way       string   `json:"way"`
	Server    string   `json:"server"`
	Answer    string   `json:"answer"`
	Yardstick bool     `json:"yardstick"`
	Samples   []Sample `json:"samples"`
}

// Sample is the result of one round. Times are in microseconds.
type Sample struct {
	PerSecond   float64 `json:"answers_per_second"`
	CPU         float64 `json:"server_cpu_us"`
	EnvoyCPU    float64 `json:"envoy_cpu_us"`
	ClientCPU   float64 `json:"load_cpu_us"`
	Allocations float64 `json:"allocations"`
	P50         float64 `json:"p50_us"`
	P99         float64 `json:"p99_us"`
	P999        float64 `json:"p999_us"`
	AloneP50    float64 `json:"alone_p50_us"`
	AloneP99    float64 `json:"alone_p99_us"`
	Others      float64 `json:"machine_used_by_others"`
}

func writeJSON(path string, rows []*row, machine string) error {
	document := struct {
		Machine string `json:"machine"`
		Rows    []Row  `json:"rows"`
	}{Machine: machine}
	for _, r := range rows {
		one := Row{Way: r.way, Server: r.server, Answer: r.answer, Yardstick: r.yardstick}
		for _, s := range r.samples {
			one.Samples = append(one.Samples, Sample{s.perSecond, s.cpu, s.envoyCPU, s.clientCPU, s.mallocs, s.p50, s.p99, s.p999, s.aloneP50, s.aloneP99, s.otherCPU})
		}
		document.Rows = append(document.Rows, one)
	}
	text, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the samples: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the samples: %w", err)
	}
	return nil
}
