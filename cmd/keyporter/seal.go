package main

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

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
)

func (a *app) sealCommand() *cobra.Command {
	initial := &cobra.Command{
		Use: "init FILE|-", Short: "Make a sealing key pair, so that the page can show users their key again",
		Long: `Make a sealing key pair. The private half goes to FILE, readable by its owner only: give it to
the processes that serve the page and to nobody else. The public half goes to the database; from
then on Keyporter keeps a copy of every new key that only the private half opens. Repeating the
command with the same FILE changes nothing. With - instead of FILE it prints the private half.`,
		Example: "  keyporter seal init seal.key\n  keyporter seal init - | vault kv put secret/keyporter seal=-",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				if args[0] == "-" || args[0] == "/dev/stdout" {
					return a.printSeal(ctx, c, db)
				}
				if err := initSeal(ctx, db, args[0]); err != nil {
					return err
				}
				return a.print(c, map[string]string{"file": args[0]}, "private seal key written to "+args[0]+"\n")
			})
		},
	}
	return group("seal", "Manage the key pair that seals copies of users' keys", initial, a.sealRotateCommand())
}

// printSeal prints a private half and stores its public half in the database. It prints first: keys
// sealed with a public half whose private half is lost could never be shown.
func (a *app) printSeal(ctx context.Context, c config, db *store.DB) error {
	_, err := db.SealKey(ctx)
	if err == nil {
		return errors.New("the database has a seal key already, and its private half is where it was written: `keyporter seal rotate FILE` replaces both")
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
	if err := a.print(c, map[string]string{"file": "-", "private_key": string(content)}, string(content)); err != nil {
		return err
	}
	if err := db.SetSealKey(ctx, key.Public()); err != nil {
		return fmt.Errorf("the private half that was printed opens nothing: %w", err)
	}
	return nil
}

// initSeal can be repeated. It writes the private half first: keys sealed with a public half whose
// private half is lost could never be shown.
func initSeal(ctx context.Context, db *store.DB, path string) error {
	public, err := db.SealKey(ctx)
	fresh := errors.Is(err, store.ErrNotFound)
	if err != nil && !fresh {
		return err
	}
	keys, made, err := sealKeyFile(path, fresh)
	if err != nil {
		return fmt.Errorf("the private seal key: %w", err)
	}
	if fresh {
		if err = db.SetSealKey(ctx, keys[0].Public()); !errors.Is(err, store.ErrExists) {
			return err
		}
		// another process was first, perhaps with this file
		if public, err = db.SealKey(ctx); err != nil {
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
	keys, err = readSealKeys(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return keys, false, err
	}
	if !mayMake {
		return nil, false, fmt.Errorf("the database has one already, but not in this file: %w", err)
	}
	keys, err = makeSealKeyFile(path)
	return keys, err == nil, err
}

func makeSealKeyFile(path string) (apikey.SealKeys, error) {
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

// readSealKeys reads a seal key file.
func readSealKeys(path string) (apikey.SealKeys, error) {
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

func (a *app) sealRotateCommand() *cobra.Command {
	var r rotation
	cmd := &cobra.Command{
		Use: "rotate FILE", Short: "Replace the sealing key pair, and seal all copies again",
		Long: `Replace the sealing key pair. A new private half is put into FILE in front of the old one, its
public half into the database, all copies of live keys are sealed again to it, and the old private
half is taken out of FILE. Each step can be broken off and the command repeated: no key is lost.

Where several machines have copies of FILE:
  1. keyporter seal rotate FILE --prepare     adds the new private half, and nothing else
  2. copy FILE to all of them                 the page reads it each time it shows a key
  3. keyporter seal rotate FILE --keep-old    goes over to the new one
  4. keyporter seal rotate FILE               takes the old private half out of FILE
  5. copy FILE to all of them`,
		Example: "  keyporter seal rotate seal.key",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.prepare && r.keepOld {
				return usageError{errors.New("--prepare changes nothing but FILE, and --keep-old all the rest: one after the other")}
			}
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				r.file = args[0]
				resealed, err := r.run(ctx, db)
				if err != nil {
					return err
				}
				text := fmt.Sprintf("%d copies were sealed again, and %s holds the one private half\n", resealed, r.file)
				switch {
				case r.prepare:
					text = fmt.Sprintf("%s holds the new private half beside the old one; nothing else was changed\n", r.file)
				case r.keepOld:
					text = fmt.Sprintf("%d copies were sealed again; %s still holds the old private half\n", resealed, r.file)
				}
				return a.print(c, map[string]any{"file": r.file, "resealed": resealed}, text)
			})
		},
	}
	cmd.Flags().BoolVar(&r.prepare, "prepare", false, "only add a new private half to FILE")
	cmd.Flags().BoolVar(&r.keepOld, "keep-old", false, "leave the old private half in FILE")
	return cmd
}

// rotation replaces a sealing key pair. The file and the database alone determine the next step, so
// it can be interrupted at any point:
//
//	file      database   next
//	old       old        add a new one to the file
//	new old   old        make it the one of the database
//	new old   new        seal again, then take the old one out of the file
//
// A finished rotation looks like one that has not begun, so repeating the command starts another,
// which is harmless.
type rotation struct {
	file             string
	prepare, keepOld bool
}

func (r *rotation) run(ctx context.Context, db *store.DB) (resealed int, err error) {
	unlock, err := r.lock()
	if err != nil {
		return 0, fmt.Errorf("locking the directory of %s: %w", r.file, err)
	}
	defer unlock.Close()
	public, err := db.SealKey(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("there is no seal key to replace: make one with `keyporter seal init %s`", r.file)
	}
	if err != nil {
		return 0, err
	}
	keys, err := readSealKeys(r.file)
	if err != nil {
		return 0, fmt.Errorf("the private seal key: %w", err)
	}
	inUse := slices.IndexFunc(keys, func(k *apikey.SealKey) bool { return bytes.Equal(k.Public(), public) })
	if inUse < 0 {
		return 0, fmt.Errorf("%s does not hold the private half of the seal key in the database: name the right file", r.file)
	}
	if r.prepare && inUse == 0 && len(keys) > 1 {
		return 0, fmt.Errorf("a rotation is under way: finish it first with `keyporter seal rotate %s`", r.file)
	}
	if inUse == 0 && len(keys) == 1 { // no rotation is under way
		if keys, err = r.add(keys); err != nil {
			return 0, err
		}
		inUse = 1
	}
	if r.prepare {
		return 0, nil
	}
	if inUse > 0 {
		if err := db.ReplaceSealKey(ctx, public, keys[0].Public()); err != nil {
			return 0, err
		}
	}
	if resealed, err = r.reseal(ctx, db, keys); err != nil || r.keepOld {
		return resealed, err
	}
	return resealed, writeSealKeys(r.file, keys[:1])
}

// errLocked is returned by [lockDirectory] while another process holds the lock.
var errLocked = errors.New("another rotation is at work there: wait until it is done")

// lock excludes other rotations of the same file, which would overwrite an added key.
func (r *rotation) lock() (io.Closer, error) {
	path, err := filepath.EvalSymlinks(r.file)
	if err != nil {
		path = r.file // the code that reads the file reports the error
	}
	return lockDirectory(filepath.Dir(path))
}

// add puts a new private half first.
func (r *rotation) add(keys apikey.SealKeys) (apikey.SealKeys, error) {
	key, err := apikey.NewSealKey()
	if err != nil {
		return nil, err
	}
	keys = append(apikey.SealKeys{key}, keys...)
	return keys, writeSealKeys(r.file, keys)
}

// reseal seals again all copies that the newest key does not open. A copy that no key of the file
// opens stops it before a key is removed from the file.
func (r *rotation) reseal(ctx context.Context, db *store.DB, keys apikey.SealKeys) (int, error) {
	newest := keys[0]
	return db.Reseal(ctx, func(sealed []byte, id string) ([]byte, error) {
		if _, err := newest.Unseal(sealed, id); err == nil {
			return nil, nil
		}
		token, err := keys.Unseal(sealed, id)
		if err != nil {
			return nil, fmt.Errorf("no private half in %s opens it: replace that key with `keyporter key regenerate`, and repeat this command: %w", r.file, err)
		}
		return apikey.Seal(newest.Public(), token, id)
	})
}

// writeSealKeys replaces a seal key file atomically: readers see the old or the new one, and the
// new one is on disk after a power failure. It overwrites the leftovers of a killed process.
func writeSealKeys(path string, keys apikey.SealKeys) (err error) {
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
