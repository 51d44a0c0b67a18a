package directory

import (
	"context"
	"database/sql"
	"iter"
	"time"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// ExportRow is a user with their account and plan, or an account without users, or a plan without
// accounts. The JSON is a line that can be imported.
type ExportRow struct {
	User          string      `json:"user,omitempty"`
	Kind          string      `json:"kind,omitempty"`
	Status        string      `json:"status,omitempty"`
	Subject       string      `json:"subject,omitempty"`
	Account       string      `json:"account,omitempty"`
	AccountKind   string      `json:"account_kind,omitempty"`
	AccountStatus string      `json:"account_status,omitempty"`
	Plan          string      `json:"plan"`
	APIAccess     bool        `json:"plan_api_access"`
	RateLimit     usage.Limit `json:"plan_rate_limit"`
	RateWindow    string      `json:"plan_rate_window"`
	Credits       usage.Limit `json:"plan_credits"`
	Pool          string      `json:"plan_pool"`
	Used          int64       `json:"credits_used,omitempty"` // this month, without refunds
}

// Export lists all users by plan, account and name, without keys.
func (d *Directory) Export(ctx context.Context, month usage.Month) iter.Seq2[ExportRow, error] {
	return store.Pages(ctx, d.db, "users to export", scanExported, `SELECT coalesce(u.name, ''), coalesce(u.kind, ''), coalesce(u.status, ''), coalesce(u.subject, ''),
			coalesce(a.name, ''), coalesce(a.kind, ''), coalesce(a.status, ''), p.name, p.api_access, p.rate_limit, p.rate_window, p.credits, p.pool,
			CAST(coalesce((SELECT sum(c.used) FROM credit_usages c WHERE c.month = $1 AND c.user_name = u.name), 0)
				- coalesce((SELECT sum(r.credits) FROM credit_refunds r WHERE r.month = $1 AND r.user_name = u.name), 0) AS BIGINT)
		FROM plans p LEFT JOIN accounts a ON a.plan = p.name LEFT JOIN users u ON u.account = a.name
		WHERE (p.name, coalesce(a.name, ''), coalesce(u.name, '')) > ($2, $3, $4) ORDER BY 8, 5, 1 LIMIT $5`,
		[]any{int64(month), "", "", ""}, func(r ExportRow) []any { return []any{int64(month), r.Plan, r.Account, r.User} })
}

func scanExported(row store.Scanner) (r ExportRow, err error) {
	var rate, credits sql.NullInt64
	var window int64
	err = row.Scan(&r.User, &r.Kind, &r.Status, &r.Subject, &r.Account, &r.AccountKind, &r.AccountStatus,
		&r.Plan, &r.APIAccess, &rate, &window, &credits, &r.Pool, &r.Used)
	r.RateLimit, r.Credits = store.LimitOf(rate), store.LimitOf(credits)
	r.RateWindow, r.Used = (time.Duration(window) * time.Millisecond).String(), max(0, r.Used)
	return r, err
}
