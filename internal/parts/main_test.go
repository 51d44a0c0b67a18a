package parts_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// asOwner in the environment makes this test binary a program that starts parts, prints their PIDs
// and waits to be killed. Its value selects an action before the wait.
const asOwner = "KEYPORTER_TEST_PARTS_OWNER"

func TestMain(m *testing.M) {
	if mode := os.Getenv(asOwner); mode != "" {
		if err := own(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	partstest.Main(m)
}

// openTempDir is t.TempDir for programs that run as the user nobody, which cannot enter t.TempDir.
func openTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keyporter-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func own(mode string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	valkey, err := parts.StartValkey(ctx, parts.ValkeyConfig{})
	if err != nil {
		return err
	}
	if mode == "stop" {
		return valkey.Stop()
	}
	envoy, err := parts.StartEnvoy(ctx, parts.EnvoyConfig{Bootstrap: []byte("{}")})
	if err != nil {
		return err
	}
	postgres, err := parts.StartPostgres(ctx, parts.PostgresConfig{})
	if err != nil {
		return err
	}
	if mode == "pause" {
		for _, part := range []interface{ Pause() }{valkey, envoy, postgres} {
			part.Pause()
		}
	}
	pids := append([]int{valkey.PID(), envoy.PID(), postgres.PID()}, parts.Descendants(postgres.PID())...)
	if err := json.NewEncoder(os.Stdout).Encode(pids); err != nil {
		return err
	}
	select {}
}
