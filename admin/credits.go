package admin

import (
	"context"
	"time"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/usage"
)

type (
	creditsGrant struct {
		userChange
		Credits int64 `json:"credits" min:"1" max:"1000000000000" doc:"the credits to add to this month's pool"`
	}
	statementOf struct {
		ofUser
		paged
		Month *month `query:"month" doc:"the month in UTC, such as 2026-11; this one by default"`
	}
	accountStatementOf struct {
		ofAccount
		paged
		Month *month `query:"month" doc:"the month in UTC, such as 2026-11; this one by default"`
	}
	usageOf struct {
		From    *string `query:"from" length:"10" doc:"the first month, such as 2026-11, or by day the first day, such as 2026-11-24; by default the month of to"`
		To      *string `query:"to" length:"10" doc:"the last month or day; by default now"`
		GroupBy *string `query:"group_by" enum:"account,user,day" doc:"the rows: account by default"`
		Account *string `query:"account" form:"name" doc:"only the usage of this account"`
		User    *string `query:"user" form:"name" doc:"only the usage of this user, by user or by day"`
		Format  *string `query:"format" enum:"json,csv" doc:"by default what Accept names, or json"`
		Accept  *string `header:"Accept" form:"any" doc:"text/csv for CSV"`
	}
	auditOf struct {
		paged
		Name  *string    `query:"name" form:"name" doc:"only entries about the plan, account or user of this name"`
		Since *time.Time `query:"since" doc:"only entries from this time on"`
	}
)

func showCredits(ctx context.Context, c *call, in ofUser) (operations.Balance, error) {
	return c.by.Credits().Balance(ctx, in.User)
}

func grantCredits(ctx context.Context, c *call, in creditsGrant) (done operations.Committed[operations.Granted], err error) {
	once, err := in.key(c)
	if err != nil {
		return done, err
	}
	return c.by.Credits().Grant(ctx, in.User, in.Credits, once)
}

func statement(ctx context.Context, c *call, in statementOf) (operations.Page[operations.Posting], error) {
	cursor, n := in.page()
	return c.by.Credits().StatementPage(ctx, in.User, (*usage.Month)(in.Month), cursor, n)
}

func accountStatement(ctx context.Context, c *call, in accountStatementOf) (operations.Page[operations.Posting], error) {
	cursor, n := in.page()
	return c.by.Credits().AccountStatementPage(ctx, in.Account, (*usage.Month)(in.Month), cursor, n)
}

func listUsage(ctx context.Context, c *call, in usageOf) (*stream[operations.UsageRow], error) {
	q := operations.UsageQuery{From: text(in.From), To: text(in.To), GroupBy: text(in.GroupBy), Account: text(in.Account), User: text(in.User)}
	list, err := newStream(c.by.Usage().Each(ctx, q))
	asCSV := text(in.Format) == "csv" || in.Format == nil && prefersCSV(text(in.Accept))
	if err == nil && asCSV {
		list.asCSV(operations.UsageColumns(q.GroupBy), func(r operations.UsageRow) []string { return r.Cells(q.GroupBy, "") })
	}
	return list, err
}

func listAudit(ctx context.Context, c *call, in auditOf) (operations.Page[directory.AuditEntry], error) {
	cursor, n := in.page()
	return c.by.Audit().Page(ctx, text(in.Name), orZero(in.Since), cursor, n)
}

// verifyLedger reads every pool, so that only one caller does so at once.
func verifyLedger(ctx context.Context, c *call, _ none) (operations.Verification, error) {
	if !c.verifying.TryLock() {
		return operations.Verification{}, problem{code: busy, retry: 5 * time.Second, detail: "The ledger is being verified already."}
	}
	defer c.verifying.Unlock()
	return c.by.Credits().Verify(ctx)
}

func listReplicas(ctx context.Context, c *call, _ none) (operations.ReplicaList, error) {
	return c.by.Replicas().List(ctx, c.config.Valkey)
}
