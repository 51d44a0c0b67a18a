package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
)

// event is what a payment provider reports, in the shape of Stripe's.
type event struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Created int64  `json:"created"` // in seconds: several events may have one
	Data    struct {
		Object   json.RawMessage `json:"object"`
		Previous fields          `json:"previous_attributes"` // of an update: what it replaces
	} `json:"data"`
}

// fields are the parts of a subscription that matter here.
type fields struct {
	Status string `json:"status"`
	Items  struct {
		Data []struct {
			Price struct {
				Plan string `json:"lookup_key"` // the name of the plan
			} `json:"price"`
		} `json:"data"`
	} `json:"items"`
}

func (f *fields) plan() string {
	if len(f.Items.Data) == 0 {
		return ""
	}
	return f.Items.Data[0].Price.Plan
}

// metadata is what your own checkout has written to a subscription or an invoice.
type metadata struct {
	Account string `json:"account"` // who pays
	User    string `json:"user"`    // who gets the credits
	Credits int64  `json:"credits,string"`
}

// subscription is the newest known state of a subscription.
type subscription struct {
	Account string `json:"account"`
	Plan    string `json:"plan"`
	Status  string `json:"status"`
	Began   int64  `json:"began"`
	Stamp   int64  `json:"stamp"` // of the event that reported the state
}

// over reports whether a subscription has ended, which is for good.
func (s *subscription) over() bool {
	return s.Status == "canceled" || s.Status == "incomplete_expired"
}

// grant is credits that were paid for.
type grant struct {
	User    string
	Credits int64
}

// books is all that is remembered of events. Which events have arrived, and in which order, makes
// no difference to it.
type books struct {
	Subscriptions map[string]subscription `json:"subscriptions"` // by id
	Invoices      map[string]bool         `json:"invoices"`      // ids of those whose credits were granted
}

// take enters an event of a subscription. It returns the account whose state may have changed, or
// "": the event is older than what is known, or about something else.
func (b *books) take(e event) (account string, err error) {
	switch e.Type {
	case "customer.subscription.created", "customer.subscription.updated", "customer.subscription.deleted":
	default:
		return "", nil
	}
	var object struct {
		fields
		ID       string   `json:"id"`
		Created  int64    `json:"created"`
		Metadata metadata `json:"metadata"`
	}
	if err := json.Unmarshal(e.Data.Object, &object); err != nil {
		return "", err
	}
	told := subscription{object.Metadata.Account, object.plan(), object.Status, object.Created, e.Created}
	if object.ID == "" || told.Account == "" || told.Plan == "" || e.Created == 0 {
		return "", errors.New("a subscription without id, metadata.account, price.lookup_key or created")
	}
	if known, is := b.Subscriptions[object.ID]; is && !follows(known, told, e) {
		return known.Account, nil // the account is set again: the last time may have failed
	}
	if b.Subscriptions == nil {
		b.Subscriptions = map[string]subscription{}
	}
	b.Subscriptions[object.ID] = told
	return told.Account, nil
}

// follows reports whether what an event tells is newer than what is known. Of one second, an end is
// the newest; an update follows the state that it says it replaces, and a creation follows nothing.
func follows(known, told subscription, e event) bool {
	switch {
	case known.over():
		return false
	case told.over(), told.Stamp > known.Stamp:
		return true
	case told.Stamp < known.Stamp || e.Type == "customer.subscription.created":
		return false
	}
	before := e.Data.Previous
	return cmp.Or(before.Status, told.Status) == known.Status && cmp.Or(before.plan(), told.Plan) == known.Plan
}

// state returns the plan and the status that an account has by its subscriptions: by the one that
// began last of those that are not over, or of all.
func (b *books) state(account string) (plan, status string) {
	var best subscription
	for _, s := range b.Subscriptions {
		if s.Account != account {
			continue
		}
		if best.Account == "" || best.over() && !s.over() || best.over() == s.over() && s.Began > best.Began {
			best = s
		}
	}
	return best.Plan, statusOf(best.Status)
}

// statusOf returns what a subscription's status means for the API.
func statusOf(status string) string {
	switch status {
	case "active", "trialing", "past_due": // the provider still tries to collect
		return "active"
	case "canceled", "incomplete_expired":
		return "cancelled"
	}
	return "suspended"
}

// credits returns the id of an invoice and the credits that it pays for; no credits: none, or they
// were granted before.
func (b *books) credits(e event) (invoice string, g grant, err error) {
	if e.Type != "invoice.paid" {
		return "", grant{}, nil
	}
	var object struct {
		ID       string   `json:"id"`
		Metadata metadata `json:"metadata"`
	}
	if err := json.Unmarshal(e.Data.Object, &object); err != nil {
		return "", grant{}, err
	}
	if object.ID == "" {
		return "", grant{}, fmt.Errorf("an invoice without id")
	}
	if object.Metadata.Credits < 1 || b.Invoices[object.ID] {
		return object.ID, grant{}, nil
	}
	return object.ID, grant{object.Metadata.User, object.Metadata.Credits}, nil
}
