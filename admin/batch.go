package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
)

// items is the field of a body with the items of a batch.
const items = "items"

type (
	userItem struct {
		Name    string  `json:"name" form:"name" doc:"the name of the user"`
		Account *string `json:"account" form:"name" doc:"the account; a new user needs one"`
		Kind    *string `json:"kind" enum:"person,service" doc:"who the user is; person for a new one"`
		Status  *string `json:"status" enum:"active,disabled" doc:"active for a new user"`
		Subject *string `json:"subject" length:"255" doc:"what your web app calls the user in its tokens; empty for none"`
	}
	usersBatch struct {
		repeatable
		Items []userItem `json:"items" doc:"the users, each once"`
	}
	keyItem struct {
		User string `json:"user" form:"name" doc:"the name of the user"`
	}
	keysBatch struct {
		repeatable
		Items []keyItem `json:"items" doc:"the users, each once"`
	}
	grantItem struct {
		User    string `json:"user" form:"name" doc:"the name of the user"`
		Credits int64  `json:"credits" min:"1" max:"1000000000000" doc:"the credits to add to this month's pool"`
	}
	grantsBatch struct {
		repeatable
		Items []grantItem `json:"items" doc:"the grants"`
	}
)

func setUsers(ctx context.Context, c *call, in usersBatch) (done operations.Committed[operations.Batch[directory.User]], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	sets := make([]directory.UserSet, len(in.Items))
	for i, u := range in.Items {
		sets[i] = directory.UserSet{Name: u.Name, Change: directory.UserChange{Kind: u.Kind, Account: u.Account, Status: u.Status, Subject: u.Subject}}
	}
	return c.by.Users().SetAll(ctx, sets, once)
}

func createKeys(ctx context.Context, c *call, in keysBatch) (done operations.Committed[operations.Batch[operations.MadeKey]], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.keys().CreateAll(ctx, in.users(), once)
}

func revokeKeys(ctx context.Context, c *call, in keysBatch) (done operations.Committed[operations.Batch[directory.Key]], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.keys().RevokeAll(ctx, in.users(), once)
}

func (b keysBatch) users() []string {
	names := make([]string, len(b.Items))
	for i, item := range b.Items {
		names[i] = item.User
	}
	return names
}

func grantAll(ctx context.Context, c *call, in grantsBatch) (done operations.Committed[operations.Batch[operations.Granted]], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	grants := make([]operations.Granted, len(in.Items))
	for i, item := range in.Items {
		grants[i] = operations.Granted{User: item.User, Granted: item.Credits}
	}
	return c.by.Credits().GrantAll(ctx, grants, once)
}

// decodeItems sets a field to a JSON array of objects. A problem names the item by its index.
func (p *param) decodeItems(field reflect.Value, raw json.RawMessage) error {
	var all []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &all) != nil || len(all) == 0 || len(all) > operations.MaxBatch {
		return p.problem(fmt.Sprintf("want an array of 1 to %d objects", operations.MaxBatch))
	}
	field.Set(reflect.MakeSlice(field.Type(), len(all), len(all)))
	for i, item := range all {
		if err := p.decodeItem(field.Index(i), item); err != nil {
			return inItem(i, err)
		}
	}
	return nil
}

func (p *param) decodeItem(into reflect.Value, raw json.RawMessage) error {
	values, err := objectOf(raw)
	if err != nil {
		return problem{code: invalidField, detail: "want an object that has no field twice."}
	}
	for name := range values {
		if !slices.ContainsFunc(p.of, func(one param) bool { return one.name == name }) {
			return problem{code: unknownField, field: printable(name), detail: printable(name) + ": there is no such field."}
		}
	}
	for i := range p.of {
		one := &p.of[i]
		value, given := values[one.name]
		switch {
		case given:
			err = one.decode(into.FieldByIndex(one.index), value)
		case one.required:
			err = one.missing()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inItem returns the problem of an item with its index.
func inItem(index int, err error) error {
	p := problem{}
	if !errors.As(err, &p) {
		return err
	}
	at := fmt.Sprintf("%s[%d]", items, index)
	if p.field == "" {
		p.field, p.detail = at, at+": "+p.detail
		return p
	}
	p.field, p.detail = at+"."+p.field, at+"."+p.detail
	return p
}
