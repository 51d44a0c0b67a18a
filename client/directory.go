package client

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"time"
)

// Plan is what an account has.
type Plan struct {
	Name       string `json:"name"`
	APIAccess  bool   `json:"api_access"`
	RateLimit  Limit  `json:"rate_limit"` // requests of a user in any window
	RateWindow Span   `json:"rate_window"`
	Credits    Limit  `json:"credits"` // per month
	Pool       string `json:"pool"`    // user or account: who has the credits
	ETag       string `json:"-"`       // the version, for [Client.IfMatch]; "" in a list
}

func (p *Plan) setETag(etag string) { p.ETag = etag }

// PlanChange names fields of a plan. Nil: as it is, or the default of a new plan.
type PlanChange struct {
	APIAccess  *bool   `json:"api_access,omitempty"`
	RateLimit  *Limit  `json:"rate_limit,omitempty"`
	RateWindow *Span   `json:"rate_window,omitempty"` // one second to 24 hours
	Credits    *Limit  `json:"credits,omitempty"`
	Pool       *string `json:"pool,omitempty"`
}

// Account is a person or an organization with a plan.
type Account struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"` // person or organization
	Plan   string `json:"plan"`
	Status string `json:"status"` // active, suspended or cancelled
	ETag   string `json:"-"`      // the version, for [Client.IfMatch]; "" in a list
}

func (a *Account) setETag(etag string) { a.ETag = etag }

// AccountChange names fields of an account. Nil: as it is, or the default of a new account, which
// needs a plan.
type AccountChange struct {
	Plan   *string `json:"plan,omitempty"`
	Kind   *string `json:"kind,omitempty"`
	Status *string `json:"status,omitempty"`
}

// User is a person or a service of an account.
type User struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"` // person or service
	Account string `json:"account"`
	Status  string `json:"status"`  // active or disabled
	Subject string `json:"subject"` // what your web app calls the user in its tokens; "": nothing
	ETag    string `json:"-"`       // the version, for [Client.IfMatch]; "" in a list
}

func (u *User) setETag(etag string) { u.ETag = etag }

// UserChange names fields of a user. Nil: as it is, or the default of a new user, who needs an
// account.
type UserChange struct {
	Account *string `json:"account,omitempty"`
	Kind    *string `json:"kind,omitempty"`
	Status  *string `json:"status,omitempty"`
	Subject *string `json:"subject,omitempty"`
}

// Deleted is what was deleted.
type Deleted struct {
	Kind string `json:"deleted"` // plan, account or user
	Name string `json:"name"`
}

// Plans lists the plans by name.
func (c *Client) Plans(ctx context.Context) iter.Seq2[Plan, error] {
	return pages[Plan](ctx, c, "/v1/plans", nil)
}

// Plan returns a plan.
func (c *Client) Plan(ctx context.Context, name string) (Plan, error) {
	p, etag, err := readTagged[Plan](ctx, c, path("/v1/plans/", name), nil)
	p.ETag = etag
	return p, err
}

// SetPlan creates a plan, or changes what the change names.
func (c *Client) SetPlan(ctx context.Context, name string, p PlanChange) (Changed[Plan], error) {
	return change[Plan](ctx, c, http.MethodPut, path("/v1/plans/", name), p)
}

// ChangePlan changes a plan that exists.
func (c *Client) ChangePlan(ctx context.Context, name string, p PlanChange) (Changed[Plan], error) {
	return change[Plan](ctx, c, http.MethodPatch, path("/v1/plans/", name), p)
}

// DeletePlan deletes a plan that no account has.
func (c *Client) DeletePlan(ctx context.Context, name string) (Changed[Deleted], error) {
	return change[Deleted](ctx, c, http.MethodDelete, path("/v1/plans/", name), nil)
}

// Accounts lists the accounts with a plan, or all if the plan is "", by name.
func (c *Client) Accounts(ctx context.Context, plan string) iter.Seq2[Account, error] {
	return pages[Account](ctx, c, "/v1/accounts", filter("plan", plan))
}

// Account returns an account.
func (c *Client) Account(ctx context.Context, name string) (Account, error) {
	a, etag, err := readTagged[Account](ctx, c, path("/v1/accounts/", name), nil)
	a.ETag = etag
	return a, err
}

// SetAccount creates an account, or changes what the change names.
func (c *Client) SetAccount(ctx context.Context, name string, a AccountChange) (Changed[Account], error) {
	return change[Account](ctx, c, http.MethodPut, path("/v1/accounts/", name), a)
}

// ChangeAccount changes an account that exists.
func (c *Client) ChangeAccount(ctx context.Context, name string, a AccountChange) (Changed[Account], error) {
	return change[Account](ctx, c, http.MethodPatch, path("/v1/accounts/", name), a)
}

// DeleteAccount deletes an account without users.
func (c *Client) DeleteAccount(ctx context.Context, name string) (Changed[Deleted], error) {
	return change[Deleted](ctx, c, http.MethodDelete, path("/v1/accounts/", name), nil)
}

// Users lists the users of an account and with a subject, by name. An empty account or subject is
// any.
func (c *Client) Users(ctx context.Context, account, subject string) iter.Seq2[User, error] {
	return pages[User](ctx, c, "/v1/users", filter("account", account, "subject", subject))
}

// User returns a user.
func (c *Client) User(ctx context.Context, name string) (User, error) {
	u, etag, err := readTagged[User](ctx, c, path("/v1/users/", name), nil)
	u.ETag = etag
	return u, err
}

// SetUser creates a user, or changes what the change names.
func (c *Client) SetUser(ctx context.Context, name string, u UserChange) (Changed[User], error) {
	return change[User](ctx, c, http.MethodPut, path("/v1/users/", name), u)
}

// ChangeUser changes a user who exists.
func (c *Client) ChangeUser(ctx context.Context, name string, u UserChange) (Changed[User], error) {
	return change[User](ctx, c, http.MethodPatch, path("/v1/users/", name), u)
}

// DeleteUser deletes a user with their keys and sessions.
func (c *Client) DeleteUser(ctx context.Context, name string) (Changed[Deleted], error) {
	return change[Deleted](ctx, c, http.MethodDelete, path("/v1/users/", name), nil)
}

// Overview is what a user's page shows, without the key.
type Overview struct {
	User
	Plan       string         `json:"plan"`
	APIAccess  bool           `json:"api_access"` // the key opens the API
	RateLimit  Limit          `json:"rate_limit"`
	RateWindow Span           `json:"rate_window"`
	Key        *KeyUse        `json:"key"` // nil: the user has none
	OldKeys    OldKeys        `json:"old_keys"`
	Credits    PoolCredits    `json:"credits"`
	Days       []CreditsOfDay `json:"days"`     // the last 30
	Requests   []Request      `json:"requests"` // the last 20
}

// KeyUse is a live key, and how it is used.
type KeyUse struct {
	ID         string     `json:"id"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"` // nil: never
	CanBeShown bool       `json:"can_be_shown"` // a sealed copy exists
	LastHour   int64      `json:"requests_last_hour"`
	LastDay    int64      `json:"requests_last_day"`
}

// OldKeys is how often keys that are no longer live were tried.
type OldKeys struct {
	Count   int64      `json:"count"`
	LastAt  *time.Time `json:"last_at"`
	Address string     `json:"address"`
	Agent   string     `json:"user_agent"`
}

// CreditsOfDay is the credits of one day.
type CreditsOfDay struct {
	Date     string `json:"date"` // such as 2026-11-24
	Used     int64  `json:"used"`
	Refunded int64  `json:"refunded"`
}

// Request is one request as the page lists it.
type Request struct {
	At       time.Time `json:"at"`
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Status   int       `json:"status"`
	Reason   string    `json:"reason"`
	Credits  int64     `json:"credits"`
	Refunded bool      `json:"refunded"`
}

// UserOverview returns what a user's page shows, without the key.
func (c *Client) UserOverview(ctx context.Context, user string) (Overview, error) {
	return read[Overview](ctx, c, path("/v1/users/", user, "/overview"), nil)
}

// AuditEntry is one change.
type AuditEntry struct {
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Actor  string          `json:"actor"`  // such as api:billing, command:root, page:ada
	Action string          `json:"action"` // created, changed, deleted, revealed
	Kind   string          `json:"kind"`   // of what was changed
	Name   string          `json:"name"`
	Detail json.RawMessage `json:"detail"` // an object with old and new values, without secrets
}

// AuditFilter selects entries of the audit. The zero AuditFilter selects all.
type AuditFilter struct {
	Name  string    // of a plan, account or user
	Since time.Time // the first time
}

// Audit lists who changed what, newest first.
func (c *Client) Audit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEntry, error] {
	since := ""
	if !f.Since.IsZero() {
		since = f.Since.UTC().Format(time.RFC3339Nano)
	}
	return pages[AuditEntry](ctx, c, "/v1/audit", filter("name", f.Name, "since", since))
}

// ReplicaList is the list of running replicas.
type ReplicaList struct {
	Epoch      int64      `json:"epoch"` // of the database
	RateLimits RateLimits `json:"rate_limits"`
	Replicas   []Replica  `json:"replicas"`
}

// Replica is a replica and its state.
type Replica struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Address     string    `json:"address"`
	Version     string    `json:"version"`
	Routes      string    `json:"routes"` // the hash of its route table
	StartedAt   time.Time `json:"started_at"`
	Epoch       int64     `json:"epoch"` // it has applied all changes up to this; -1: none
	Lag         int64     `json:"lag"`   // how many changes it has not applied
	State       string    `json:"state"` // live or silent
	LeaseMS     int64     `json:"lease_ms"`
	LeaseLeftMS *int64    `json:"lease_left_ms"` // nil if unknown
}

// RateLimits is the scope of rate limits.
type RateLimits struct {
	Valkey    bool `json:"valkey"`
	DividedBy int  `json:"divided_by"` // 1: limits are exact
}

// Replicas lists the running replicas.
func (c *Client) Replicas(ctx context.Context) (ReplicaList, error) {
	return read[ReplicaList](ctx, c, "/v1/replicas", nil)
}
