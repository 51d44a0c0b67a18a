//go:build linux

package parts_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// A process that is killed, and so cannot clean up, leaves no running or paused program behind. The
// next process that starts a part removes its folders.
func TestKilledOwnerLeavesNothing(t *testing.T) {
	partstest.Slow(t)
	requireAll(t)
	for _, mode := range []string{"run", "pause"} {
		t.Run(mode, func(t *testing.T) {
			temp := openTempDir(t)
			owner, pids := startOwner(t, temp, mode)
			if len(pids) < 4 {
				t.Fatalf("%d processes: PostgreSQL's are missing", len(pids))
			}
			for _, pid := range pids[:3] { // PostgreSQL's other processes come and go
				if !parts.Running(pid) {
					t.Fatalf("process %d does not run while its owner does", pid)
				}
			}
			if err := owner.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = owner.Wait() // "signal: killed"
			for _, pid := range pids {
				awaitEnd(t, pid)
			}

			if left := folders(t, temp); len(left) != 3 {
				t.Errorf("%d folders left by three killed programs: %q", len(left), left)
			}
			next := ownerCommand(t, temp, "stop")
			if out, err := next.CombinedOutput(); err != nil {
				t.Fatalf("next owner: %v\n%s", err, out)
			}
			if left := folders(t, temp); len(left) != 0 {
				t.Errorf("still there after the next start: %q", left)
			}
		})
	}
}

func requireAll(t *testing.T) {
	t.Helper()
	partstest.Envoy(t)
	_, err := parts.FindValkey()
	partstest.Require(t, err)
	_, err = parts.FindPostgres(18)
	partstest.Require(t, err)
}

func ownerCommand(t *testing.T, temp, mode string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asOwner+"="+mode, "TMPDIR="+temp)
	return cmd
}

func startOwner(t *testing.T, temp, mode string) (*exec.Cmd, []int) {
	t.Helper()
	owner := ownerCommand(t, temp, mode)
	owner.Stderr = os.Stderr
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Process.Kill() }) // already ended unless the test failed
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("reading the owner's PIDs: %v", err)
	}
	var pids []int
	if err := json.Unmarshal(line, &pids); err != nil {
		t.Fatal(err)
	}
	return owner, pids
}

func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	partstest.EventuallyNil(t, fmt.Sprint("the end of process ", pid), func() error {
		if !parts.Running(pid) {
			return nil
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return fmt.Errorf("%q still runs", name)
	})
}

// folders returns the programs' folders in temp, without the copy of PostgreSQL that stays there if
// others cannot enter root's checkout.
func folders(t *testing.T, temp string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(temp, "keyporter-parts-[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
