package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/keyporter/keyporter/internal/parts"
)

// describeMachine says in one line what was measured on what.
func describeMachine(ctx context.Context, keyporter string) (string, error) {
	envoy, err := envoyVersion(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d cores (%s, %s), %s, grpc-go %s, Envoy %s, keyporter %s",
		runtime.NumCPU(), processor(), runtime.GOARCH, runtime.Version(), grpcVersion(), envoy, revision(keyporter)), nil
}

var envoyVersionText = regexp.MustCompile(`/(\d+\.\d+\.\d+[^/]*)/`)

func envoyVersion(ctx context.Context) (string, error) {
	path, err := parts.FindEnvoy()
	if err != nil {
		return "", err
	}
	out, err := output(ctx, path, "--version")
	if err != nil {
		return "", err
	}
	match := envoyVersionText.FindStringSubmatch(out)
	if match == nil {
		return "", fmt.Errorf("finding Envoy's version in %q", out)
	}
	return match[1], nil
}

// grpcVersion returns the version this program was built with: the same as the empty server's, which
// is of the same module.
func grpcVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, module := range info.Deps {
		if module.Path == "google.golang.org/grpc" {
			return module.Version
		}
	}
	return "unknown"
}

// processor returns what the machine calls its processor.
func processor() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(info)) {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// revision returns the commit a binary was built from.
func revision(binary string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "of unknown origin"
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	commit := settings["vcs.revision"]
	if len(commit) < 12 {
		return "of unknown commit"
	}
	if settings["vcs.modified"] == "true" {
		return commit[:12] + " with changes"
	}
	return commit[:12]
}
