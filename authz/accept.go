package authz

import (
	"mime"
	"strconv"
	"strings"
)

// maxAccept is the longest header Accept that is read, in bytes: several times that of any browser.
// Tens of kilobytes would take longer to read than all else about a request, and nobody has to show
// a key for that.
const maxAccept = 1 << 10

// WantsHTML reports whether a header Accept names HTML, and JSON not before it: a person asks, with a
// browser. Who takes anything is a program, and so is who takes more than a browser can name.
func WantsHTML(accept string) bool {
	if len(accept) > maxAccept || !strings.Contains(accept, "html") {
		return false
	}
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
