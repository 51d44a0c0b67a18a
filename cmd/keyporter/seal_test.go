package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/parts/partstest"
	"github.com/keyporter/keyporter/internal/sealfile"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// vault is a database of users with sealed keys, and the seal key file that opens them.
type vault struct {
	*testing.T
	db     *store.DB
	url    string
	file   string
	format *apikey.Format
	keys   map[string]string // user → the key
}

func newVault(t *testing.T, url string, users int) *vault {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{URL: url, Create: true, Migrate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	format, err := apikey.NewFormat(apikey.FormatConfig{Secrets: [][]byte{bytes.Repeat([]byte{7}, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	v := &vault{T: t, db: db, url: url, file: filepath.Join(t.TempDir(), "seal.key"), format: format, keys: map[string]string{}}
	_, _, err1 := directory.New(db).SetPlan(t.Context(), "pro", directory.PlanChange{}, "")
	_, _, err2 := directory.New(db).SetAccount(t.Context(), "acme", directory.AccountChange{Plan: new("pro")}, "")
	v.must(errors.Join(err1, err2, operations.By("test", db).Seal().Init(t.Context(), v.file)))
	for i := range users {
		v.user(fmt.Sprint("user", i))
	}
	return v
}

func (v *vault) must(err error) {
	v.Helper()
	if err != nil {
		v.Fatal(err)
	}
}

func (v *vault) user(name string) {
	v.Helper()
	_, _, err := directory.New(v.db).SetUser(v.Context(), name, directory.UserChange{Account: new("acme")}, "")
	v.must(err)
	_, token, err := directory.NewKeys(v.db).CreateKey(v.Context(), name, v.format)
	v.must(err)
	v.keys[name] = token.Reveal()
}

func (v *vault) private() apikey.SealKeys {
	v.Helper()
	keys, err := sealfile.Read(v.file)
	v.must(err)
	return keys
}

// opens checks that the file opens each key, and also one that is made now.
func (v *vault) opens(when string) {
	v.Helper()
	keys := v.private()
	for user, key := range v.keys {
		found, sealed, err := directory.NewKeys(v.db).SealedKey(v.Context(), user)
		v.must(err)
		if token, err := keys.Unseal(sealed, found.ID); err != nil || token.Reveal() != key {
			v.Errorf("%s: the key of %s: %v", when, user, err)
		}
	}
	public, err := directory.NewKeys(v.db).SealKey(v.Context())
	v.must(err)
	if !holds(keys, public) {
		v.Errorf("%s: what the database seals to is not in the file", when)
	}
	if info, err := os.Stat(v.file); err != nil || info.Mode().Perm() != 0o600 {
		v.Errorf("%s: the file: %v, %v", when, info.Mode(), err)
	}
}

// finished checks that a rotation leaves nothing behind.
func (v *vault) finished(when string, old []byte) {
	v.Helper()
	v.opens(when)
	keys := v.private()
	if len(keys) != 1 || bytes.Equal(keys[0].Public(), old) {
		v.Errorf("%s: %d private halves, of which the first is the old one: %t", when, len(keys), bytes.Equal(keys[0].Public(), old))
	}
	entries, err := os.ReadDir(filepath.Dir(v.file))
	v.must(err)
	if len(entries) != 1 {
		v.Errorf("%s: %d files beside it", when, len(entries)-1)
	}
}

func holds(keys apikey.SealKeys, public []byte) bool {
	return slices.ContainsFunc(keys, func(k *apikey.SealKey) bool { return bytes.Equal(k.Public(), public) })
}

func (v *vault) rotate(r operations.Rotation) error {
	r.File = v.file
	_, err := operations.By("test", v.db).Seal().Rotate(v.Context(), r)
	return err
}

func onBoth(t *testing.T, test func(t *testing.T, url string)) {
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) { test(t, "sqlite://"+filepath.Join(t.TempDir(), "k.db")) })
	t.Run("PostgreSQL", func(t *testing.T) { test(t, partstest.Database(t, 18)) })
}

// After an interruption of a rotation at any point, the file opens all keys, and the same command
// continues the rotation.
func TestARotationThatIsBrokenOff(t *testing.T) {
	onBoth(t, func(t *testing.T, url string) {
		v := newVault(t, url, 3)
		prepare := func() { v.must(v.rotate(operations.Rotation{Prepare: true})) }
		replace := func() {
			prepare()
			keys := v.private()
			v.must(directory.NewKeys(v.db).ReplaceSealKey(t.Context(), keys[1].Public(), keys[0].Public()))
		}
		for _, at := range []struct {
			what string
			do   func()
		}{
			{"before it began", func() {}},
			{"with half a file written", func() { v.must(os.WriteFile(v.file+".new", []byte("-----BEGIN"), 0o400)) }},
			{"with the new private half in the file", prepare},
			{"that twice", func() { prepare(); prepare() }},
			{"with the new public half in the database", replace},
			{"and a key made since", func() { replace(); v.user(fmt.Sprint("new", len(v.keys))) }},
			{"with some keys sealed again", func() {
				replace()
				keys, first := v.private(), true
				_, err := directory.NewKeys(v.db).Reseal(t.Context(), func(sealed []byte, id string) ([]byte, error) {
					if !first {
						return nil, nil
					}
					first = false
					token, err := keys.Unseal(sealed, id)
					v.must(err)
					return apikey.Seal(keys[0].Public(), token, id)
				})
				v.must(err)
			}},
			{"with all keys sealed again", func() { v.must(v.rotate(operations.Rotation{KeepOld: true})) }},
			{"that twice", func() {
				v.must(v.rotate(operations.Rotation{KeepOld: true}))
				v.must(v.rotate(operations.Rotation{KeepOld: true}))
			}},
		} {
			old := v.private()[0].Public()
			at.do()
			v.opens("broken off " + at.what)
			v.must(v.rotate(operations.Rotation{}))
			v.finished("after it was broken off "+at.what, old)
		}
	})
}

// The same holds if two processes are killed at random moments, while keys are made and replaced.
func TestARotationThatIsKilled(t *testing.T) {
	partstest.Slow(t)
	times := 12
	if os.Getenv("KEYPORTER_LONG") != "" {
		times = 300
	}
	onBoth(t, func(t *testing.T, url string) {
		v := newVault(t, url, 10)
		stop := make(chan struct{})
		var busy sync.WaitGroup
		busy.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				user := fmt.Sprint("user", i%10)
				_, token, _, err := directory.NewKeys(v.db).RegenerateKey(context.WithoutCancel(t.Context()), user, v.format, directory.Rate{}, "")
				if err != nil {
					t.Error(err)
					return
				}
				v.keys[user] = token.Reveal() // read only after this has ended
			}
		})
		rotate := func() *exec.Cmd {
			cmd := exec.Command(program(t), "seal", "rotate", v.file, "--database", url)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // no settings
			return cmd
		}
		began := time.Now()
		v.must(rotate().Run())
		whole := time.Since(began)
		killed := 0
		for range times {
			first, second := rotate(), rotate()
			v.must(errors.Join(first.Start(), second.Start()))
			time.Sleep(whole/4 + rand.N(whole)) // includes the start of the process
			for _, cmd := range []*exec.Cmd{first, second} {
				cmd.Process.Kill()
				cmd.Wait() // with any result
				if !cmd.ProcessState.Exited() {
					killed++
				}
			}
			public, err := directory.NewKeys(v.db).SealKey(t.Context())
			v.must(err)
			if !holds(v.private(), public) {
				t.Fatal("what the database seals to is not in the file")
			}
		}
		close(stop)
		busy.Wait()
		v.opens("after so many kills")
		v.must(v.rotate(operations.Rotation{}))
		v.finished("in the end", nil)
		t.Logf("%d rotations of %v were killed", killed, whole.Round(time.Millisecond))
	})
}

// Concurrent rotations of one file lose nothing, even if some of them are rejected.
func TestRotationsAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, url string) {
		v := newVault(t, url, 5)
		for range 5 {
			old := v.private()[0].Public()
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() { _ = v.rotate(operations.Rotation{}) }) // some are rejected
			}
			all.Wait()
			v.opens("after rotations at once")
			v.must(v.rotate(operations.Rotation{}))
			v.finished("after one more", old)
		}
	})
}

// Rotations of copies of the file on two machines: the second is rejected, and loses nothing.
func TestRotationsOfCopies(t *testing.T) {
	onBoth(t, func(t *testing.T, url string) {
		v := newVault(t, url, 2)
		copied := filepath.Join(t.TempDir(), "copy.key")
		content, err := os.ReadFile(v.file)
		v.must(err)
		v.must(os.WriteFile(copied, content, 0o600))
		v.must(v.rotate(operations.Rotation{KeepOld: true}))
		if _, err := operations.By("test", v.db).Seal().Rotate(t.Context(), operations.Rotation{File: copied}); err == nil || !strings.Contains(err.Error(), "name the right file") {
			t.Errorf("the rotation of a copy that is out of date: %v", err)
		}
		v.opens("after the rotation of a copy")
	})
}

// Concurrent set-ups of a seal, with the same file or with different ones, keep the private half
// for the public half in the database, and every process that reports success has it.
func TestSealsSetUpAtOnce(t *testing.T) {
	t.Parallel()
	for try := range 10 {
		dir := t.TempDir()
		db, err := store.Open(t.Context(), store.Config{URL: "sqlite://" + filepath.Join(dir, "k.db"), Create: true, Migrate: true})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				file := filepath.Join(dir, fmt.Sprintf("seal%d.key", i*(try%2)))
				if err := operations.By("test", db).Seal().Init(t.Context(), file); err != nil {
					return // another process was first
				}
				public, err := directory.NewKeys(db).SealKey(t.Context())
				keys, unread := sealfile.Read(file)
				if err != nil || unread != nil || !holds(keys, public) {
					t.Errorf("a success without the private half: %v, %v", err, unread)
				}
			})
		}
		all.Wait()
		public, err := directory.NewKeys(db).SealKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*.key"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%d files, %v", len(files), err)
		}
		if keys, err := sealfile.Read(files[0]); err != nil || !holds(keys, public) {
			t.Fatalf("the private half is lost: %v", err)
		}
	}
}
