// Package sealfile is the file with the private halves of the seal key, with which the page shows
// users their keys.
package sealfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyporter/keyporter/apikey"
)

// ErrLocked is returned by [LockDirectory] while another process holds the lock.
var ErrLocked = errors.New("another rotation is at work there: wait until it is done")

// Read reads the private halves, newest first.
func Read(path string) (apikey.SealKeys, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: the private half is read again and again; `keyporter seal init -` prints a new one", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	keys, err := apikey.ParseSealKeys(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

// Make makes a key pair and writes its private half to a new file, which only its owner can read.
func Make(path string) (apikey.SealKeys, error) {
	key, err := apikey.NewSealKey()
	if err != nil {
		return nil, err
	}
	content, err := key.Encode()
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		os.Remove(path) // half a key opens nothing
		return nil, err
	}
	return apikey.SealKeys{key}, nil
}

// Write replaces the file atomically: readers see the old or the new one, and the new one is on
// disk after a power failure. It overwrites the leftovers of a killed process.
func Write(path string, keys apikey.SealKeys) (err error) {
	content, err := keys.Encode()
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return fmt.Errorf("the private seal key: %w", err)
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the private seal key: %w", err)
	}
	file, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("the private seal key: %w", err)
	}
	defer os.Remove(fresh)
	_, err = file.Write(content)
	if err = errors.Join(err, sameOwner(file, path), file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
