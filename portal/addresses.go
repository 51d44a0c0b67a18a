package portal

import (
	"cmp"
	"strings"

	"github.com/keyporter/keyporter/authz"
)

// addresses are those of the page. All of them lie at its path or below; nothing else in this
// package knows it. Comments name them as they are where the path is /api.
type addresses struct {
	Overview, Regenerate     string
	Confirm, Reveal, OpenAPI string
	Login, Logout            string
	Static                   string // what the name of a static file is appended to
}

// addressesAt returns the addresses of a page at path; "" is [authz.DefaultPagePath].
func addressesAt(path string) addresses {
	path = cmp.Or(path, authz.DefaultPagePath)
	return addresses{
		Overview: path, Regenerate: path + "/regenerate",
		Confirm: path + "/-/regenerate", Reveal: path + "/-/reveal", OpenAPI: path + "/-/openapi.yaml",
		Login: path + "/-/login", Logout: path + "/-/logout",
		Static: path + "/-/static/",
	}
}

// LoginPath returns the path of the login of a page at path, which login links lead to.
func LoginPath(path string) string { return addressesAt(path).Login }

// openAPIAt returns the OpenAPI file with the addresses of this page.
func openAPIAt(at addresses) []byte {
	shipped := addressesAt("")
	return []byte(strings.NewReplacer(
		shipped.Overview+":", at.Overview+":",
		shipped.Regenerate+":", at.Regenerate+":",
		shipped.Reveal, at.Reveal,
	).Replace(openAPI))
}
