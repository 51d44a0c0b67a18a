package portal

import (
	"net/http"
	"strings"
)

func (p *page) serveStatic(r *request) (answer, error) {
	f := p.static[strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, "/"), p.at.Static)]
	return answer{
		status: http.StatusOK, raw: f.content, header: map[string]string{"Content-Type": f.contentType},
		cached: r.URL.Query().Get("v") == p.version, // other versions are not cached
	}, nil
}

func (p *page) serveOpenAPI(*request) (answer, error) {
	return answer{status: http.StatusOK, raw: p.openAPI, header: map[string]string{"Content-Type": "application/yaml"}}, nil
}
