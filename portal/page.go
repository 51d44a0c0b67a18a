package portal

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
)

// page serves the users' page.
type page struct {
	config   Config
	origin   *http.CrossOriginProtection
	log      *slog.Logger
	requests *prometheus.CounterVec
	at       addresses
	assets

	sessions  *authz.Sessions
	quotas    quotas
	gathering chan struct{} // one element per view being gathered, for all users
}

// view returns the input of a template for a request.
func (p *page) view(r *request, heading string, data any) view {
	return view{
		T: r.text, At: p.at, Brand: p.brand, Heading: heading, User: r.login.Principal.User,
		CanLogout: r.login.Session != (apikey.Digest{}), Data: data, version: p.version,
	}
}
