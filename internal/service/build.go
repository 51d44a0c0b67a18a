package service

import (
	"fmt"
	"runtime/debug"
)

// Build describes the build of this program.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
}

// String returns one line.
func (b Build) String() string {
	return fmt.Sprintf("keyporter %s (commit %s, %s)", b.Version, b.Commit, b.Go)
}

// BuildVersion returns the build of this program.
func BuildVersion() Build {
	b := Build{Version: "unknown", Commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version, b.Go = info.Main.Version, info.GoVersion
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Commit = s.Value
		}
	}
	return b
}
