package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// The operators' listener has profiles only with --pprof. Even then it does not tell the command
// line, which may hold a password.
func TestProfilesAreOffByDefault(t *testing.T) {
	for _, row := range []struct {
		flags  []string
		status map[string]int
	}{
		{nil, map[string]int{"/debug/pprof/": 404, "/debug/pprof/heap": 404, "/debug/pprof/cmdline": 404, "/healthz": 200, "/metrics": 200}},
		{[]string{"--pprof=false"}, map[string]int{"/debug/pprof/": 404}},
		{[]string{"--pprof"}, map[string]int{
			"/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/goroutine?debug=1": 200, "/debug/pprof/profile?seconds=1": 200,
			"/debug/pprof/cmdline": 404, "/healthz": 200, "/metrics": 200, "/nowhere": 404,
		}},
	} {
		t.Run(strings.Join(row.flags, " "), func(t *testing.T) {
			s := serveIn(t, "sqlite://"+filepath.Join(t.TempDir(), "keyporter.db"), row.flags...)
			s.isReady()
			for path, want := range row.status {
				if got, text, err := s.get(path); err != nil || got != want {
					t.Errorf("%s: %d %.200s %v, want %d", path, got, text, err, want)
				}
			}
			s.stop()
			s.ends(0)
		})
	}
}
