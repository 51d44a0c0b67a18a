package config

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
)

// Permissions of all users of the machine.
const (
	OthersRead  fs.FileMode = 0o004
	OthersWrite fs.FileMode = 0o002
)

// LooseFiles returns a complaint for each file with a secret that gives others more permissions
// than it should. It skips files without meaningful permissions, such as pipes, and any file on
// Windows.
func (c *Config) LooseFiles(others fs.FileMode) (all []string) {
	if runtime.GOOS == "windows" {
		return nil
	}
	files := map[string]string{"grpc-token-file": c.GRPCTokenFile, "settle-token-file": c.SettleTokenFile, "admin-tokens-file": c.AdminTokensFile, "webhooks-file": c.WebhooksFile, "seal-key-file": c.SealKeyFile}
	maps.Copy(files, c.tlsKeys())
	if c.JWT.FromFile() {
		files["jwt-keys"] = c.JWT.Keys
	}
	for _, s := range settings {
		file, known := files[s.Name]
		if s.of != "" {
			file, known = c.values[s.Name], true
		}
		info, err := os.Stat(file)
		if !known || err != nil || !info.Mode().IsRegular() { // the code that reads it reports it
			continue
		}
		switch loose := info.Mode().Perm() & others; {
		case loose&OthersWrite != 0:
			all = append(all, fmt.Sprintf("--%s: everybody on this machine may change %s: chmod o-w %[2]s", s.Name, file))
		case loose&OthersRead != 0 && s.Name != "jwt-keys": // these keys are public
			all = append(all, fmt.Sprintf("--%s: everybody on this machine may read %s: chmod o-rwx %[2]s; in a container, where nobody else is, it does no harm", s.Name, file))
		}
	}
	return all
}
