package ledger

import (
	"context"
	"iter"
	"math"
	"strings"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// Posting is a line of a statement.
type Posting struct {
	At            time.Time // zero for a sum
	Kind          string    // used, granted or refunded
	User, Account string    // of the charges; of a grant only the owner of the pool
	Credits       int64     // added if positive
	Detail        string
}

// EachPosting lists the postings of the credits of a user in a month: first the used credits as
// sums by account, then each grant and each refund by time.
func (l *Ledger) EachPosting(ctx context.Context, user string, month usage.Month) iter.Seq2[Posting, error] {
	return store.Convert(postingsOf(usage.PoolUser, user, month).Each(ctx, l.db), postingRow.posting)
}

// EachPostingOfAccount is EachPosting for all users of an account, with sums by user. It has the
// grants to the pool of the account, but none to the pools of its users.
func (l *Ledger) EachPostingOfAccount(ctx context.Context, account string, month usage.Month) iter.Seq2[Posting, error] {
	return store.Convert(postingsOf(usage.PoolAccount, account, month).Each(ctx, l.db), postingRow.posting)
}

// PageOfPostings is a part of EachPosting or EachPostingOfAccount, as [store.Listing.Page] returns
// it.
func (l *Ledger) PageOfPostings(ctx context.Context, of usage.PoolKind, name string, month usage.Month, cursor string, n int) (postings []Posting, next string, err error) {
	rows, next, err := postingsOf(of, name, month).Page(ctx, l.db, cursor, n)
	return store.ConvertPage(rows, next, err, postingRow.posting)
}

type postingRow struct {
	Posting
	at    int64
	id    string
	total int64
}

func (r postingRow) posting() Posting { return r.Posting }

// postingsOf lists the postings of a user or an account.
func postingsOf(of usage.PoolKind, name string, month usage.Month) store.Listing[postingRow] {
	columns := strings.NewReplacer("OWNER", "user_name", "OTHER", "account", "KIND", "user", "GRANTEE", "name AS user_name, '' AS account", "PAYER", "'account ' || account")
	if of == usage.PoolAccount {
		columns = strings.NewReplacer("OWNER", "account", "OTHER", "user_name", "KIND", "account", "GRANTEE", "'' AS user_name, name AS account", "PAYER", "'user ' || user_name")
	}
	// The sums come first, and are not read again for the pages behind them.
	const after = `(at, kind, id, total) > (CAST($3 AS BIGINT), CAST($4 AS TEXT), CAST($5 AS TEXT), CAST($6 AS BIGINT))`
	return store.Listing[postingRow]{
		What: "the statement of " + of.String() + " " + name,
		Scan: func(s store.Scanner) (r postingRow, err error) {
			err = s.Scan(&r.at, &r.Kind, &r.id, &r.total, &r.User, &r.Account, &r.Credits, &r.Detail)
			if r.Kind != "used" {
				r.At = store.FromMillis(r.at)
			}
			return r, err
		},
		Query: columns.Replace(`SELECT at, kind, id, total, user_name, account, credits, detail FROM (
			SELECT * FROM (SELECT CAST(0 AS BIGINT) AS at, 'used' AS kind, OTHER || ' ' || kind AS id, CAST(0 AS BIGINT) AS total, user_name, account, CAST(-sum(used) AS BIGINT) AS credits,
					PAYER || ', from the pool of the ' || kind AS detail
				FROM credit_usages WHERE OWNER = $1 AND month = $2 AND CAST($3 AS BIGINT) <= 0 GROUP BY user_name, account, kind) u WHERE ` + after + `
			UNION ALL SELECT * FROM (SELECT * FROM (SELECT made_at AS at, 'refunded' AS kind, charge AS id, total, user_name, account, credits,
					cause || ', charge ' || charge || CASE WHEN total > credits THEN ', in total ' || total ELSE '' END AS detail
				FROM credit_refunds WHERE OWNER = $1 AND month = $2 AND made_at >= $3) r WHERE ` + after + ` ORDER BY at, id, total LIMIT $7) refunds
			UNION ALL SELECT * FROM (SELECT made_at AS at, 'granted' AS kind, id, CAST(0 AS BIGINT) AS total, GRANTEE, credits, id AS detail
				FROM credit_grants WHERE kind = 'KIND' AND name = $1 AND month = $2) g WHERE ` + after + `
		) all_of_them ORDER BY at, kind, id, total LIMIT $7`),
		Of: []any{name, int64(month)}, Start: []any{int64(math.MinInt64), "", "", int64(0)},
		Place: func(r postingRow) []any { return []any{r.at, r.Kind, r.id, r.total} },
	}
}
