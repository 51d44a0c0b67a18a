package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"

	_ "modernc.org/sqlite" // the database of the bench

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
)

// crowd adds users in bulk to an account, each with a key, and returns the keys. They are written straight
// into the tables: one command for each would take longer than all the rest.
func crowd(ctx context.Context, path, account string, users int) (keys []string, err error) {
	format, err := formatOf(ctx, path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	const some = 500 // in one statement
	for first := 0; first < users; first += some {
		var people, tokens []string
		for i := first; i < min(users, first+some); i++ {
			token := format.Generate()
			digest := token.Digest()
			people = append(people, fmt.Sprintf("('%s-%d', 'person', '%s', 'active')", account, i, account))
			tokens = append(tokens, fmt.Sprintf("('key_%s_%d', '%s-%d', x'%s', 0)", account, i, account, i, hex.EncodeToString(digest[:])))
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
	return keys, tx.Commit()
}

// formatOf returns the form of the keys of a database.
func formatOf(ctx context.Context, path string) (*apikey.Format, error) {
	db, err := store.Open(ctx, store.Config{URL: "sqlite://" + path})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	secrets, err := db.TagSecrets(ctx)
	if err != nil {
		return nil, err
	}
	return apikey.NewFormat(apikey.FormatConfig{Secrets: secrets})
}
