package authz

import (
	"mime"
	"strconv"
	"strings"
)

// WantsHTML reports whether a header Accept names HTML, and JSON not before it: a person asks, with a
// browser. Who takes anything is a program.
func WantsHTML(accept string) bool {
	if !strings.Contains(accept, "html") {
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
