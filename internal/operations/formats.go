package operations

import (
	"context"
	"errors"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// Formats are the formats of all secrets that open something for a user.
type Formats struct{ Keys, Sessions, Links *apikey.Format }

// ReadFormats returns the formats, with the tag secrets of the database. The argument keys is the
// format of keys without its secrets.
func ReadFormats(ctx context.Context, db *store.DB, keys apikey.FormatConfig) (f Formats, err error) {
	secrets, err := directory.NewKeys(db).TagSecrets(ctx)
	if err != nil {
		return Formats{}, err
	}
	keys.Secrets = secrets
	var err1, err2, err3 error
	f.Keys, err1 = apikey.NewFormat(keys)
	f.Sessions, err2 = apikey.NewFormat(apikey.FormatConfig{Prefix: apikey.SessionPrefix, Secrets: secrets})
	f.Links, err3 = apikey.NewFormat(apikey.FormatConfig{Prefix: apikey.LinkPrefix, Secrets: secrets})
	return f, errors.Join(err1, err2, err3)
}
