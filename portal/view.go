package portal

import (
	"bytes"
	"embed"
	"html/template"

	"github.com/keyporter/keyporter/apikey"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.ParseFS(templateFiles, "templates/*.html"))

// execute fills a template as a whole, so that half a page is never sent.
func execute(name string, data any) ([]byte, error) {
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, name, data); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// view is what every template gets.
type view struct {
	T         *texts
	At        addresses
	Brand     brand
	Heading   string
	User      string // who is logged in, if anybody is
	CanLogout bool   // by us: the session is one of our own
	Data      any

	version string
}

func (p *page) view(v *visit, heading string, data any) view {
	return view{
		T: v.text, At: p.at, Brand: p.brand, Heading: heading, User: v.login.Principal.User,
		CanLogout: v.login.Session != (apikey.Digest{}), Data: data, version: p.version,
	}
}

// Static returns the URL of a static file. It changes with its content.
func (v view) Static(name string) string { return v.At.Static + name + "?v=" + v.version }

// saying is a page that says one thing.
type saying struct{ Text string }

// copyButton copies the text of an element.
type copyButton struct {
	T    *texts
	ID   string
	From string // the id of the element
}
