package operations

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/sealfile"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// Seal is the key pair that seals copies of keys: its public half in the database, its private half
// in a file on this machine. So its operations are for commands alone, and their texts name them.
type Seal struct{ in *directory.Keys }

// Seal returns the operations on the seal key.
func (o Operator) Seal() Seal { return Seal{directory.NewKeys(o.db)} }

// Make makes a key pair, hands the private half to keep, and then stores the public half in the
// database. This order matters: keys sealed with a public half whose private half is lost could
// never be shown.
func (s Seal) Make(ctx context.Context, keep func(private []byte) error) error {
	_, err := s.in.SealKey(ctx)
	if err == nil {
		return refusal{store.ErrExists, errors.New("the database has a seal key already, and its private half is where it was written: `keyporter seal rotate FILE` replaces both")}
	}
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	key, err := apikey.NewSealKey()
	if err != nil {
		return err
	}
	content, err := key.Encode()
	if err != nil {
		return err
	}
	if err := keep(content); err != nil {
		return err
	}
	if err := s.in.SetSealKey(ctx, key.Public()); err != nil {
		return fmt.Errorf("the private half that was printed opens nothing: %w", err)
	}
	return nil
}

// Init makes a key pair: the private half goes to a file, the public half to the database. It can
// be repeated. It writes the private half first: keys sealed with a public half whose private half
// is lost could never be shown.
func (s Seal) Init(ctx context.Context, path string) error {
	public, err := s.in.SealKey(ctx)
	fresh := errors.Is(err, store.ErrNotFound)
	if err != nil && !fresh {
		return err
	}
	keys, made, err := sealKeyFile(path, fresh)
	if err != nil {
		return fmt.Errorf("the private seal key: %w", err)
	}
	if fresh {
		if err = s.in.SetSealKey(ctx, keys[0].Public()); !errors.Is(err, store.ErrExists) {
			return err
		}
		// another process was first, perhaps with this file
		if public, err = s.in.SealKey(ctx); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(keys, func(k *apikey.SealKey) bool { return bytes.Equal(k.Public(), public) }) {
		return nil
	}
	if made {
		os.Remove(path) // it opens no key
	}
	return fmt.Errorf("%s is not the private half of the seal key in the database: name the right file", path)
}

// sealKeyFile reads the private half, or makes one if mayMake is true and the file does not exist,
// and reports whether it made one.
func sealKeyFile(path string, mayMake bool) (keys apikey.SealKeys, made bool, err error) {
	keys, err = sealfile.Read(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return keys, false, err
	}
	if !mayMake {
		return nil, false, fmt.Errorf("the database has one already, but not in this file: %w", err)
	}
	keys, err = sealfile.Make(path)
	return keys, err == nil, err
}

// Rotation replaces a sealing key pair. The file and the database alone determine the next step, so
// it can be interrupted at any point:
//
//	file      database   next
//	old       old        add a new one to the file
//	new old   old        make it the one of the database
//	new old   new        seal again, then take the old one out of the file
//
// A finished rotation looks like one that has not begun, so repeating the command starts another,
// which is harmless.
type Rotation struct {
	File    string // with the private halves
	Prepare bool   // only add a new private half to File
	KeepOld bool   // leave the old private half in File
}

// Rotate makes the next steps of a rotation, and returns how many copies were sealed again.
func (s Seal) Rotate(ctx context.Context, r Rotation) (resealed int, err error) {
	unlock, err := r.lock()
	if err != nil {
		err = fmt.Errorf("locking the directory of %s: %w", r.File, err)
		if errors.Is(err, sealfile.ErrLocked) {
			err = refusal{store.ErrRefused, err}
		}
		return 0, err
	}
	defer unlock.Close()
	public, err := s.in.SealKey(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return 0, refusal{store.ErrNotFound, fmt.Errorf("there is no seal key to replace: make one with `keyporter seal init %s`", r.File)}
	}
	if err != nil {
		return 0, err
	}
	keys, err := sealfile.Read(r.File)
	if err != nil {
		return 0, fmt.Errorf("the private seal key: %w", err)
	}
	inUse := slices.IndexFunc(keys, func(k *apikey.SealKey) bool { return bytes.Equal(k.Public(), public) })
	if inUse < 0 {
		return 0, fmt.Errorf("%s does not hold the private half of the seal key in the database: name the right file", r.File)
	}
	if r.Prepare && inUse == 0 && len(keys) > 1 {
		return 0, refusal{store.ErrRefused, fmt.Errorf("a rotation is under way: finish it first with `keyporter seal rotate %s`", r.File)}
	}
	if inUse == 0 && len(keys) == 1 { // no rotation is under way
		if keys, err = r.add(keys); err != nil {
			return 0, err
		}
		inUse = 1
	}
	if r.Prepare {
		return 0, nil
	}
	if inUse > 0 {
		if err := s.in.ReplaceSealKey(ctx, public, keys[0].Public()); err != nil {
			return 0, err
		}
	}
	if resealed, err = s.reseal(ctx, r.File, keys); err != nil || r.KeepOld {
		return resealed, err
	}
	return resealed, sealfile.Write(r.File, keys[:1])
}

// lock excludes other rotations of the same file, which would overwrite an added key.
func (r *Rotation) lock() (io.Closer, error) {
	path, err := filepath.EvalSymlinks(r.File)
	if err != nil {
		path = r.File // the code that reads the file reports the error
	}
	return sealfile.LockDirectory(filepath.Dir(path))
}

// add puts a new private half first.
func (r *Rotation) add(keys apikey.SealKeys) (apikey.SealKeys, error) {
	key, err := apikey.NewSealKey()
	if err != nil {
		return nil, err
	}
	keys = append(apikey.SealKeys{key}, keys...)
	return keys, sealfile.Write(r.File, keys)
}

// reseal seals again all copies that the newest key does not open. A copy that no key of the file
// opens stops it before a key is removed from the file.
func (s Seal) reseal(ctx context.Context, file string, keys apikey.SealKeys) (int, error) {
	newest := keys[0]
	return s.in.Reseal(ctx, func(sealed []byte, id string) ([]byte, error) {
		if _, err := newest.Unseal(sealed, id); err == nil {
			return nil, nil
		}
		token, err := keys.Unseal(sealed, id)
		if err != nil {
			return nil, fmt.Errorf("no private half in %s opens it: replace that key with `keyporter key regenerate`, and repeat this command: %w", file, err)
		}
		return apikey.Seal(newest.Public(), token, id)
	})
}
