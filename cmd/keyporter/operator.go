package main

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// operator carries out the operations of commands: on a database, or with --server by the API of a
// running service. Commands parse, call it and print, whichever of the two it is.
type operator struct {
	plans    plans
	accounts accounts
	users    users
	keys     keys
	sessions sessions
	credits  credits
	usage    usages
	audit    audits
	replicas replicas
	events   eventsOf
}

type (
	plans interface {
		lister[operations.Plan]
		deleter
		Set(context.Context, string, directory.PlanChange, feed.IdempotencyKey) (operations.Committed[operations.Plan], error)
	}
	accounts interface {
		lister[directory.Account]
		deleter
		Set(context.Context, string, directory.AccountChange, feed.IdempotencyKey) (operations.Committed[directory.Account], error)
	}
	users interface {
		lister[directory.User]
		deleter
		Set(context.Context, string, directory.UserChange, feed.IdempotencyKey) (operations.Committed[directory.User], error)
		Show(ctx context.Context, name string) (*operations.User, error)
	}
	keys interface {
		Create(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[operations.MadeKey], error)
		Regenerate(ctx context.Context, user, replaces string, once feed.IdempotencyKey) (operations.Committed[operations.MadeKey], error)
		Revoke(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[directory.Key], error)
		Each(ctx context.Context, user string) iter.Seq2[directory.Key, error]
	}
	sessions interface {
		Create(context.Context, string, time.Duration, feed.IdempotencyKey) (operations.Committed[operations.MadeSession], error)
		CreateLink(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[operations.MadeLink], error)
		Revoke(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[operations.RevokedSessions], error)
	}
	credits interface {
		Balance(ctx context.Context, user string) (operations.Balance, error)
		Grant(ctx context.Context, user string, credits int64, once feed.IdempotencyKey) (operations.Committed[operations.Granted], error)
		Statement(context.Context, string, *usage.Month) (iter.Seq2[operations.Posting, error], usage.Month, error)
		AccountStatement(context.Context, string, *usage.Month) (iter.Seq2[operations.Posting, error], usage.Month, error)
		Verify(context.Context) (operations.Verification, error)
	}
	usages interface {
		Each(context.Context, operations.UsageQuery) iter.Seq2[operations.UsageRow, error]
	}
	audits interface {
		Each(context.Context, operations.AuditFilter) iter.Seq2[directory.AuditEntry, error]
	}
	eventsOf interface {
		Each(context.Context, operations.EventFilter) iter.Seq2[operations.Event, error]
		Retry(ctx context.Context, id string, once feed.IdempotencyKey) (operations.Committed[operations.Retried], error)
		RetryEndpoint(ctx context.Context, endpoint string, once feed.IdempotencyKey) (operations.Committed[operations.Retried], error)
		Endpoints(context.Context) (operations.WebhookList, error)
	}
	replicas interface {
		List(ctx context.Context, valkey bool) (operations.ReplicaList, error)
	}
)

// local returns the operator who works on a database.
func local(by operations.Operator, c config.Config) operator {
	return operator{
		plans: by.Plans(), accounts: by.Accounts(), users: by.Users(), keys: by.Keys(c.KeyPrefix), sessions: by.Sessions(pageOf(c)),
		credits: by.Credits(), usage: by.Usage(), audit: by.Audit(), replicas: by.Replicas(), events: by.Events(),
	}
}

// operate calls f with the operator whom a command asks for.
func (a *app) operate(cmd *cobra.Command, f func(context.Context, config.Config, operator) error) error {
	c, err := a.load(cmd)
	if err != nil {
		return err
	}
	if c.Server == "" {
		return a.withStoreOf(cmd, c, func(ctx context.Context, c config.Config, db *store.DB) error {
			return f(ctx, c, local(operations.By(commandActor(), db).Refusing(c.Routes.Foreign().FoundIn), c))
		})
	}
	for _, name := range ofReplicas {
		if flag := cmd.Flags().Lookup(name); flag != nil && flag.Changed {
			return usageError{fmt.Errorf("--%s: with --server that of the running service counts: leave it out", name)}
		}
	}
	by, err := remote(c)
	if err != nil {
		return usageError{err}
	}
	return f(cmd.Context(), c, by)
}

// ofReplicas are settings of commands that must be those of the running service.
var ofReplicas = []string{"key-prefix", "insecure-cookies", "page-url", "page-path", "redis", "redis-file"}

// operateHere is operate for what has no remote form.
func (a *app) operateHere(cmd *cobra.Command, f func(context.Context, config.Config, operations.Operator) error) error {
	return a.withStore(cmd, func(ctx context.Context, c config.Config, db *store.DB) error {
		return f(ctx, c, operations.By(commandActor(), db).Refusing(c.Routes.Foreign().FoundIn))
	})
}
