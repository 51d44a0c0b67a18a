package parts

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// EnvoyConfig configures an Envoy. Only Bootstrap is required.
type EnvoyConfig struct {
	Bootstrap   []byte   // the configuration, YAML or JSON
	LogLevel    string   // "": warning
	Concurrency int      // worker threads; 0: 1
	Args        []string // more arguments, for example --service-node
	Dir         string   // folder for envoy.yaml; "": a folder that is removed when Envoy ends
	Path        string   // the binary; "": the result of FindEnvoy
}

// Envoy is a running Envoy.
type Envoy struct {
	*Process
	admin string
}

// ownAdmin is merged into a bootstrap without an admin interface, which StartEnvoy needs to know
// when Envoy is ready.
const ownAdmin = `admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}`

var adminSection = regexp.MustCompile(`(?m)^admin:|"admin"\s*:`)

// StartEnvoy starts an Envoy and returns once it serves. ctx bounds only that wait: Envoy then runs
// until Stop, Kill or the end of this process.
func StartEnvoy(ctx context.Context, config EnvoyConfig) (*Envoy, error) {
	path := config.Path
	if path == "" {
		found, err := FindEnvoy()
		if err != nil {
			return nil, err
		}
		path = found
	}
	dir, cleanUp, err := partDir(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("starting Envoy: %w", err)
	}
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, config.Bootstrap, 0o600); err != nil {
		cleanUp()
		return nil, fmt.Errorf("starting Envoy: %w", err)
	}
	adminFile := filepath.Join(dir, "admin-address")
	_ = os.Remove(adminFile) // from an earlier Envoy in the caller's folder
	process, err := Start(Command{Path: path, Args: envoyArgs(config, file, adminFile), ended: cleanUp})
	if err != nil {
		cleanUp()
		return nil, err
	}
	envoy := &Envoy{Process: process}
	if err := awaitReady(ctx, process, func(ctx context.Context) bool { return envoy.ready(ctx, adminFile) }); err != nil {
		process.Kill()
		return nil, err
	}
	return envoy, nil
}

func envoyArgs(config EnvoyConfig, file, adminFile string) []string {
	level := config.LogLevel
	if level == "" {
		level = "warning"
	}
	args := []string{
		"--config-path", file,
		"--admin-address-path", adminFile,
		"--concurrency", strconv.Itoa(max(1, config.Concurrency)),
		"--disable-hot-restart", // several Envoys on one machine would share the same memory
		"--log-level", level,
		// so that Output soon contains the access log; the default is 10 s
		"--file-flush-interval-msec", "200",
	}
	if !adminSection.Match(config.Bootstrap) {
		args = append(args, "--config-yaml", ownAdmin)
	}
	return append(args, config.Args...)
}

// ready asks the admin interface at the address that Envoy wrote to adminFile.
func (e *Envoy) ready(ctx context.Context, adminFile string) bool {
	address, err := os.ReadFile(adminFile)
	if err != nil || len(address) == 0 {
		return false
	}
	e.admin = strings.TrimSpace(string(address))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.admin+"/ready", nil)
	if err != nil {
		return false
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body) // only the status matters
	return response.StatusCode == http.StatusOK
}

// Admin returns host:port of the admin interface: that of the bootstrap, with the actual port if it
// is 0 there, or else one of its own on the loopback interface.
func (e *Envoy) Admin() string { return e.admin }

// partDir returns the folder for a program's files and a function that removes it, unless the
// caller named the folder.
func partDir(named string) (dir string, cleanUp func(), err error) {
	if named != "" {
		return named, func() {}, nil
	}
	dir, err = tempDir()
	if err != nil {
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil // a later start removes leftovers
}
