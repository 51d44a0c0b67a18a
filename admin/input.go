package admin

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/usage"
)

// The bounds of a body, in bytes. The largest meaningful one without items has about 2000, and
// one with as many items as there may be about half as many as it may have.
const (
	maxBody  = 64 << 10
	maxBatch = 1 << 20
)

// maxBody returns the maximum length of the body.
func (o *operation) maxBody() int64 {
	if o.has("json", items) {
		return maxBatch
	}
	return maxBody
}

// param is one value that a request brings. The fields of an operation's input declare them: the
// tag path, query, header or json has the name, doc says what it is, and enum, min, max, length and
// form say which values there are. A pointer is optional.
type param struct {
	place, name, doc string
	index            []int        // of the field
	kind             reflect.Type // without the pointer
	required         bool
	enum             []string
	min, max         *int64
	length           int // the maximum number of characters; 0: any
	// form is the form of a text. name: of a plan, an account or a user; visible: ASCII without
	// blanks; etag: a version, or *; any: what clients sent.
	form string
	of   []param // the fields of an item, of a list of structs
}

// period is a time span in words, such as 60s.
type period time.Duration

// spans matches the words of a period.
const spans = `^([0-9]{1,9}([.][0-9]{1,9})?(ms|s|m|h))+$`

// etags matches a precondition.
const etags = `^(\*|"[!#-~]{1,62}")$`

var spansForm, etagForm = regexp.MustCompile(spans), regexp.MustCompile(etags)

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *period) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if *p = period(d); !spansForm.Match(text) {
		err = errors.New("other units, or a sign")
	}
	return err
}

// month is a calendar month, such as 2026-11.
type month usage.Month

// UnmarshalText implements [encoding.TextUnmarshaler].
func (m *month) UnmarshalText(text []byte) error {
	parsed, err := usage.ParseMonth(string(text))
	*m = month(parsed)
	return err
}

// wants says in words what a value of a type is.
var wants = map[reflect.Type]string{
	reflect.TypeFor[string]():      "a text without control characters",
	reflect.TypeFor[bool]():        "true or false",
	reflect.TypeFor[int64]():       "a whole number",
	reflect.TypeFor[usage.Limit](): `a number from 0 on, or "unlimited"`,
	reflect.TypeFor[period]():      "a time span such as 90s or 12h",
	reflect.TypeFor[month]():       "a month such as 2026-11",
	reflect.TypeFor[time.Time]():   "a time such as 2026-11-30T12:00:00Z",
}

// paramsOf returns what a type of input declares. A mistake in it is one of this program, found
// when the table is made.
func paramsOf(t reflect.Type) (all []param) {
	for _, field := range reflect.VisibleFields(t) {
		if field.Anonymous {
			continue
		}
		p := param{index: field.Index, kind: field.Type, required: true, doc: field.Tag.Get("doc"), form: field.Tag.Get("form")}
		for _, place := range []string{"path", "query", "header", "json"} {
			if name, found := field.Tag.Lookup(place); found {
				p.place, p.name = place, name
			}
		}
		if field.Type.Kind() == reflect.Pointer {
			p.kind, p.required = field.Type.Elem(), false
		}
		if enum, found := field.Tag.Lookup("enum"); found {
			p.enum = strings.Split(enum, ",")
		}
		p.min, p.max = bound(field, "min"), bound(field, "max")
		if length := bound(field, "length"); length != nil {
			p.length = int(*length)
		}
		if field.Type.Kind() == reflect.Slice {
			p.of = paramsOf(field.Type.Elem())
		}
		if p.name == "" || p.doc == "" || wants[p.kind] == "" && p.of == nil {
			panic("admin: an input with an incomplete field: " + field.Name)
		}
		all = append(all, p)
	}
	return all
}

func bound(field reflect.StructField, tag string) *int64 {
	text, found := field.Tag.Lookup(tag)
	if !found {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic("admin: a bound is no number: " + field.Name)
	}
	return &n
}

// read returns the input of an operation, a pointer to the struct, or a problem.
func (o *operation) read(r *http.Request, path map[string]string) (any, error) {
	into := reflect.New(o.in)
	for _, condition := range []string{"If-Match", "If-None-Match"} {
		if len(r.Header.Values(condition)) > 0 && !o.has("header", condition) {
			return nil, problem{code: invalidField, field: condition, detail: condition + ": this operation has no such condition."}
		}
	}
	query, err := o.query(r)
	if err != nil {
		return nil, err
	}
	body, err := o.body(r)
	if err != nil {
		return nil, err
	}
	for _, p := range o.params {
		field := into.Elem().FieldByIndex(p.index)
		err := error(nil)
		switch p.place {
		case "path":
			err = p.parse(field, path[p.name])
		case "query":
			if text, given := query[p.name]; given {
				err = p.parse(field, text)
			} else if p.required {
				err = p.missing()
			}
		case "header":
			if values := r.Header.Values(p.name); len(values) > 1 {
				err = p.problem("want it once")
			} else if len(values) == 1 {
				err = p.parse(field, values[0])
			}
		case "json":
			if raw, given := body[p.name]; given {
				err = p.decode(field, raw)
			} else if p.required {
				err = p.missing()
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return into.Interface(), nil
}

// query returns the parameters of the query. It refuses unknown and repeated ones.
func (o *operation) query(r *http.Request) (map[string]string, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem{code: invalidRequest, detail: "The query is not encoded as name=value&…, with escapes such as %40."}
	}
	found := map[string]string{}
	for name, all := range values {
		if !o.has("query", name) {
			return nil, problem{code: unknownParameter, field: printable(name), detail: "The parameters of this operation are: " + o.names("query") + "."}
		}
		if len(all) > 1 {
			return nil, problem{code: invalidField, field: name, detail: name + ": want it once."}
		}
		found[name] = all[0]
	}
	return found, nil
}

// body returns the fields of the body. It refuses unknown and repeated ones. A request without a
// body has no fields.
func (o *operation) body(r *http.Request) (map[string]json.RawMessage, error) {
	limit := o.maxBody()
	text, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if int64(len(text)) > limit {
		return nil, problem{code: tooLarge, detail: fmt.Sprintf("A body has at most %d bytes here.", limit)}
	}
	if err != nil {
		return nil, problem{code: invalidRequest, detail: "The body did not arrive as a whole."}
	}
	if len(text) == 0 {
		return nil, nil
	}
	if !o.takesBody() {
		return nil, problem{code: invalidRequest, detail: "This operation has no body."}
	}
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset, given := parameters["charset"]; err != nil || kind != "application/json" || given && !strings.EqualFold(charset, "utf-8") || len(r.Header.Values("Content-Encoding")) > 0 {
		return nil, problem{code: mediaType, detail: "Want Content-Type: application/json, in UTF-8 and not compressed."}
	}
	fields, err := objectOf(text)
	if err != nil {
		return nil, err
	}
	for name := range fields {
		if !o.has("json", name) {
			return nil, problem{code: unknownField, field: printable(name), detail: "The fields of this operation are: " + o.names("json") + "."}
		}
	}
	return fields, nil
}

// objectOf reads the fields of a JSON object. A decoder of structs would accept "NAME" for name,
// the last of two values, and null.
func objectOf(text []byte) (map[string]json.RawMessage, error) {
	malformed := problem{code: invalidRequest, detail: "The body is not one JSON object in UTF-8."}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if first, err := decoder.Token(); err != nil || first != json.Delim('{') || !utf8.Valid(text) {
		return nil, malformed
	}
	fields := map[string]json.RawMessage{}
	for decoder.More() {
		token, err := decoder.Token()
		name, isName := token.(string)
		if err != nil || !isName {
			return nil, malformed
		}
		if _, twice := fields[name]; twice {
			return nil, problem{code: invalidRequest, field: printable(name), detail: "The body has a field twice."}
		}
		var raw json.RawMessage
		if decoder.Decode(&raw) != nil {
			return nil, malformed
		}
		fields[name] = raw
	}
	if _, err := decoder.Token(); err != nil { // the end of the object
		return nil, malformed
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed
	}
	return fields, nil
}

// printable returns a name that a caller made up, short and without control characters.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, name[:min(len(name), 64)])
}

func (o *operation) has(place, name string) bool {
	return slices.ContainsFunc(o.params, func(p param) bool { return p.place == place && p.name == name })
}

// names lists the parameters in a place.
func (o *operation) names(place string) string {
	var all []string
	for _, p := range o.params {
		if p.place == place {
			all = append(all, p.name)
		}
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

func (p *param) problem(want string) error {
	return problem{code: invalidField, field: p.name, detail: p.name + ": " + want + "."}
}

func (p *param) missing() error {
	return problem{code: missingField, field: p.name, detail: p.name + ": " + p.doc + "."}
}

// target returns what a value is parsed into: the field, or what it then points to.
func target(field reflect.Value) reflect.Value {
	if field.Kind() == reflect.Pointer {
		field.Set(reflect.New(field.Type().Elem()))
		return field.Elem()
	}
	return field
}

// decode sets a field to a JSON value of its type.
func (p *param) decode(field reflect.Value, raw json.RawMessage) error {
	if p.of != nil {
		return p.decodeItems(field, raw)
	}
	text, isText := "", raw[0] == '"'
	if isText && json.Unmarshal(raw, &text) != nil {
		return p.problem("want " + wants[p.kind])
	}
	_, isName := reflect.New(p.kind).Interface().(encoding.TextUnmarshaler)
	wantsText := p.kind.Kind() == reflect.String || isName
	if p.kind == reflect.TypeFor[usage.Limit]() {
		wantsText = text == usage.Unlimited.String()
	}
	if isText != wantsText {
		return p.problem("want " + wants[p.kind])
	}
	if !isText {
		text = plainNumber(string(raw))
	}
	return p.parse(field, text)
}

// plainNumber returns a whole number without fraction and exponent: to JSON, 5.0 and 5e0 are 5.
func plainNumber(text string) string {
	const exact = 1 << 53
	if f, err := strconv.ParseFloat(text, 64); err == nil && strings.ContainsAny(text, ".eE") && f == math.Trunc(f) && math.Abs(f) <= exact {
		return strconv.FormatInt(int64(f), 10)
	}
	return text
}

// parse sets a field to a value in words.
func (p *param) parse(field reflect.Value, text string) (err error) {
	into := target(field)
	switch value := into.Addr().Interface().(type) {
	case *string:
		*value = text
		if p.form != "any" && strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }) {
			err = errors.New("control characters")
		}
	case *bool:
		*value = text == "true"
		if text != "true" && text != "false" {
			err = errors.New("neither true nor false")
		}
	case *int64:
		*value, err = strconv.ParseInt(text, 10, 64)
	case *usage.Limit:
		*value, err = usage.ParseLimit(text)
	case encoding.TextUnmarshaler:
		err = value.UnmarshalText([]byte(text))
	}
	if err != nil {
		return p.problem("want " + wants[p.kind])
	}
	return p.check(into, text)
}

// check compares a value with what its parameter declares.
func (p *param) check(value reflect.Value, text string) error {
	switch {
	case p.enum != nil && !slices.Contains(p.enum, text):
		return p.problem("want " + strings.Join(p.enum, " or "))
	case p.length > 0 && utf8.RuneCountInString(text) > p.length:
		return p.problem(fmt.Sprintf("want at most %d characters", p.length))
	case p.form == "name" && store.CheckName(p.name, text) != nil:
		return p.problem("want 1 to 128 letters, digits and . _ @ + -, the first a letter or digit, and no key")
	case p.form == "visible" && (text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })):
		return p.problem("want visible ASCII characters without blanks")
	case p.form == "etag" && !etagForm.MatchString(text):
		return p.problem(`want one ETag with its quotes, such as "5d41402abc4b2a76", or *`)
	case p.min != nil && value.Int() < *p.min, p.max != nil && value.Int() > *p.max:
		return p.problem("want " + p.bounds())
	}
	return nil
}

// bounds says in words between which numbers a value is.
func (p *param) bounds() string {
	words := "at most " + strconv.FormatInt(*p.max, 10)
	if p.min != nil {
		words = fmt.Sprintf("%d to %d", *p.min, *p.max)
	}
	if p.kind == reflect.TypeFor[usage.Limit]() {
		words += `, or "unlimited"`
	}
	return words
}
