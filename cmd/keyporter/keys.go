package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/store"
)

// formats returns the formats of keys and of session secrets, with the tag secrets of the database.
func formats(ctx context.Context, c config, db *store.DB) (keys, sessions *apikey.Format, err error) {
	secrets, err := db.TagSecrets(ctx)
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

// linkFormat returns the format of login links.
func linkFormat(ctx context.Context, db *store.DB) (*apikey.Format, error) {
	secrets, err := db.TagSecrets(ctx)
	if err != nil {
		return nil, err
	}
	return apikey.NewFormat(apikey.FormatConfig{Prefix: apikey.LinkPrefix, Secrets: secrets})
}

func (a *app) keyCommand() *cobra.Command {
	create := &cobra.Command{
		Use: "create USER", Short: "Make and print a key for a user without one",
		Long: `Make and print a key for a user without one. The key is shown this once: only its digest
is stored, and a sealed copy if ` + "`keyporter seal init`" + ` was run.

If the call breaks off, repeat it with the same --idempotency-key: it makes no second key, but cannot
show the first one again.`,
		Example: "  keyporter key create ada\n  keyporter key create ada --output json | jq -r .key",
		Args:    exactly(1),
		RunE:    a.createKey,
	}
	regenerate := &cobra.Command{
		Use: "regenerate USER", Short: "Replace the key of a user at once, and print the new one",
		Long: "Replace the key of a user, and print the new one. There is no grace period." + waits + `

If the call breaks off, repeat it with the same --idempotency-key: it makes no second key and waits
for confirmation again, but cannot show the new key again.`,
		Example: "  keyporter key regenerate ada",
		Args:    exactly(1),
		RunE:    a.regenerateKey,
	}
	addFlags(create.Flags(), "key-prefix")
	addFlags(regenerate.Flags(), "key-prefix")
	revoke := &cobra.Command{
		Use: "revoke USER", Short: "Revoke the key of a user", Long: "Revoke the key of a user." + waits, Args: exactly(1),
		Example: "  keyporter key revoke ada",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				key, done, err := db.RevokeKey(ctx, args[0], once(cmd))
				return a.changed(c, key, fmt.Sprintf("key %s of user %s revoked\n", key.ID, key.User), done, err)
			})
		},
	}
	onceFlag(create)
	onceFlag(regenerate)
	onceFlag(revoke)
	return group("key", "Create, replace, revoke and list users' keys", create, regenerate, revoke, a.keyListCommand())
}

// madeKey is the output of create and regenerate. Key is nil if an earlier call showed it.
type madeKey struct {
	ID   string  `json:"id"`
	User string  `json:"user"`
	Key  *string `json:"key"`
	Code string  `json:"code,omitempty"`
}

func (a *app) createKey(cmd *cobra.Command, args []string) error {
	return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
		format, _, err := formats(ctx, c, db)
		if err != nil {
			return err
		}
		key, token, done, err := db.CreateKeyOnce(ctx, args[0], format, once(cmd))
		failed, unconfirmed := confirmed(err)
		if failed != nil {
			return failed
		}
		result, text := a.made(key, token, done)
		if err := a.print(c, result, text); err != nil && text != "" {
			return notShown(key, args[0], err)
		} else if err != nil {
			return err
		}
		if unconfirmed != nil {
			return fmt.Errorf("creating a key: %w: it was made, and works on each replica that has applied the change; see in `keyporter replicas` when no replica lags", unconfirmed)
		}
		return nil
	})
}

// made returns the output for a new key. Only the first call includes the key itself.
func (a *app) made(key store.Key, token apikey.Token, done store.Confirmation) (result madeKey, text string) {
	result = madeKey{ID: key.ID, User: key.User, Code: "key_shown_once"}
	if plain := token.Reveal(); plain != "" {
		result.Key, result.Code, text = &plain, "", plain+"\n"
	} else if done.Repeated {
		fmt.Fprintf(a.stderr, "key %s was made, and shown, by an earlier call; if nobody has it, run `keyporter key regenerate %s` with another idempotency key\n", key.ID, key.User)
	}
	return result, text
}

func (a *app) regenerateKey(cmd *cobra.Command, args []string) error {
	return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
		format, _, err := formats(ctx, c, db)
		if err != nil {
			return err
		}
		key, token, done, err := db.RegenerateKey(ctx, args[0], format, store.Pace{}, once(cmd))
		result, text := a.made(key, token, done)
		err = a.changed(c, result, text, done, err)
		if out := (writeError{}); errors.As(err, &out) && text != "" {
			return notShown(key, args[0], err)
		}
		return err
	})
}

// notShown explains what to do about a key that was made but could not be shown.
func notShown(key store.Key, user string, err error) error {
	return fmt.Errorf("key %s was made, but could not be shown: %w: run `keyporter key regenerate %s`", key.ID, err, user)
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [USER]", Short: "List the keys' ids, users and times, revoked keys included", Args: usageArgs(cobra.MaximumNArgs(1)),
		Example: "  keyporter key list\n  keyporter key list ada --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			user := ""
			if len(args) > 0 {
				user = args[0]
			}
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				return printAll(a, c, db.EachKey(ctx, user), asIs[store.Key], []string{"ID", "USER", "CREATED", "ENDED"}, func(key store.Key) []string {
					ended := "-"
					if key.RevokedAt != nil {
						ended = key.RevokedAt.Format(time.RFC3339)
					}
					return []string{key.ID, key.User, key.CreatedAt.Format(time.RFC3339), ended}
				})
			})
		},
	}
}

func (a *app) sessionCommand() *cobra.Command {
	var life time.Duration
	var link bool
	create := &cobra.Command{
		Use: "create USER", Short: "Make a browser session, and print its cookie, or a link that logs in once",
		Long: fmt.Sprintf(`Make a browser session, and print its cookie. With --link, print a link to send to the user instead:
it is good for %v and for one login. Opening it shows a button, and pressing the button logs in, so
that a mail scanner that opens links spends nothing.`, store.LinkLife),
		Example: "  keyporter session create ada --ttl 1h\n  keyporter session create ada --link --page-url https://api.example.com",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if link && cmd.Flags().Changed("ttl") {
				return usageError{fmt.Errorf("--ttl is for a session; a link is good for %v", store.LinkLife)}
			}
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				if link {
					return a.createLink(ctx, c, db, args[0])
				}
				return a.createSession(ctx, c, db, args[0], life)
			})
		},
	}
	create.Flags().DurationVar(&life, "ttl", 12*time.Hour, fmt.Sprintf("how long the session lasts, at most %v", store.MaxSession))
	create.Flags().BoolVar(&link, "link", false, "print a link that logs in once, in place of a cookie")
	addFlags(create.Flags(), "insecure-cookies", "page-url", "page-path")
	revoke := &cobra.Command{
		Use: "revoke USER", Short: "End all sessions of a user", Args: exactly(1),
		Long:    "End all sessions of a user. Unused login links, and tokens that your web app has issued so far, stop\nworking too." + waits,
		Example: "  keyporter session revoke ada",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd, func(ctx context.Context, c config, db *store.DB) error {
				n, done, err := db.RevokeSessions(ctx, args[0], once(cmd))
				result := struct {
					User    string `json:"user"`
					Revoked int    `json:"revoked"`
				}{args[0], n}
				return a.changed(c, result, fmt.Sprintf("%d sessions of user %s ended\n", n, args[0]), done, err)
			})
		},
	}
	onceFlag(revoke)
	return group("session", "Create and end browser sessions for the users' page", create, revoke)
}

func (a *app) createLink(ctx context.Context, c config, db *store.DB, user string) error {
	format, err := linkFormat(ctx, db)
	if err != nil {
		return err
	}
	link, token, err := db.CreateLoginLink(ctx, user, format)
	if err != nil {
		return err
	}
	result := struct {
		Link    string    `json:"link"`
		Expires time.Time `json:"expires"`
	}{c.PageURL + portal.LoginPath(c.PagePath) + "?token=" + token.Reveal(), link.ExpiresAt}
	text := fmt.Sprintf("%s\ngood until %s, for one login\n", result.Link, result.Expires.Format(http.TimeFormat))
	if c.PageURL == "" {
		text += "put the address of your Envoy in front of it, or set --page-url\n"
	}
	return a.print(c, result, text)
}

func (a *app) createSession(ctx context.Context, c config, db *store.DB, user string, life time.Duration) error {
	_, format, err := formats(ctx, c, db)
	if err != nil {
		return err
	}
	session, token, err := db.CreateSession(ctx, user, life, format)
	if err != nil {
		return err
	}
	name := authz.SessionCookie
	if c.InsecureCookies {
		name = authz.InsecureSessionCookie
	}
	result := struct {
		Cookie  string    `json:"cookie"`
		Expires time.Time `json:"expires"`
	}{name + "=" + token.Reveal(), session.ExpiresAt}
	return a.print(c, result, fmt.Sprintf("%s\nexpires %s\n", result.Cookie, result.Expires.Format(http.TimeFormat)))
}
