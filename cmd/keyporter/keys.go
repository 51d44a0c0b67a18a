package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

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
	config.AddFlags(create.Flags(), "key-prefix")
	config.AddFlags(regenerate.Flags(), "key-prefix")
	revoke := &cobra.Command{
		Use: "revoke USER", Short: "Revoke the key of a user", Long: "Revoke the key of a user." + waits, Args: exactly(1),
		Example: "  keyporter key revoke ada",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				done, err := by.keys.Revoke(ctx, args[0], once(cmd))
				if err != nil {
					return err
				}
				return printChange(a, c, done, fmt.Sprintf("key %s of user %s revoked\n", done.Result.ID, done.Result.User))
			})
		},
	}
	onceFlag(create)
	onceFlag(regenerate)
	onceFlag(revoke)
	return group("key", "Create, replace, revoke and list users' keys", create, regenerate, revoke, a.keyListCommand())
}

func (a *app) createKey(cmd *cobra.Command, args []string) error {
	return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
		done, err := by.keys.Create(ctx, args[0], once(cmd))
		if err != nil {
			return err
		}
		text := a.keyText(done)
		if err := a.print(c, done.Result, text); err != nil && text != "" {
			return notShown(done.Result, args[0], err)
		} else if err != nil {
			return err
		}
		if done.Unconfirmed != nil {
			return fmt.Errorf("creating a key: %w: it was made, and works on each replica that has applied the change; see in `keyporter replicas` when no replica lags", done.Unconfirmed)
		}
		return nil
	})
}

// keyText returns a new key as text. If an earlier call has shown it, it says so on standard error.
func (a *app) keyText(done operations.Committed[operations.MadeKey]) string {
	key := done.Result
	if key.Key != nil {
		return *key.Key + "\n"
	}
	if done.Confirmation.Repeated {
		fmt.Fprintf(a.stderr, "key %s was made, and shown, by an earlier call; if nobody has it, run `keyporter key regenerate %s` with another idempotency key\n", key.ID, key.User)
	}
	return ""
}

func (a *app) regenerateKey(cmd *cobra.Command, args []string) error {
	return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
		done, err := by.keys.Regenerate(ctx, args[0], "", once(cmd))
		if err != nil {
			return err
		}
		text := a.keyText(done)
		err = printChange(a, c, done, text)
		if out := (writeError{}); errors.As(err, &out) && text != "" {
			return notShown(done.Result, args[0], err)
		}
		return err
	})
}

// notShown explains what to do about a key that was made but could not be shown.
func notShown(key operations.MadeKey, user string, err error) error {
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
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				return printAll(a, c, by.keys.Each(ctx, user), []string{"ID", "USER", "CREATED", "ENDED", "FORM"}, func(key directory.Key) []string {
					ended := "-"
					if key.RevokedAt != nil {
						ended = key.RevokedAt.Format(time.RFC3339)
					}
					form := "own"
					if key.Imported {
						form = "imported"
					}
					return []string{key.ID, key.User, key.CreatedAt.Format(time.RFC3339), ended, form}
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
that a mail scanner that opens links spends nothing.`, directory.LinkLife),
		Example: "  keyporter session create ada --ttl 1h\n  keyporter session create ada --link --page-url https://api.example.com",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if link && cmd.Flags().Changed("ttl") {
				return usageError{fmt.Errorf("--ttl is for a session; a link is good for %v", directory.LinkLife)}
			}
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				if link {
					return a.createLink(ctx, c, by, args[0], once(cmd))
				}
				return a.createSession(ctx, c, by, args[0], life, once(cmd))
			})
		},
	}
	create.Flags().DurationVar(&life, "ttl", 12*time.Hour, fmt.Sprintf("how long the session lasts, at most %v", directory.MaxSession))
	create.Flags().BoolVar(&link, "link", false, "print a link that logs in once, in place of a cookie")
	onceFlag(create)
	config.AddFlags(create.Flags(), "insecure-cookies", "page-url", "page-path")
	revoke := &cobra.Command{
		Use: "revoke USER", Short: "End all sessions of a user", Args: exactly(1),
		Long:    "End all sessions of a user. Unused login links, and tokens that your web app has issued so far, stop\nworking too." + waits,
		Example: "  keyporter session revoke ada",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd, func(ctx context.Context, c config.Config, by operator) error {
				done, err := by.sessions.Revoke(ctx, args[0], once(cmd))
				if err != nil {
					return err
				}
				return printChange(a, c, done, fmt.Sprintf("%d sessions of user %s ended\n", done.Result.Revoked, args[0]))
			})
		},
	}
	onceFlag(revoke)
	return group("session", "Create and end browser sessions for the users' page", create, revoke)
}

// pageOf returns how browsers reach the page, according to a configuration.
func pageOf(c config.Config) operations.UserPage {
	return operations.UserPage{URL: c.PageURL, Path: c.PagePath, InsecureCookies: c.InsecureCookies}
}

func (a *app) createLink(ctx context.Context, c config.Config, by operator, user string, once feed.IdempotencyKey) error {
	done, err := by.sessions.CreateLink(ctx, user, once)
	if err != nil {
		return err
	}
	link := done.Result
	if link.Link == nil {
		a.shownBefore("link")
		return a.print(c, done, "")
	}
	text := fmt.Sprintf("%s\ngood until %s, for one login\n", *link.Link, link.Expires.Format(http.TimeFormat))
	if strings.HasPrefix(*link.Link, "/") {
		text += "put the address of your Envoy in front of it, or set --page-url\n"
	}
	return a.print(c, done, text)
}

func (a *app) createSession(ctx context.Context, c config.Config, by operator, user string, life time.Duration, once feed.IdempotencyKey) error {
	done, err := by.sessions.Create(ctx, user, life, once)
	if err != nil {
		return err
	}
	session := done.Result
	if session.Cookie == nil {
		a.shownBefore("session")
		return a.print(c, done, "")
	}
	return a.print(c, done, fmt.Sprintf("%s\nexpires %s\n", *session.Cookie, session.Expires.Format(http.TimeFormat)))
}

// shownBefore says on standard error that an earlier call has shown a secret.
func (a *app) shownBefore(what string) {
	fmt.Fprintf(a.stderr, "the %s was made, and shown, by an earlier call; if nobody has it, repeat the command with another idempotency key\n", what)
}
