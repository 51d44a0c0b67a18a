package directory

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"reflect"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/usage"
)

// MaxRateLimit is the highest rate limit of a plan, in requests per window.
const MaxRateLimit = 10_000

// MaxCredits is the highest credit limit of a plan, so that sums stay far from the largest number.
const MaxCredits = 1_000_000_000_000_000

// Plan is the service level of an account.
type Plan struct {
	Name       string        `json:"name"`
	APIAccess  bool          `json:"api_access"`
	RateLimit  usage.Limit   `json:"rate_limit"`  // requests per window and user, at most [MaxRateLimit]
	RateWindow time.Duration `json:"rate_window"` // of the rate limit
	Credits    usage.Limit   `json:"credits"`     // per month, at most [MaxCredits]
	Pool       string        `json:"pool"`        // "user" or "account": the owner of the credits
}

// PlanChange holds the fields to change; nil leaves a field as it is.
type PlanChange struct {
	APIAccess  *bool          `flag:"api-access"`
	RateLimit  *usage.Limit   `flag:"rate-limit"`
	RateWindow *time.Duration `flag:"rate-window"`
	Credits    *usage.Limit   `flag:"credits"`
	Pool       *string        `flag:"pool"`
}

func newPlan(name string) Plan {
	return Plan{Name: name, APIAccess: true, RateLimit: 60, RateWindow: time.Minute, Credits: 20_000, Pool: "user"}
}

func (p *Plan) apply(c PlanChange) {
	set(&p.APIAccess, c.APIAccess)
	set(&p.RateLimit, c.RateLimit)
	set(&p.RateWindow, c.RateWindow)
	set(&p.Credits, c.Credits)
	set(&p.Pool, c.Pool)
}

// set copies value unless it is nil.
func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func (p *Plan) check() error {
	switch {
	case p.RateLimit != usage.Unlimited && (p.RateLimit < 0 || p.RateLimit > MaxRateLimit):
		return store.FieldError{Field: "rate_limit", Err: fmt.Errorf("rate limit %d is %w: 0 to %d, or unlimited", p.RateLimit, store.ErrInvalid, MaxRateLimit)}
	case p.RateWindow < time.Second || p.RateWindow > 24*time.Hour || p.RateWindow%time.Millisecond != 0:
		return store.FieldError{Field: "rate_window", Err: fmt.Errorf("rate window %v is %w: one second to 24 hours, in whole milliseconds", p.RateWindow, store.ErrInvalid)}
	case p.Credits < usage.Unlimited || p.Credits > MaxCredits:
		return store.FieldError{Field: "credits", Err: fmt.Errorf("credits %d are %w: 0 to %d, or unlimited", p.Credits, store.ErrInvalid, int64(MaxCredits))}
	case p.Pool != "user" && p.Pool != "account":
		return store.FieldError{Field: "pool", Err: fmt.Errorf("pool %q is %w: want user or account", p.Pool, store.ErrInvalid)}
	}
	return nil
}

// CheckPlan returns an error if a new plan with this change would be invalid.
func CheckPlan(c PlanChange) error {
	plan := newPlan("")
	plan.apply(c)
	return plan.check()
}

// SetPlan creates a plan, with defaults for fields that c omits, or changes the fields in c. It
// returns once no replica decides by the old state.
func (d *Directory) SetPlan(ctx context.Context, name string, change PlanChange, once feed.IdempotencyKey) (Plan, feed.Confirmation, error) {
	if err := d.checkNew("plan", name); err != nil {
		return Plan{}, feed.Confirmation{}, err
	}
	plan, c, err := feed.Change(ctx, d.db, once, d.named("plan set", name, change), func(ctx context.Context, tx *sql.Tx) (Plan, error) {
		return d.setPlan(ctx, tx, name, change)
	})
	if err != nil {
		err = fmt.Errorf("setting plan %s: %w", name, err)
	}
	return plan, c, err
}

// setPlan locks the row and changes it, or creates it. It inserts only where there is none, because
// the triggers of SQLite take an insert that does nothing for a replacement.
func (d *Directory) setPlan(ctx context.Context, tx *sql.Tx, name string, c PlanChange) (plan Plan, err error) {
	plan = newPlan(name)
	plan.apply(c)
	if err := plan.check(); err != nil {
		return Plan{}, err
	}
	found, exists, err := lockPlan(ctx, tx, name)
	if err == nil {
		err = d.on.check(exists, found.Version, errNoPlan)
	}
	if err != nil {
		return Plan{}, err
	}
	if !exists {
		created, err := store.Affected(tx.ExecContext(ctx, `INSERT INTO plans (name, api_access, rate_limit, rate_window, credits, pool)
			VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING`,
			name, plan.APIAccess, nullable(plan.RateLimit), plan.RateWindow.Milliseconds(), nullable(plan.Credits), plan.Pool))
		return plan, orAgain(created, err)
	}
	plan = found
	plan.apply(c)
	if plan == found {
		return plan, nil
	}
	_, err = tx.ExecContext(ctx, `UPDATE plans SET api_access = $2, rate_limit = $3, rate_window = $4, credits = $5, pool = $6
		WHERE name = $1`,
		name, plan.APIAccess, nullable(plan.RateLimit), plan.RateWindow.Milliseconds(), nullable(plan.Credits), plan.Pool)
	return plan, err
}

// lockPlan locks a plan and reads it, if it exists.
func lockPlan(ctx context.Context, tx *sql.Tx, name string) (plan Plan, exists bool, err error) {
	if exists, err = store.Affected(tx.ExecContext(ctx, `UPDATE plans SET name = name WHERE name = $1`, name)); err != nil || !exists {
		return plan, exists, err
	}
	plan, err = scanPlan(tx.QueryRowContext(ctx, planColumns+` WHERE name = $1`, name))
	return plan, true, err
}

// orAgain returns the error of an insert. If the row was not created, another transaction has done
// so in between.
func orAgain(created bool, err error) error {
	if err == nil && !created {
		return store.ErrAgain
	}
	return err
}

const planColumns = `SELECT name, api_access, rate_limit, rate_window, credits, pool FROM plans`

func scanPlan(row store.Scanner) (Plan, error) {
	var p Plan
	var rate, credits sql.NullInt64
	var window int64
	if err := row.Scan(&p.Name, &p.APIAccess, &rate, &window, &credits, &p.Pool); err != nil {
		return Plan{}, err
	}
	p.RateLimit, p.Credits = store.LimitOf(rate), store.LimitOf(credits)
	p.RateWindow = time.Duration(window) * time.Millisecond
	return p, nil
}

func nullable(l usage.Limit) sql.NullInt64 {
	return sql.NullInt64{Int64: int64(l), Valid: l != usage.Unlimited}
}

// Version differs if anything of the plan differs.
func (p Plan) Version() string { return versionOf(p) }

var errNoPlan = fmt.Errorf("the plan was %w", store.ErrNotFound)

// Plan returns a plan, or [store.ErrNotFound].
func (d *Directory) Plan(ctx context.Context, name string) (Plan, error) {
	if err := store.CheckName("plan", name); err != nil {
		return Plan{}, err
	}
	plan, err := find(ctx, d.db, scanPlan, errNoPlan, planColumns+` WHERE name = $1`, name)
	if err != nil {
		err = fmt.Errorf("finding plan %s: %w", name, err)
	}
	return plan, err
}

// AllPlans are all plans by name.
func AllPlans() store.Listing[Plan] {
	return store.Listing[Plan]{
		What: "plans", Scan: scanPlan, Query: planColumns + ` WHERE name > $1 ORDER BY name LIMIT $2`,
		Start: []any{""}, Place: func(p Plan) []any { return []any{p.Name} },
	}
}

// EachPlan lists all plans by name.
func (d *Directory) EachPlan(ctx context.Context) iter.Seq2[Plan, error] {
	return AllPlans().Each(ctx, d.db)
}

// Plans lists all plans by name.
func (d *Directory) Plans(ctx context.Context) ([]Plan, error) {
	return store.Collect(d.EachPlan(ctx))
}

// DeletePlan deletes a plan that no account has.
func (d *Directory) DeletePlan(ctx context.Context, name string, once feed.IdempotencyKey) (feed.Confirmation, error) {
	return d.delete(ctx, "plan", name, once, func(ctx context.Context, tx *sql.Tx) (bool, error) {
		if err := holds(ctx, tx, d.on, name, lockPlan); err != nil {
			return false, err
		}
		if err := mustBeFree(ctx, tx, "accounts have it", `SELECT count(*), min(name) FROM accounts WHERE plan = $1`, name); err != nil {
			return false, err
		}
		return store.Affected(tx.ExecContext(ctx, `DELETE FROM plans WHERE name = $1`, name))
	})
}

// delete runs f, which reports whether there was anything to delete. It returns once no replica
// decides by the deleted row.
func (d *Directory) delete(ctx context.Context, kind, name string, once feed.IdempotencyKey, f func(context.Context, *sql.Tx) (bool, error)) (feed.Confirmation, error) {
	if err := store.CheckName(kind, name); err != nil {
		return feed.Confirmation{}, fmt.Errorf("deleting: %w", err)
	}
	_, c, err := feed.Change(ctx, d.db, once, kind+" delete "+name+d.on.String(), func(ctx context.Context, tx *sql.Tx) (bool, error) {
		found, err := f(ctx, tx)
		if d.db.Dialect.Dangling(err) {
			return false, fmt.Errorf("%w: somebody has just begun to use it", store.ErrInUse)
		}
		if err == nil && !found {
			return false, store.ErrNotFound
		}
		return found, err
	})
	if err != nil {
		err = fmt.Errorf("deleting %s %s: %w", kind, name, err)
	}
	return c, err
}

// holds checks the condition of a deletion. It locks the row for that, if there is a condition.
func holds[T interface{ Version() string }](ctx context.Context, tx *sql.Tx, c Condition, name string, lock func(context.Context, *sql.Tx, string) (T, bool, error)) error {
	if c == (Condition{}) {
		return nil
	}
	row, exists, err := lock(ctx, tx, name)
	if err != nil {
		return err
	}
	return c.check(exists, row.Version, store.ErrNotFound)
}

// named returns an operation with its arguments, as the command that performs it, and its
// condition. The change is a struct of pointers, with the flags as tags.
func (d *Directory) named(operation, name string, change any) string {
	words := operation + " " + name
	fields := reflect.ValueOf(change)
	for i := range fields.NumField() {
		if field := fields.Field(i); !field.IsNil() {
			words += fmt.Sprintf(" --%s=%q", fields.Type().Field(i).Tag.Get("flag"), fmt.Sprint(field.Elem()))
		}
	}
	return words + d.on.String()
}

// mustBeFree fails if query counts any users of a thing. The error names the first one.
func mustBeFree(ctx context.Context, tx *sql.Tx, what, query, name string) error {
	var n int
	var example sql.NullString
	if err := tx.QueryRowContext(ctx, query, name).Scan(&n, &example); err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%w: %d %s, the first is %s", store.ErrInUse, n, what, example.String)
	}
	return nil
}
