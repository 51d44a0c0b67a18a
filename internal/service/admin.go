package service

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/admin"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/meter"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// newAdminServer returns the server of the operators' API, or nil without one. What it reads and
// changes takes the connections for changes, so that Checks keep theirs.
func newAdminServer(c config.Config, tokens *liveNamed, db *store.DB, authorizer *authz.Authorizer, meters *meters, log *slog.Logger, metrics prometheus.Registerer) *http.Server {
	if !c.ServesAdmin() {
		return nil
	}
	guests := newGuests(maxGuests)
	return newGuestServer(admin.New(admin.Config{
		Caller: tokens.caller,
		Known:  guests.keep,
		Operator: func(actor string) operations.Operator {
			return operations.By(actor, db).Refusing(authorizer.HoldsImported)
		},
		Page:   operations.UserPage{URL: c.PageURL, Path: c.PagePath, InsecureCookies: c.InsecureCookies},
		Prefix: c.KeyPrefix, Valkey: c.Redis != "", Unseal: unsealing(c.SealKeyFile),
		Authorize: completing(authorizer.AuthorizeKey, meters.meter), Usage: meters.meter.Glance, Log: log, Metrics: metrics,
	}), guests, log)
}

// completing lets the charge of a question about a key stand at once: no access log reports its
// outcome. The upstream may still settle it.
func completing(authorize func(context.Context, authz.KeyQuestion) (authz.Decision, error), metering *meter.Meter) func(context.Context, authz.KeyQuestion) (authz.Decision, error) {
	return func(ctx context.Context, q authz.KeyQuestion) (authz.Decision, error) {
		d, err := authorize(ctx, q)
		if err == nil && d.Allowed() && d.Charge.Receipt != "" {
			metering.Complete(usage.Completion{Receipt: d.Charge.Receipt})
		}
		return d, err
	}
}
