package admin

import (
	"context"
	"time"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/usage"
)

// planFields are the fields of a plan that a change names.
type planFields struct {
	Name       *string      `json:"name" doc:"the name in the path, if given at all"`
	APIAccess  *bool        `json:"api_access" doc:"whether keys open the API; true for a new plan"`
	RateLimit  *usage.Limit `json:"rate_limit" max:"10000" doc:"requests of a user in any rate_window; 60 for a new plan"`
	RateWindow *period      `json:"rate_window" doc:"one second to 24 hours, such as 90s; one minute for a new plan"`
	Credits    *usage.Limit `json:"credits" max:"1000000000000000" doc:"credits per month; 20000 for a new plan"`
	Pool       *string      `json:"pool" enum:"user,account" doc:"who has the credits; user for a new plan"`
}

func (f planFields) change() directory.PlanChange {
	return directory.PlanChange{APIAccess: f.APIAccess, RateLimit: f.RateLimit, RateWindow: (*time.Duration)(f.RateWindow), Credits: f.Credits, Pool: f.Pool}
}

type (
	planPut struct {
		ofPlan
		repeatable
		conditional
		planFields
	}
	planPatch struct {
		ofPlan
		repeatable
		existing
		planFields
	}
	planDelete struct {
		ofPlan
		repeatable
		existing
	}
)

func listPlans(ctx context.Context, c *call, in paged) (operations.Page[operations.Plan], error) {
	cursor, n := in.page()
	return c.by.Plans().Page(ctx, cursor, n)
}

func findPlan(ctx context.Context, c *call, in ofPlan) (operations.Plan, error) {
	return c.by.Plans().Find(ctx, in.Plan)
}

func putPlan(ctx context.Context, c *call, in planPut) (operations.Committed[operations.Plan], error) {
	on, err := in.condition(false)
	return setPlan(ctx, c, in.Plan, in.planFields, in.repeatable, on, err)
}

func patchPlan(ctx context.Context, c *call, in planPatch) (operations.Committed[operations.Plan], error) {
	on, err := in.condition(true)
	return setPlan(ctx, c, in.Plan, in.planFields, in.repeatable, on, err)
}

func setPlan(ctx context.Context, c *call, name string, fields planFields, named repeatable, on directory.Condition, err error) (done operations.Committed[operations.Plan], _ error) {
	once, err := checked(c, fields.Name, name, named, err)
	if err != nil {
		return done, err
	}
	return c.by.Plans().Provided(on).Set(ctx, name, fields.change(), once)
}

func deletePlan(ctx context.Context, c *call, in planDelete) (done operations.Committed[operations.Deleted], err error) {
	on, err := in.condition(true)
	once, err := checked(c, nil, in.Plan, in.repeatable, err)
	if err != nil {
		return done, err
	}
	return c.by.Plans().Provided(on).Delete(ctx, in.Plan, once)
}

// accountFields are the fields of an account that a change names.
type accountFields struct {
	Name   *string `json:"name" doc:"the name in the path, if given at all"`
	Plan   *string `json:"plan" form:"name" doc:"the plan; a new account needs one"`
	Kind   *string `json:"kind" enum:"person,organization" doc:"what the account is; person for a new one"`
	Status *string `json:"status" enum:"active,suspended,cancelled" doc:"keys open the API while it is active; active for a new account"`
}

type (
	accountsOf struct {
		paged
		Plan *string `query:"plan" form:"name" doc:"only accounts with this plan"`
	}
	accountPut struct {
		ofAccount
		repeatable
		conditional
		accountFields
	}
	accountPatch struct {
		ofAccount
		repeatable
		existing
		accountFields
	}
	accountDelete struct {
		ofAccount
		repeatable
		existing
	}
)

func listAccounts(ctx context.Context, c *call, in accountsOf) (operations.Page[directory.Account], error) {
	cursor, n := in.page()
	return c.by.Accounts().Page(ctx, text(in.Plan), cursor, n)
}

func findAccount(ctx context.Context, c *call, in ofAccount) (directory.Account, error) {
	return c.by.Accounts().Find(ctx, in.Account)
}

func putAccount(ctx context.Context, c *call, in accountPut) (operations.Committed[directory.Account], error) {
	on, err := in.condition(false)
	return setAccount(ctx, c, in.Account, in.accountFields, in.repeatable, on, err)
}

func patchAccount(ctx context.Context, c *call, in accountPatch) (operations.Committed[directory.Account], error) {
	on, err := in.condition(true)
	return setAccount(ctx, c, in.Account, in.accountFields, in.repeatable, on, err)
}

func setAccount(ctx context.Context, c *call, name string, fields accountFields, named repeatable, on directory.Condition, err error) (done operations.Committed[directory.Account], _ error) {
	once, err := checked(c, fields.Name, name, named, err)
	if err != nil {
		return done, err
	}
	return c.by.Accounts().Provided(on).Set(ctx, name, directory.AccountChange{Kind: fields.Kind, Plan: fields.Plan, Status: fields.Status}, once)
}

func deleteAccount(ctx context.Context, c *call, in accountDelete) (done operations.Committed[operations.Deleted], err error) {
	on, err := in.condition(true)
	once, err := checked(c, nil, in.Account, in.repeatable, err)
	if err != nil {
		return done, err
	}
	return c.by.Accounts().Provided(on).Delete(ctx, in.Account, once)
}

// userFields are the fields of a user that a change names.
type userFields struct {
	Name    *string `json:"name" doc:"the name in the path, if given at all"`
	Account *string `json:"account" form:"name" doc:"the account; a new user needs one"`
	Kind    *string `json:"kind" enum:"person,service" doc:"who the user is; person for a new one"`
	Status  *string `json:"status" enum:"active,disabled" doc:"the key and the sessions of a disabled user open nothing; active for a new user"`
	Subject *string `json:"subject" length:"255" doc:"what your web app calls the user in its tokens, at most 255 bytes; empty for none"`
}

type (
	usersOf struct {
		paged
		Account *string `query:"account" form:"name" doc:"only users of this account"`
		Subject *string `query:"subject" length:"255" doc:"only the user with this subject"`
	}
	userPut struct {
		ofUser
		repeatable
		conditional
		userFields
	}
	userPatch struct {
		ofUser
		repeatable
		existing
		userFields
	}
	userDelete struct {
		ofUser
		repeatable
		existing
	}
)

func listUsers(ctx context.Context, c *call, in usersOf) (operations.Page[directory.User], error) {
	cursor, n := in.page()
	return c.by.Users().Page(ctx, text(in.Account), text(in.Subject), cursor, n)
}

func findUser(ctx context.Context, c *call, in ofUser) (directory.User, error) {
	return c.by.Users().Find(ctx, in.User)
}

func showUser(ctx context.Context, c *call, in ofUser) (*operations.User, error) {
	return c.by.Users().Show(ctx, in.User)
}

func putUser(ctx context.Context, c *call, in userPut) (operations.Committed[directory.User], error) {
	on, err := in.condition(false)
	return setUser(ctx, c, in.User, in.userFields, in.repeatable, on, err)
}

func patchUser(ctx context.Context, c *call, in userPatch) (operations.Committed[directory.User], error) {
	on, err := in.condition(true)
	return setUser(ctx, c, in.User, in.userFields, in.repeatable, on, err)
}

func setUser(ctx context.Context, c *call, name string, fields userFields, named repeatable, on directory.Condition, err error) (done operations.Committed[directory.User], _ error) {
	once, err := checked(c, fields.Name, name, named, err)
	if err != nil {
		return done, err
	}
	change := directory.UserChange{Kind: fields.Kind, Account: fields.Account, Status: fields.Status, Subject: fields.Subject}
	return c.by.Users().Provided(on).Set(ctx, name, change, once)
}

func deleteUser(ctx context.Context, c *call, in userDelete) (done operations.Committed[operations.Deleted], err error) {
	on, err := in.condition(true)
	once, err := checked(c, nil, in.User, in.repeatable, err)
	if err != nil {
		return done, err
	}
	return c.by.Users().Provided(on).Delete(ctx, in.User, once)
}
