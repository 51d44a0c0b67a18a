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
