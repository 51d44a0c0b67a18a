package service

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// logins recognizes users in browsers, by a session or a token of the web app.
type logins struct {
	tokens   *Tokens // nil: tokens are not accepted
	deciding *authz.Sessions
	onPage   *authz.Sessions // without a cache, because users look at the page right after a change
}

func newLogins(c config.Config, format *apikey.Format, db *store.DB, cached *caches, log *slog.Logger, metrics prometheus.Registerer) (*logins, error) {
	tokens, err := NewTokens(c, log, metrics)
	if err != nil {
		return nil, err
	}
	deciding := &authz.Sessions{Format: format, Find: cached.sessions.Find, InsecureCookies: c.InsecureCookies}
	tokens.Accept(deciding, cached.subjects.Find)
	stored := directory.NewLookups(db)
	onPage := &authz.Sessions{Format: format, Find: stored.FindSession, InsecureCookies: c.InsecureCookies}
	tokens.Accept(onPage, stored.FindSubject)
	return &logins{tokens, deciding, onPage}, nil
}

func (l *logins) close() { l.tokens.Close() }
