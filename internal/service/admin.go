package service

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/admin"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/store"
)

// newAdminServer returns the server of the operators' API, or nil without one. What it reads and
// changes takes the connections for changes, so that Checks keep theirs.
func newAdminServer(c config.Config, tokens *liveNamed, db *store.DB, authorizer *authz.Authorizer, meters *meters, log *slog.Logger, metrics prometheus.Registerer) *http.Server {
	if !c.ServesAdmin() {
		return nil
	}
	return newGuestServer(admin.New(admin.Config{
		Caller:   tokens.caller,
		Operator: func(actor string) operations.Operator { return operations.By(actor, db) },
		Page:     operations.UserPage{URL: c.PageURL, Path: c.PagePath, InsecureCookies: c.InsecureCookies},
		Prefix:   c.KeyPrefix, Valkey: c.Redis != "",
		Authorize: authorizer.AuthorizeKey, Usage: meters.meter.Usage, Log: log, Metrics: metrics,
	}), log)
}
