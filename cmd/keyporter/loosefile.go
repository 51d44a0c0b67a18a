package main

import (
	"fmt"
	"io/fs"
	"os"
	"runtime"
)

// Permissions of all users of the machine.
const (
	othersRead  fs.FileMode = 0o004
	othersWrite fs.FileMode = 0o002
)

// looseFiles returns a complaint for each file with a secret that gives others more permissions
// than it should. It skips files without meaningful permissions, such as pipes, and any file on
// Windows.
func (c *config) looseFiles(others fs.FileMode) (all []string) {
	if runtime.GOOS == "windows" {
		return nil
	}
	files := map[string]string{"grpc-token-file": c.GRPCTokenFile, "settle-token-file": c.SettleTokenFile, "seal-key-file": c.SealKeyFile}
	if c.JWT.FromFile() {
		files["jwt-keys"] = c.JWT.Keys
	}
	for _, s := range settings {
		file, known := files[s.name]
		if s.of != "" {
			file, known = c.values[s.name], true
		}
		info, err := os.Stat(file)
		if !known || err != nil || !info.Mode().IsRegular() { // the code that reads it reports it
			continue
		}
		switch loose := info.Mode().Perm() & others; {
		case loose&othersWrite != 0:
			all = append(all, fmt.Sprintf("--%s: everybody on this machine may change %s: chmod o-w %[2]s", s.name, file))
		case loose&othersRead != 0 && s.name != "jwt-keys": // these keys are public
			all = append(all, fmt.Sprintf("--%s: everybody on this machine may read %s: chmod o-rwx %[2]s; in a container, where nobody else is, it does no harm", s.name, file))
		}
	}
	return all
}
