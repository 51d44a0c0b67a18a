package parts

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// reachable returns a folder with the programs of bin that user can run. If other users cannot
// enter root's checkout, as below /root, it is a copy of the installation in the temporary folder,
// made once and shared by all later processes.
func reachable(bin string, user *account) (string, error) {
	if user == nil || readableByAll(filepath.Join(bin, "postgres")) {
		return bin, nil
	}
	bin, err := filepath.EvalSymlinks(bin)
	if err != nil {
		return "", err
	}
	name, err := copyName(bin)
	if err != nil {
		return "", err
	}
	tree := filepath.Dir(bin)
	distribution := filepath.Dir(tree)
	copied := filepath.Join(name, filepath.Base(distribution), filepath.Base(tree), filepath.Base(bin))
	if err := checkCopy(name); !errors.Is(err, fs.ErrNotExist) {
		return copied, err
	}
	building, err := tempDir()
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(building) // fails after the rename, which is fine
	if err := os.Chmod(building, 0o755); err != nil {
		return "", err
	}
	// The programs of the wheel load their shared libraries from ../../../<package>.libs.
	for _, part := range []string{tree, distribution + ".libs"} {
		inside, err := filepath.Rel(filepath.Dir(distribution), part)
		if err != nil {
			return "", err
		}
		err = copyTree(part, filepath.Join(building, inside))
		if err != nil && (part == tree || !errors.Is(err, fs.ErrNotExist)) {
			return "", fmt.Errorf("copying PostgreSQL: %w", err)
		}
	}
	if err := os.Rename(building, name); err != nil {
		// Another process may have made the copy first; that copy is as good.
		return copied, checkCopy(name)
	}
	return copied, nil
}

// readableByAll reports whether every user may reach and run a program.
func readableByAll(program string) bool {
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		return false
	}
	info, err := os.Stat(real)
	return err == nil && info.Mode().Perm()&0o005 == 0o005 && openToAll(filepath.Dir(real))
}

// copyName returns the path of the copy of an installation. Other versions have another size or
// modification time, and therefore another name.
func copyName(bin string) (string, error) {
	info, err := os.Stat(filepath.Join(bin, "postgres"))
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%d\n%d", bin, info.Size(), info.ModTime().UnixNano()))
	return filepath.Join(tempBase(), fmt.Sprintf("%spostgres-%x", tempPrefix, key[:8])), nil
}

// checkCopy verifies that this user owns the copy: in the shared temporary folder, another user
// could otherwise make us run any program.
func checkCopy(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() || !ownedByUs(info) || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a folder that only this user can write to: remove it", dir)
	}
	return nil
}

// copyTree copies the programs, libraries and data files below from, readable by all. It skips
// files that are only needed to compile against PostgreSQL.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, inside)
		switch {
		case entry.IsDir() && entry.Name() == "include":
			return fs.SkipDir
		case entry.IsDir():
			return errors.Join(os.MkdirAll(target, 0o755), os.Chmod(target, 0o755)) // Chmod: as in copyFile
		case strings.HasSuffix(path, ".a"):
			return nil
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if info.Mode().Perm()&0o100 != 0 {
		mode = 0o755
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	// Chmod: the umask may have removed permissions
	return errors.Join(err, out.Chmod(mode), out.Close())
}
