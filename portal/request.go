package portal

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/keyporter/keyporter/authz"
)

// maxBody limits request bodies, in bytes.
const maxBody = 4 << 10

// request is one request to the page.
type request struct {
	*http.Request
	html   bool   // for a person, not a program
	text   *texts // in the user's language
	login  authz.Login
	quota  *quota // of the user
	secure bool   // the browser used HTTPS, according to Envoy
}

// newRequest returns a request whose body is limited.
func newRequest(w http.ResponseWriter, received *http.Request) *request {
	// A copy: the server checks the original body for clients that wait to send it.
	r := received.WithContext(received.Context())
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	return &request{
		Request: r,
		secure:  r.Header.Get("X-Forwarded-Proto") == "https",
		html:    authz.WantsHTML(strings.Join(r.Header.Values("Accept"), ",")),
		text:    textsFor(strings.Join(r.Header.Values("Accept-Language"), ",")),
	}
}

// readForm reads the form of a request, or the JSON object of a program's, if there is one. It
// reports whether all of it could be read, because PostFormValue treats an unreadable form as an
// empty one.
func (r *request) readForm() bool {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind == "application/json" {
		return r.readObject()
	}
	err := r.ParseForm()
	if err == nil {
		err = r.ParseMultipartForm(maxBody)
	}
	if errors.Is(err, http.ErrNotMultipart) {
		var rest []byte // of a type that the page does not read
		rest, err = io.ReadAll(r.Body)
		return err == nil && len(rest) == 0
	}
	return err == nil
}

// readObject reads a JSON object of strings as if it were a form.
func (r *request) readObject() bool {
	content, err := io.ReadAll(r.Body)
	if err != nil || len(content) == 0 {
		return err == nil
	}
	var fields map[string]any
	if json.Unmarshal(content, &fields) != nil || fields == nil {
		return false
	}
	r.PostForm = url.Values{}
	for name, value := range fields {
		text, ok := value.(string)
		if !ok {
			return false // null too: it is not a string
		}
		r.PostForm.Set(name, text)
	}
	return true
}
