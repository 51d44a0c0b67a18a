package operations

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/usage"
)

// Credits are the credits of users and accounts.
type Credits struct {
	in *ledger.Ledger
	db *store.DB
}

// Credits returns the operations on credits.
func (o Operator) Credits() Credits { return Credits{ledger.New(o.db), o.db} }

// Balance is the balance of a user's credits in a month.
type Balance struct {
	ledger.Balance
	Month     string      `json:"month"`
	Remaining usage.Limit `json:"remaining"`
	Resets    time.Time   `json:"resets_at"`
}

// Balance returns the balance of a user this month, by the clock of the database.
func (c Credits) Balance(ctx context.Context, user string) (Balance, error) {
	b, err := c.in.Balance(ctx, user)
	if err != nil {
		return Balance{}, err
	}
	return Balance{b, b.Month.String(), b.Remaining(), b.Month.End()}, nil
}

// Granted is a grant of credits.
type Granted struct {
	User    string `json:"user"`
	Granted int64  `json:"granted"`
}

// Grant adds credits to this month's pool of a user.
func (c Credits) Grant(ctx context.Context, user string, credits int64, once feed.IdempotencyKey) (Committed[Granted], error) {
	done, err := c.in.Grant(ctx, user, credits, once)
	return committed(Granted{user, credits}, done, err)
}

// Posting is one line of a statement.
type Posting struct {
	At      *time.Time `json:"at"` // null for a sum
	Entry   string     `json:"entry"`
	User    string     `json:"user,omitempty"`
	Account string     `json:"account,omitempty"`
	Credits int64      `json:"credits"`
	Detail  string     `json:"detail"`
}

func newPosting(p ledger.Posting) Posting {
	return Posting{orNil(p.At), p.Kind, p.User, p.Account, p.Credits, p.Detail}
}

// Statement lists the postings of a user's credits in a month, and returns the month; nil means
// this month.
func (c Credits) Statement(ctx context.Context, user string, month *usage.Month) (iter.Seq2[Posting, error], usage.Month, error) {
	of, err := c.month(ctx, usage.PoolUser, user, month)
	if err != nil {
		return nil, 0, err
	}
	return store.Convert(c.in.EachPosting(ctx, user, of), newPosting), of, nil
}

// AccountStatement lists the postings of all users of an account in a month, and the grants to the
// pool that they share, and returns the month; nil means this month.
func (c Credits) AccountStatement(ctx context.Context, account string, month *usage.Month) (iter.Seq2[Posting, error], usage.Month, error) {
	of, err := c.month(ctx, usage.PoolAccount, account, month)
	if err != nil {
		return nil, 0, err
	}
	return store.Convert(c.in.EachPostingOfAccount(ctx, account, of), newPosting), of, nil
}

// month returns the month of a statement; nil means this one. It returns an error unless the user
// or the account exists or has used credits in it.
func (c Credits) month(ctx context.Context, kind usage.PoolKind, name string, month *usage.Month) (usage.Month, error) {
	if month == nil {
		now, err := c.db.Now(ctx)
		if err != nil {
			return 0, err
		}
		month = new(usage.MonthOf(now))
	}
	return *month, known(ctx, c.in, kind, name, *month, *month)
}

// known returns an error unless a user or an account exists, or has used credits in some months.
func known(ctx context.Context, in *ledger.Ledger, kind usage.PoolKind, name string, from, to usage.Month) error {
	if err := store.CheckName(kind.String(), name); err != nil {
		return err
	}
	found, err := in.Known(ctx, kind, name, from, to)
	if err == nil && !found {
		err = fmt.Errorf("%v %s: %w", kind, name, store.ErrNotFound)
	}
	return err
}

// Verification is the result of a check of the ledger.
type Verification struct {
	Checked int                  `json:"checked"` // pools
	Wrong   []ledger.Discrepancy `json:"wrong"`
}

// Verify checks every pool of every month, in one snapshot and without locks.
func (c Credits) Verify(ctx context.Context) (Verification, error) {
	wrong, checked, err := c.in.Verify(ctx)
	if err != nil {
		return Verification{}, err
	}
	return Verification{checked, wrong}, nil
}

// StatementPage is a part of a statement: at most n postings after a cursor.
func (c Credits) StatementPage(ctx context.Context, user string, month *usage.Month, cursor string, n int) (Page[Posting], error) {
	return c.statementPage(ctx, usage.PoolUser, user, month, cursor, n)
}

// AccountStatementPage is a part of the statement of an account.
func (c Credits) AccountStatementPage(ctx context.Context, account string, month *usage.Month, cursor string, n int) (Page[Posting], error) {
	return c.statementPage(ctx, usage.PoolAccount, account, month, cursor, n)
}

// statementPage returns a part of a statement. A cursor begins with its month, which may be over
// meanwhile; another one is an error if the caller names the month.
func (c Credits) statementPage(ctx context.Context, kind usage.PoolKind, name string, month *usage.Month, cursor string, n int) (Page[Posting], error) {
	if err := checkPage(n); err != nil {
		return Page[Posting]{}, err
	}
	if cursor != "" {
		first, rest, _ := strings.Cut(cursor, ".")
		begun, err := usage.ParseMonth(first)
		if err != nil || month != nil && *month != begun {
			return Page[Posting]{}, store.ErrCursor
		}
		month, cursor = &begun, rest
	}
	of, err := c.month(ctx, kind, name, month)
	if err != nil {
		return Page[Posting]{}, err
	}
	rows, next, err := c.in.PageOfPostings(ctx, kind, name, of, cursor, n)
	if next != "" {
		next = of.String() + "." + next
	}
	return newPage(store.ConvertPage(rows, next, err, newPosting))
}
