package operations

import (
	"context"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// Formats returns the formats of keys and of session secrets, with the tag secrets of the database.
func Formats(ctx context.Context, db *store.DB, c config.Config) (keys, sessions *apikey.Format, err error) {
	secrets, err := directory.NewKeys(db).TagSecrets(ctx)
	if err != nil {
		return nil, nil, err
	}
	keys, err = apikey.NewFormat(apikey.FormatConfig{Prefix: c.KeyPrefix, Secrets: secrets, AcceptUntagged: c.AcceptUntagged})
	if err != nil {
		return nil, nil, err
	}
	sessions, err = apikey.NewFormat(apikey.FormatConfig{Prefix: apikey.SessionPrefix, Secrets: secrets})
	return keys, sessions, err
}

// LinkFormat returns the format of login links.
func LinkFormat(ctx context.Context, db *store.DB) (*apikey.Format, error) {
	secrets, err := directory.NewKeys(db).TagSecrets(ctx)
	if err != nil {
		return nil, err
	}
	return apikey.NewFormat(apikey.FormatConfig{Prefix: apikey.LinkPrefix, Secrets: secrets})
}
