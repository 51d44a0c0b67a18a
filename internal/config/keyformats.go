package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
)

// gone are settings of earlier builds, and what to do instead.
var gone = map[string]string{
	"accept_untagged": "this setting is gone: describe the keys of your other system in `key_formats`, and mark those that are in the database as imported (see Import in the documents)",
}

// Gone returns what to do instead of a setting that earlier builds had, or "".
func Gone(setting string) string { return gone[strings.ReplaceAll(setting, "-", "_")] }

// minConnections is the least number of connections to PostgreSQL with key_formats: three of them
// are for look-ups, and one of these for guesses at imported keys.
const minConnections = 8

// checkKeyFormats warns of formats that cannot be meant, and refuses too few connections.
func (c *Config) checkKeyFormats() error {
	if len(c.KeyFormats) == 0 {
		return nil
	}
	for i, format := range c.KeyFormats {
		for _, warning := range format.Warnings(c.KeyPrefix) {
			c.Warnings = append(c.Warnings, c.formatPlace(i)+warning)
		}
	}
	if store.IsPostgres(c.Database) && c.DatabaseConnections < minConnections {
		return fmt.Errorf("--database-connections: %d are too few with key_formats: want at least %d, so that guesses at imported keys leave some for other look-ups",
			c.DatabaseConnections, minConnections)
	}
	return nil
}

// placedFormats adds to each problem of formats the place of the format concerned.
func (c *Config) placedFormats(err error) error {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for i, problem := range all {
		if wrong := (*apikey.KeyFormatError)(nil); errors.As(problem, &wrong) {
			all[i] = fmt.Errorf("%s%w", c.formatPlace(wrong.Index), wrong.Err)
		}
	}
	return errors.Join(all...)
}

func (c *Config) formatPlace(i int) string {
	if i < len(c.formatPlaces) {
		return c.formatPlaces[i] + ": key_formats: "
	}
	return "key_formats: "
}
