package portal

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/keyporter/keyporter/authz"
)

// visit is one request to the page.
type visit struct {
	request *http.Request
	html    bool   // for a person, not a program
	text    *texts // in their language
	login   authz.Login
	share   *share // of the user
	secure  bool   // the browser has come by HTTPS, as far as Envoy knows
}

func newVisit(r *http.Request) *visit {
	return &visit{
		request: r,
		secure:  r.Header.Get("X-Forwarded-Proto") == "https",
		html:    authz.WantsHTML(strings.Join(r.Header.Values("Accept"), ",")),
		text:    textsFor(strings.Join(r.Header.Values("Accept-Language"), ",")),
	}
}

// readForm reads the form of a request, if it has one, and reports whether all of it could be read.
// PostFormValue takes one that could not for an empty one.
func (v *visit) readForm() bool {
	err := v.request.ParseForm()
	if err == nil {
		err = v.request.ParseMultipartForm(maxBody)
	}
	return err == nil || errors.Is(err, http.ErrNotMultipart)
}

func itoa(n int) string { return strconv.Itoa(n) }
