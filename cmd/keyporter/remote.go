package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/client"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
	"github.com/keyporter/keyporter/usage"
)

// remoteForms has, for each command that also works with --server, the operations of the API that
// it calls there.
var remoteForms = map[string][]string{
	"plan set": {"plans.set"}, "plan list": {"plans.list"}, "plan delete": {"plans.delete"},
	"account set": {"accounts.set"}, "account list": {"accounts.list"}, "account delete": {"accounts.delete"},
	"user set": {"users.set"}, "user list": {"users.list"}, "user delete": {"users.delete"}, "user show": {"users.overview"},
	"key create": {"keys.create"}, "key regenerate": {"keys.regenerate"}, "key revoke": {"keys.revoke"}, "key list": {"keys.list"},
	"session create": {"sessions.create", "login_links.create"}, "session revoke": {"sessions.revoke"},
	"credits show": {"credits.get"}, "credits grant": {"credits.grant"}, "credits statement": {"credits.statement", "credits.account_statement"},
	"usage": {"usage.list"}, "ledger verify": {"ledger.verify"}, "audit": {"audit.list"}, "replicas": {"replicas.list"},
	"events list": {"events.list"}, "events retry": {"events.retry", "webhooks.retry"}, "events endpoints": {"webhooks.list"},
}

// localOnly says of the other commands that work on a service or on its database what to do in
// place of --server.
var localOnly = map[string]string{
	"import":                  "an import is one transaction: run it where the database can be reached",
	"export":                  "an export reads the whole database: run it where the database can be reached",
	"serve":                   "it is the service: run it on the machine that serves",
	"demo":                    "it starts a service of its own",
	"init":                    "it writes the files of a new service: run it where they belong",
	"migrate":                 "it needs the database: run it with --database, where the database can be reached",
	"check":                   "it needs the route table and the database: run it with the configuration of the service; what a key is, POST /v1/keys:verify answers",
	"drill revoke":            "it needs the database and the gRPC ports of the replicas: run it with --database",
	"seal init":               "the private seal key must not travel: run it with --database, on the machine that keeps the file",
	"seal rotate":             "the private seal key must not travel: run it with --database, on the machine that keeps the file",
	"replicas accept-history": "it is for a service that answers nothing: run it with --database",
}

// hasRemoteForm returns an error if a command cannot work with --server.
func hasRemoteForm(cmd *cobra.Command) error {
	name := strings.TrimPrefix(cmd.CommandPath(), "keyporter ")
	if why := localOnly[name]; why != "" {
		return usageError{fmt.Errorf("--server: `keyporter %s` has no remote form: %s", name, why)}
	}
	return nil
}

// remote returns the operator who works by the API of --server.
func remote(c config.Config) (operator, error) {
	api, err := c.Client()
	if err != nil {
		return operator{}, err
	}
	return operator{
		plans: remotePlans{api}, accounts: remoteAccounts{api}, users: remoteUsers{api}, keys: remoteKeys{api}, sessions: remoteSessions{api},
		credits: remoteCredits{api}, usage: remoteUsage{api}, audit: remoteAudit{api}, replicas: remoteReplicas{api}, events: remoteEvents{api},
	}, nil
}

// remoteError is an error of the API, with the kind that a local one has.
type remoteError struct{ error }

func (e remoteError) Unwrap() error { return e.error }

// kindsOfCodes are the kinds of answers that the exit status depends on.
var kindsOfCodes = map[client.Code]error{"invalid_field": store.ErrInvalid, "missing_field": store.ErrInvalid, client.ErrNotFound: store.ErrNotFound}

// Is reports whether the answer is of a kind.
func (e remoteError) Is(kind error) bool {
	p := (*client.Problem)(nil)
	return errors.As(e.error, &p) && kind == kindsOfCodes[p.Code]
}

func (e remoteError) Error() string {
	p := (*client.Problem)(nil)
	switch {
	case !errors.As(e.error, &p):
		return e.error.Error()
	case p.Code == client.ErrUnauthorized:
		return "the service does not know the token of --token-file: its SHA-256 must be a line of --admin-tokens-file there"
	case p.Code == "" || p.Status >= 500:
		return "--server: " + p.Error()
	}
	return p.Detail
}

// ofServer returns an error of the API as commands print it.
func ofServer(err error) error {
	if err == nil {
		return nil
	}
	return remoteError{err}
}

// as returns a value of the API as the one that a database gives: both have the same JSON.
func as[T any](value any, err error) (out T, _ error) {
	if err != nil {
		return out, ofServer(err)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal(text, &out)
}

// each does the same with a list.
func each[T, V any](list iter.Seq2[V, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for value, err := range list {
			if one, err := as[T](value, err); !yield(one, err) || err != nil {
				return
			}
		}
	}
}

// changed does the same with a change.
func changed[T, V any](done client.Changed[V], err error) (operations.Committed[T], error) {
	result, err := as[T](done.Value, err)
	return enforced(done.Enforcement, result, err)
}

// enforced returns a change with its confirmation.
func enforced[T any](e client.Enforcement, result T, err error) (operations.Committed[T], error) {
	if err != nil {
		return operations.Committed[T]{}, err
	}
	c := operations.Committed[T]{Result: result, Confirmation: feed.Confirmation{Confirmation: lease.Confirmation{
		Total: e.Replicas.Total, Acknowledged: e.Replicas.Acknowledged, Expired: e.Replicas.Expired, Took: time.Duration(e.TookMS) * time.Millisecond,
	}}}
	if !e.Confirmed {
		c.Unconfirmed = lease.ErrUnconfirmed
	}
	return c, nil
}

// shown returns a secret that was made, or nil if an earlier call has shown it.
func shown(s client.Secret) *string {
	if s.IsZero() {
		return nil
	}
	return new(s.Reveal())
}

type remotePlans struct{ api *client.Client }

func (r remotePlans) Set(ctx context.Context, name string, p directory.PlanChange, once feed.IdempotencyKey) (operations.Committed[operations.Plan], error) {
	change := client.PlanChange{APIAccess: p.APIAccess, RateLimit: p.RateLimit, RateWindow: (*client.Span)(p.RateWindow), Credits: p.Credits, Pool: p.Pool}
	return changed[operations.Plan](r.api.Once(string(once)).SetPlan(ctx, name, change))
}

func (r remotePlans) Delete(ctx context.Context, name string, once feed.IdempotencyKey) (operations.Committed[operations.Deleted], error) {
	return changed[operations.Deleted](r.api.Once(string(once)).DeletePlan(ctx, name))
}

func (r remotePlans) Each(ctx context.Context) iter.Seq2[operations.Plan, error] {
	return each[operations.Plan](r.api.Plans(ctx))
}

type remoteAccounts struct{ api *client.Client }

func (r remoteAccounts) Set(ctx context.Context, name string, a directory.AccountChange, once feed.IdempotencyKey) (operations.Committed[directory.Account], error) {
	return changed[directory.Account](r.api.Once(string(once)).SetAccount(ctx, name, client.AccountChange{Plan: a.Plan, Kind: a.Kind, Status: a.Status}))
}

func (r remoteAccounts) Delete(ctx context.Context, name string, once feed.IdempotencyKey) (operations.Committed[operations.Deleted], error) {
	return changed[operations.Deleted](r.api.Once(string(once)).DeleteAccount(ctx, name))
}

func (r remoteAccounts) Each(ctx context.Context) iter.Seq2[directory.Account, error] {
	return each[directory.Account](r.api.Accounts(ctx, ""))
}

type remoteUsers struct{ api *client.Client }

func (r remoteUsers) Set(ctx context.Context, name string, u directory.UserChange, once feed.IdempotencyKey) (operations.Committed[directory.User], error) {
	change := client.UserChange{Account: u.Account, Kind: u.Kind, Status: u.Status, Subject: u.Subject}
	return changed[directory.User](r.api.Once(string(once)).SetUser(ctx, name, change))
}

func (r remoteUsers) Delete(ctx context.Context, name string, once feed.IdempotencyKey) (operations.Committed[operations.Deleted], error) {
	return changed[operations.Deleted](r.api.Once(string(once)).DeleteUser(ctx, name))
}

func (r remoteUsers) Each(ctx context.Context) iter.Seq2[directory.User, error] {
	return each[directory.User](r.api.Users(ctx, "", ""))
}

func (r remoteUsers) Show(ctx context.Context, name string) (*operations.User, error) {
	return as[*operations.User](r.api.UserOverview(ctx, name))
}

type remoteKeys struct{ api *client.Client }

func (r remoteKeys) Create(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[operations.MadeKey], error) {
	return madeKey(r.api.Once(string(once)).CreateKey(ctx, user))
}

func (r remoteKeys) Regenerate(ctx context.Context, user, replaces string, once feed.IdempotencyKey) (operations.Committed[operations.MadeKey], error) {
	return madeKey(r.api.Once(string(once)).RegenerateKey(ctx, user, replaces))
}

func madeKey(done client.Changed[client.MadeKey], err error) (operations.Committed[operations.MadeKey], error) {
	key := operations.MadeKey{ID: done.Value.ID, User: done.Value.User, Key: shown(done.Value.Key), Code: done.Value.Code}
	made, err := enforced(done.Enforcement, key, ofServer(err))
	made.Confirmation.Repeated = key.Code != ""
	return made, err
}

func (r remoteKeys) Revoke(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[directory.Key], error) {
	return changed[directory.Key](r.api.Once(string(once)).RevokeKey(ctx, user))
}

func (r remoteKeys) Each(ctx context.Context, user string) iter.Seq2[directory.Key, error] {
	return each[directory.Key](r.api.Keys(ctx, user))
}

type remoteSessions struct{ api *client.Client }

func (r remoteSessions) Create(ctx context.Context, user string, ttl time.Duration, once feed.IdempotencyKey) (operations.Committed[operations.MadeSession], error) {
	done, err := r.api.Once(string(once)).CreateSession(ctx, user, ttl)
	return enforced(done.Enforcement, operations.MadeSession{User: done.Value.User, Cookie: shown(done.Value.Cookie), Expires: done.Value.Expires}, ofServer(err))
}

func (r remoteSessions) CreateLink(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[operations.MadeLink], error) {
	done, err := r.api.Once(string(once)).CreateLoginLink(ctx, user)
	return enforced(done.Enforcement, operations.MadeLink{User: done.Value.User, Link: shown(done.Value.Link), Expires: done.Value.Expires}, ofServer(err))
}

func (r remoteSessions) Revoke(ctx context.Context, user string, once feed.IdempotencyKey) (operations.Committed[operations.RevokedSessions], error) {
	return changed[operations.RevokedSessions](r.api.Once(string(once)).RevokeSessions(ctx, user))
}

type remoteCredits struct{ api *client.Client }

func (r remoteCredits) Balance(ctx context.Context, user string) (operations.Balance, error) {
	return as[operations.Balance](r.api.Credits(ctx, user))
}

func (r remoteCredits) Grant(ctx context.Context, user string, credits int64, once feed.IdempotencyKey) (operations.Committed[operations.Granted], error) {
	return changed[operations.Granted](r.api.Once(string(once)).GrantCredits(ctx, user, credits))
}

func (r remoteCredits) Statement(ctx context.Context, user string, month *usage.Month) (iter.Seq2[operations.Posting, error], usage.Month, error) {
	of := orThis(month)
	return each[operations.Posting](r.api.Statement(ctx, user, of.String())), of, nil
}

func (r remoteCredits) AccountStatement(ctx context.Context, account string, month *usage.Month) (iter.Seq2[operations.Posting, error], usage.Month, error) {
	of := orThis(month)
	return each[operations.Posting](r.api.AccountStatement(ctx, account, of.String())), of, nil
}

// orThis returns a month, or this one by the clock of this machine: the rows name the month that
// was asked for, even if the service has another one by now.
func orThis(month *usage.Month) usage.Month {
	if month == nil {
		return usage.MonthOf(time.Now())
	}
	return *month
}

func (r remoteCredits) Verify(ctx context.Context) (operations.Verification, error) {
	return as[operations.Verification](r.api.VerifyLedger(ctx))
}

type remoteUsage struct{ api *client.Client }

func (r remoteUsage) Each(ctx context.Context, q operations.UsageQuery) iter.Seq2[operations.UsageRow, error] {
	return each[operations.UsageRow](r.api.Usage(ctx, client.UsageQuery(q)))
}

type remoteAudit struct{ api *client.Client }

func (r remoteAudit) Each(ctx context.Context, f operations.AuditFilter) iter.Seq2[directory.AuditEntry, error] {
	filter := client.AuditFilter{Name: f.Name}
	if f.Since > 0 {
		filter.Since = time.Now().Add(-f.Since)
	}
	return func(yield func(directory.AuditEntry, error) bool) {
		n := 0
		for entry, err := range each[directory.AuditEntry](r.api.Audit(ctx, filter)) {
			if n++; !yield(entry, err) || err != nil || n == f.Limit {
				return
			}
		}
	}
}

type remoteReplicas struct{ api *client.Client }

// List lists the running replicas, which know themselves whether they count together.
func (r remoteReplicas) List(ctx context.Context, _ bool) (operations.ReplicaList, error) {
	return as[operations.ReplicaList](r.api.Replicas(ctx))
}

type remoteEvents struct{ api *client.Client }

func (r remoteEvents) Each(ctx context.Context, f operations.EventFilter) iter.Seq2[operations.Event, error] {
	return each[operations.Event](r.api.Events(ctx, client.EventFilter(f)))
}

func (r remoteEvents) Retry(ctx context.Context, id string, once feed.IdempotencyKey) (operations.Committed[operations.Retried], error) {
	return changed[operations.Retried](r.api.Once(string(once)).RetryEvent(ctx, id))
}

func (r remoteEvents) RetryEndpoint(ctx context.Context, endpoint string, once feed.IdempotencyKey) (operations.Committed[operations.Retried], error) {
	return changed[operations.Retried](r.api.Once(string(once)).RetryWebhook(ctx, endpoint))
}

func (r remoteEvents) Endpoints(ctx context.Context) (operations.WebhookList, error) {
	return as[operations.WebhookList](r.api.Webhooks(ctx))
}
