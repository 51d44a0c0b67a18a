package portal

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/keyporter/keyporter/authz"
)

// visit is one request to the page.
type visit struct {
	request *http.Request
	html    bool   // for a person, not a program
	text    *texts // in the user's language
	login   authz.Login
	share   *share // of the user
	secure  bool   // the browser used HTTPS, according to Envoy
}

func newVisit(r *http.Request) *visit {
	return &visit{
		request: r,
		secure:  r.Header.Get("X-Forwarded-Proto") == "https",
		html:    authz.WantsHTML(strings.Join(r.Header.Values("Accept"), ",")),
		text:    textsFor(strings.Join(r.Header.Values("Accept-Language"), ",")),
	}
}

// readForm reads the form of a request, or the JSON object of a program's, if there is one. It
// reports whether all of it could be read, because PostFormValue treats an unreadable form as an
// empty one.
func (v *visit) readForm() bool {
	kind, _, _ := mime.ParseMediaType(v.request.Header.Get("Content-Type"))
	if kind == "application/json" {
		return v.readObject()
	}
	err := v.request.ParseForm()
	if err == nil {
		err = v.request.ParseMultipartForm(maxBody)
	}
	if errors.Is(err, http.ErrNotMultipart) {
		var rest []byte // of a type that the page does not read
		rest, err = io.ReadAll(v.request.Body)
		return err == nil && len(rest) == 0
	}
	return err == nil
}

// readObject reads a JSON object of strings as if it were a form.
func (v *visit) readObject() bool {
	content, err := io.ReadAll(v.request.Body)
	if err != nil || len(content) == 0 {
		return err == nil
	}
	var fields map[string]any
	if json.Unmarshal(content, &fields) != nil || fields == nil {
		return false
	}
	v.request.PostForm = url.Values{}
	for name, value := range fields {
		text, ok := value.(string)
		if !ok {
			return false // null too: it is not a string
		}
		v.request.PostForm.Set(name, text)
	}
	return true
}

func itoa(n int) string { return strconv.Itoa(n) }
