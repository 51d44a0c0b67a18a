package authz

import (
	"mime"
	"strconv"
	"strings"
)

// maxAccept limits the Accept header that is parsed, in bytes; browsers send a fraction of it.
// Parsing tens of kilobytes would cost more than the rest of a Check, and such a request needs no
// key.
const maxAccept = 1 << 10

// WantsHTML reports whether an Accept header names HTML and does not prefer JSON, as browsers do.
// Wildcards alone do not count: programs send those. A header longer than any browser's does not
// count either.
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
