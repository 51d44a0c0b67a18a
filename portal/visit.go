package portal

import (
	"mime"
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
}

func newVisit(r *http.Request) *visit {
	return &visit{
		request: r,
		html:    wantsHTML(strings.Join(r.Header.Values("Accept"), ",")),
		text:    textsFor(strings.Join(r.Header.Values("Accept-Language"), ",")),
	}
}

// wantsHTML reports whether a header Accept names HTML, and JSON not before it. Who takes anything is a
// program.
func wantsHTML(accept string) bool {
	html, json := 0.0, 0.0
	for item := range strings.SplitSeq(accept, ",") {
		kind, parameters, err := mime.ParseMediaType(item)
		if err != nil {
			continue
		}
		q := 1.0
		if text, ok := parameters["q"]; ok {
			if q, err = strconv.ParseFloat(text, 64); err != nil || !(q >= 0 && q <= 1) {
				continue
			}
		}
		switch kind {
		case "text/html", "application/xhtml+xml":
			html = max(html, q)
		case "application/json":
			json = max(json, q)
		}
	}
	return html > 0 && html >= json
}

func itoa(n int) string { return strconv.Itoa(n) }
