package portal

import (
	"bytes"
	"embed"
	"html/template"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.ParseFS(templateFiles, "templates/*.html"))

// execute renders a whole template in memory, so that half a page is never sent.
func execute(name string, data any) ([]byte, error) {
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, name, data); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// view is the input of every template.
type view struct {
	T         *texts
	At        addresses
	Brand     brand
	Heading   string
	User      string // the logged-in user, if any
	CanLogout bool   // the session is one of our own, so we can end it
	Data      any

	version string
}

// Static returns the URL of a static file. The URL changes with the content.
func (v view) Static(name string) string { return v.At.Static + name + "?v=" + v.version }

// messagePage is the data of a page with a single message.
type messagePage struct{ Text string }

// copyButton is the data of a button that copies the text of an element.
type copyButton struct {
	T    *texts
	ID   string
	From string // the ID of the element
}
