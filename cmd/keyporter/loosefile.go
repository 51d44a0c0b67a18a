package main

import (
	"fmt"
	"io/fs"
	"os"
	"runtime"
)

// others are the permissions of everybody on the machine.
const (
	othersRead  fs.FileMode = 0o004
	othersWrite fs.FileMode = 0o002
)

// looseFiles says of each file with a secret that others may do with it what they should not. What
// has no permissions to look at, such as a pipe or any file on Windows, is left out.
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
		if !known || err != nil || !info.Mode().IsRegular() { // whoever reads it tells
			continue
		}
		switch loose := info.Mode().Perm() & others; {
		case loose&othersWrite != 0:
			all = append(all, fmt.Sprintf("--%s: everybody on this machine may change %s: chmod o-w %[2]s", s.name, file))
		case loose&othersRead != 0 && s.name != "jwt-keys": // which is public
			all = append(all, fmt.Sprintf("--%s: everybody on this machine may read %s: chmod o-rwx %[2]s; in a container, where nobody else is, it does no harm", s.name, file))
		}
	}
	return all
}
