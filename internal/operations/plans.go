package operations

import (
	"context"
	"iter"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
)

// Plans are the plans of accounts.
type Plans struct {
	db *store.DB
	in *directory.Directory
}

// Plans returns the operations on plans.
func (o Operator) Plans() Plans { return Plans{o.db, o.directory()} }

// Provided returns the same operations, with a precondition for each change.
func (p Plans) Provided(c directory.Condition) Plans { return Plans{p.db, p.in.Provided(c)} }

// Plan is a plan, with its window in words.
type Plan struct {
	directory.Plan
	RateWindow string `json:"rate_window"`
}

func newPlan(p directory.Plan) Plan { return Plan{p, p.RateWindow.String()} }

// Set creates a plan, with defaults for what the change omits, or changes what it names.
func (p Plans) Set(ctx context.Context, name string, change directory.PlanChange, once feed.IdempotencyKey) (Committed[Plan], error) {
	plan, done, err := p.in.SetPlan(ctx, name, change, once)
	return committed(newPlan(plan), done, err)
}

// Delete deletes a plan that no account has.
func (p Plans) Delete(ctx context.Context, name string, once feed.IdempotencyKey) (Committed[Deleted], error) {
	done, err := p.in.DeletePlan(ctx, name, once)
	return committed(Deleted{"plan", name}, done, err)
}

// Each lists all plans by name.
func (p Plans) Each(ctx context.Context) iter.Seq2[Plan, error] {
	return store.Convert(p.in.EachPlan(ctx), newPlan)
}

// Find returns a plan.
func (p Plans) Find(ctx context.Context, name string) (Plan, error) {
	plan, err := p.in.Plan(ctx, name)
	return newPlan(plan), err
}

// Page lists at most n plans by name after a cursor.
func (p Plans) Page(ctx context.Context, cursor string, n int) (Page[Plan], error) {
	page, err := pageOf(ctx, p.db, directory.AllPlans(), cursor, n)
	plans := make([]Plan, len(page.Items))
	for i, plan := range page.Items {
		plans[i] = newPlan(plan)
	}
	return Page[Plan]{plans, page.Next}, err
}
