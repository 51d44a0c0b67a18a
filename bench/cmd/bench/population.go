package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	_ "github.com/lib/pq" // the driver for the databases of the bench
	_ "modernc.org/sqlite"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// population is the set of keys that the load uses.
type population struct {
	keys []string          // of a few users on a plan with high limits
	poor map[string]string // reason of a denial → a key with that denial
}

// populate creates a database with users on a plan with limits that are not reached, and with one
// deleted key.
func populate(ctx context.Context, binary, database string, users int) (population, error) {
	all := population{poor: map[string]string{}}
	keyporter := func(args ...string) (string, error) {
		return output(ctx, binary, append(args, "--database", database, "--output", "json")...)
	}
	createKey := func(user, account string) (string, error) {
		if _, err := keyporter("user", "set", user, "--account", account); err != nil {
			return "", err
		}
		out, err := keyporter("key", "create", user)
		if err != nil {
			return "", err
		}
		var made struct{ Key string }
		err = json.Unmarshal([]byte(out), &made)
		return made.Key, err
	}
	for _, command := range []string{
		"migrate",
		"plan set bench --api-access=true --rate-limit 10000 --rate-window 1s --credits 1000000000000",
		"plan set crowd --api-access=true --rate-limit 60 --rate-window 1m --credits unlimited",
		"plan set refused --api-access=false --rate-limit 60 --rate-window 1m --credits 1000",
		"plan set limited --api-access=true --rate-limit 0 --rate-window 1m --credits 1000",
		"plan set exhausted --api-access=true --rate-limit 10000 --rate-window 1s --credits 0",
		"account set bench --plan bench --kind organization",
		"account set crowd --plan crowd --kind organization",
		"account set refused --plan refused --kind organization",
		"account set limited --plan limited --kind organization",
		"account set exhausted --plan exhausted --kind organization",
	} {
		if _, err := keyporter(strings.Fields(command)...); err != nil {
			return population{}, err
		}
	}
	for i := range users {
		key, err := createKey(fmt.Sprintf("user-%d", i), "bench")
		if err != nil {
			return population{}, err
		}
		all.keys = append(all.keys, key)
	}
	for _, why := range []string{"refused", "limited", "exhausted", unknown} {
		account := why
		if why == unknown {
			account = "bench"
		}
		var err error
		if all.poor[why], err = createKey(why, account); err != nil {
			return population{}, err
		}
	}
	_, err := keyporter("user", "delete", unknown)
	return all, err
}

// keyFormats is the configuration for keys of another system.
const keyFormats = `key_formats: [{prefix: sk_live_, pattern: "[0-9A-Za-z]{24}"}]` + "\n"

// guess is a key of that form that nobody has.
var guess = "sk_live_" + strings.Repeat("guess0", 4)

// importKeys adds users to the population's account, each with a key of another system.
func importKeys(ctx context.Context, binary, dir, config, database string, users int) (keys []string, err error) {
	lines := "user,account,key\n"
	for i := range users {
		keys = append(keys, fmt.Sprintf("sk_live_%024d", i))
		lines += fmt.Sprintf("imported-%d,bench,%s\n", i, keys[i])
	}
	file := filepath.Join(dir, "imported.csv")
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		return nil, err
	}
	_, err = output(ctx, binary, "import", file, "--config", config, "--database", database)
	return keys, err
}

// sqlite is the prefix of the URL of an embedded database.
const sqlite = "sqlite://"

// unknown is a deleted user.
const unknown = "gone"

// crowd adds users in bulk to an account, each with a key, and returns the keys. It writes directly
// into the tables: a command per user would take longer than everything else.
func crowd(ctx context.Context, database, account string, users int) (keys []string, err error) {
	format, err := formatOf(ctx, database)
	if err != nil {
		return nil, err
	}
	driver, source, literal := "postgres", database, `'\x%s'`
	if path, ok := strings.CutPrefix(database, sqlite); ok {
		driver, source, literal = "sqlite", path, `x'%s'`
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	const some = 500 // rows per statement
	for first := 0; first < users; first += some {
		var people, tokens []string
		for i := first; i < min(users, first+some); i++ {
			token := format.Generate()
			digest := token.Digest()
			people = append(people, fmt.Sprintf("('%s-%d', 'person', '%s', 'active')", account, i, account))
			tokens = append(tokens, fmt.Sprintf("('key_%s_%d', '%s-%d', "+literal+", 0)", account, i, account, i, hex.EncodeToString(digest[:])))
			keys = append(keys, token.Reveal())
		}
		for _, statement := range []string{
			"INSERT INTO users (name, kind, account, status) VALUES " + strings.Join(people, ", "),
			"INSERT INTO keys (id, user_name, digest, created_at) VALUES " + strings.Join(tokens, ", "),
		} {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return nil, fmt.Errorf("adding users in bulk: %w", err)
			}
		}
	}
	if err := tx.Commit(); err != nil || driver != "postgres" {
		return keys, err
	}
	// The state of a database whose users were added long ago.
	for _, statement := range []string{"VACUUM ANALYZE", "CHECKPOINT"} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return nil, fmt.Errorf("preparing the database: %w", err)
		}
	}
	return keys, nil
}

// formatOf returns the format of the keys of a database.
func formatOf(ctx context.Context, database string) (*apikey.Format, error) {
	db, err := store.Open(ctx, store.Config{URL: database})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	secrets, err := directory.NewKeys(db).TagSecrets(ctx)
	if err != nil {
		return nil, err
	}
	return apikey.NewFormat(apikey.FormatConfig{Secrets: secrets})
}
