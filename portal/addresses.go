package portal

import (
	"cmp"

	"github.com/keyporter/keyporter/authz"
)

// addresses holds the addresses of the page. All lie at or below its path; the rest of this package
// does not know the path. Comments use the addresses of a page at /api.
type addresses struct {
	Overview, Regenerate     string
	Confirm, Reveal, OpenAPI string
	Login, Logout            string
	Static                   string // prefix of the names of static files
}

// addressesAt returns the addresses of a page at path; "" means [authz.DefaultPagePath].
func addressesAt(path string) addresses {
	path = cmp.Or(path, authz.DefaultPagePath)
	return addresses{
		Overview: path, Regenerate: path + "/regenerate",
		Confirm: path + "/-/regenerate", Reveal: path + "/-/reveal", OpenAPI: path + "/-/openapi.yaml",
		Login: path + "/-/login", Logout: path + "/-/logout",
		Static: path + "/-/static/",
	}
}

// LoginPath returns the path that login links lead to, for a page at path.
func LoginPath(path string) string { return addressesAt(path).Login }
