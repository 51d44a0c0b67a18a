package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/keyporter/keyporter/internal/parts"
)

// describeMachine returns one line about the machine and the measured versions. keyporter is the
// name of the measured program.
func describeMachine(ctx context.Context, keyporter string) (string, error) {
	envoy, err := envoyVersion(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d cores (%s, %s), %s, grpc-go %s, Envoy %s, keyporter %s",
		runtime.NumCPU(), processor(), runtime.GOARCH, runtime.Version(), grpcVersion(), envoy, keyporter), nil
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

// grpcVersion returns the version that this program was built with: the same as the empty server's,
// which is in the same module.
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

// processor returns the name of the processor.
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

// revision returns the commit of the checkout that Keyporter is built from. It asks Git, because
// the build may be configured not to include it.
func revision(ctx context.Context, checkout string) string {
	commit, err := output(ctx, "git", "-C", checkout, "describe", "--always", "--dirty", "--abbrev=12")
	if err != nil {
		return "of unknown commit"
	}
	return strings.TrimSpace(commit)
}
