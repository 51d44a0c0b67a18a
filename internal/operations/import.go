package operations

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/usage"
)

// Import describes an import of users and keys from another system.
type Import struct {
	From    io.Reader
	JSON    bool            // lines of JSON in place of CSV
	Foreign *apikey.Foreign // the forms of keys in clear
	directory.ImportOptions
	Problem func(directory.ImportProblem) // gets each problem
}

// ImportColumns are the columns of a file to import, in the order of an export. A line has a user
// with at most one key, or without a user an account, or without both a plan.
var ImportColumns = []string{
	"user", "kind", "status", "subject", "account", "account_kind", "account_status", "plan",
	"plan_api_access", "plan_rate_limit", "plan_rate_window", "plan_credits", "plan_pool",
	"credits_used", "key", "key_sha256", "key_status",
}

// Import adds what a file names and the database lacks. It returns when every replica accepts the
// keys.
func (o Operator) Import(ctx context.Context, in Import) (Committed[directory.Imported], error) {
	now, err := o.db.Now(ctx)
	if err != nil {
		return Committed[directory.Imported]{}, err
	}
	in.Month = usage.MonthOf(now)
	reader := &importReader{in: in, holdsKey: o.holdsKey}
	imported, done, err := o.directory().Import(ctx, reader.rows(), in.ImportOptions, func() int64 { return reader.broken }, in.Problem)
	if errors.Is(err, directory.ErrProblems) {
		return Committed[directory.Imported]{Result: imported}, err
	}
	return committed(imported, done, err)
}

// importReader reads the rows of a file, and tells the problems of those that cannot be read.
type importReader struct {
	in       Import
	holdsKey func(string) bool
	broken   int64 // rows with a problem
}

// line is a line of a file: the fields by their names, each with its column.
type line struct {
	number int64
	fields map[string]string
	places map[string]int
}

// fieldError is a problem with one field of a line; "": the line as a whole.
type fieldError struct {
	field string
	err   error
}

func (e fieldError) Error() string { return e.err.Error() }

func wrongField(name, format string, args ...any) error {
	return fieldError{name, fmt.Errorf(format, args...)}
}

func (r *importReader) rows() iter.Seq2[directory.ImportRow, error] {
	lines := r.csvLines
	if r.in.JSON {
		lines = r.jsonLines
	}
	return func(yield func(directory.ImportRow, error) bool) {
		for l, err := range lines() {
			var row directory.ImportRow
			if err == nil {
				row, err = r.row(l)
			}
			if wrong := (fieldError{}); errors.As(err, &wrong) {
				r.broken++
				r.in.Problem(directory.ImportProblem{Line: l.number, Column: max(1, l.places[wrong.field]), Text: strings.TrimPrefix(wrong.field+": ", ": ") + wrong.Error()})
				continue
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}

// csvLines reads CSV with a header. A line that is no CSV is a problem; so is a wrong number of
// fields.
func (r *importReader) csvLines() iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		in := csv.NewReader(bufio.NewReaderSize(r.in.From, 1<<20))
		in.ReuseRecord = true
		header, err := in.Read()
		if err != nil {
			yield(line{}, fmt.Errorf("%w: reading the header: %w", store.ErrInvalid, noKey(err)))
			return
		}
		names := slices.Clone(header)
		if err := checkColumns(names); err != nil {
			yield(line{}, err)
			return
		}
		for {
			record, err := in.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			l := line{fields: make(map[string]string, len(names)), places: make(map[string]int, len(names))}
			wrong := (*csv.ParseError)(nil)
			switch {
			case errors.As(err, &wrong):
				l.number, l.places[""] = int64(wrong.Line), wrong.Column
				err = fieldError{"", wrong.Err}
			case err == nil:
				for i, value := range record {
					number, column := in.FieldPos(i)
					if i == 0 {
						l.number = int64(number)
					}
					l.fields[names[i]], l.places[names[i]] = strings.TrimSpace(value), column
				}
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// noKey returns an error of the file without its text.
func noKey(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the file is empty")
	}
	return err
}

func checkColumns(names []string) error {
	for i, name := range names {
		names[i] = strings.TrimSpace(strings.TrimPrefix(name, "\ufeff"))
		switch {
		case !slices.Contains(ImportColumns, names[i]):
			return fmt.Errorf("%w: line 1: there is no column number %d by that name: the columns are %s", store.ErrInvalid, i+1, strings.Join(ImportColumns, ", "))
		case slices.Contains(names[:i], names[i]):
			return fmt.Errorf("%w: line 1: the column %s is there twice", store.ErrInvalid, names[i])
		}
	}
	return nil
}

// maxLine bounds a line of JSON, in bytes.
const maxLine = 1 << 20

// jsonLines reads a JSON object from each line.
func (r *importReader) jsonLines() iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		in := bufio.NewScanner(r.in.From)
		in.Buffer(make([]byte, 64<<10), maxLine)
		for number := int64(1); in.Scan(); number++ {
			if len(bytes.TrimSpace(in.Bytes())) == 0 {
				continue
			}
			l, err := jsonLine(in.Bytes())
			l.number = number
			if !yield(l, err) {
				return
			}
		}
		if err := in.Err(); err != nil {
			yield(line{}, fmt.Errorf("reading the file: %w", err))
		}
	}
}

func jsonLine(text []byte) (line, error) {
	l := line{fields: map[string]string{}, places: map[string]int{}}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	broken := func(why string) (line, error) {
		l.places[""] = int(decoder.InputOffset()) + 1
		return l, fieldError{"", errors.New(why)}
	}
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return broken("the line is no JSON object")
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return broken("the line is no JSON object")
		}
		text := name.(string)
		l.places[text] = int(decoder.InputOffset()) + 1
		_, again := l.fields[text]
		if !slices.Contains(ImportColumns, text) || again {
			return broken("a name is unknown or there twice; the names are " + strings.Join(ImportColumns, ", "))
		}
		value, err := decoder.Token()
		if err != nil {
			return broken("the line is no JSON object")
		}
		switch value := value.(type) {
		case nil:
		case string:
			l.fields[text] = value
		case json.Number:
			l.fields[text] = value.String()
		case bool:
			l.fields[text] = strconv.FormatBool(value)
		default:
			return l, wrongField(text, "want a text or a number")
		}
	}
	if _, err := decoder.Token(); err != nil {
		return broken("the line is no JSON object")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return broken("something follows the JSON object")
	}
	return l, nil
}

// row checks the fields of a line. No error holds a key.
func (r *importReader) row(l line) (row directory.ImportRow, err error) {
	f := l.fields
	row = directory.ImportRow{
		Line: l.number, UserColumn: l.places["user"], AccountColumn: l.places["account"], PlanColumn: l.places["plan"],
		KeyColumn: max(l.places["key"], l.places["key_sha256"]), SubjectColumn: l.places["subject"],
		User: f["user"], Subject: f["subject"], Account: f["account"], Plan: f["plan"],
	}
	if f["key"] != "" {
		row.KeyColumn = l.places["key"]
	}
	for _, name := range []string{"user", "account", "plan"} {
		if f[name] == "" {
			continue
		}
		err := store.CheckName(name, f[name])
		if err == nil && r.holdsKey != nil && r.holdsKey(f[name]) {
			err = store.LooksLikeKey(name)
		}
		if err != nil {
			return row, fieldError{name, err}
		}
	}
	switch {
	case row.User == "" && row.Account == "" && row.Plan == "":
		return row, wrongField("user", "the line names neither a user nor an account nor a plan")
	case row.User == "" && (f["key"]+f["key_sha256"]+f["subject"]+f["status"]+f["kind"]+f["credits_used"] != ""):
		return row, wrongField("user", "the line describes a user, and names none")
	case row.Plan != "" && row.Account == "" && row.User != "":
		return row, wrongField("account", "the plan is that of an account, and the line names none")
	}
	if err := directory.CheckSubject(row.Subject); err != nil {
		return row, fieldError{"subject", err}
	}
	for _, one := range []struct {
		field    string
		to       *string
		possible []string
	}{
		{"kind", &row.Kind, []string{"person", "service"}},
		{"status", &row.Status, []string{"active", "disabled"}},
		{"account_kind", &row.AccountKind, []string{"person", "organization"}},
		{"account_status", &row.AccountStatus, []string{"active", "suspended", "cancelled"}},
	} {
		*one.to = f[one.field]
		if *one.to == "" {
			*one.to = one.possible[0]
		}
		if !slices.Contains(one.possible, *one.to) {
			return row, wrongField(one.field, "want %s", strings.Join(one.possible, ", "))
		}
	}
	if f["credits_used"] != "" {
		row.Used, err = strconv.ParseInt(f["credits_used"], 10, 64)
		if err != nil || row.Used < 0 || row.Used > directory.MaxCredits {
			return row, wrongField("credits_used", "want a number from 0 to %d", int64(directory.MaxCredits))
		}
	}
	if err := planOf(f, &row); err != nil {
		return row, err
	}
	return row, r.keyOf(f, &row)
}

// planOf reads how a plan is made if it is missing.
func planOf(f map[string]string, row *directory.ImportRow) error {
	p := &row.PlanIs
	for _, one := range []struct {
		field string
		parse func(string) error
	}{
		{"plan_api_access", func(s string) error { b, err := strconv.ParseBool(s); p.APIAccess = &b; return err }},
		{"plan_rate_limit", func(s string) error { n, err := usage.ParseLimit(s); p.RateLimit = &n; return err }},
		{"plan_rate_window", func(s string) error { d, err := time.ParseDuration(s); p.RateWindow = &d; return err }},
		{"plan_credits", func(s string) error { n, err := usage.ParseLimit(s); p.Credits = &n; return err }},
		{"plan_pool", func(s string) error { p.Pool = &s; return nil }},
	} {
		text := f[one.field]
		if text == "" {
			continue
		}
		if row.Plan == "" {
			return wrongField(one.field, "the line names no plan")
		}
		if err := one.parse(text); err != nil {
			return wrongField(one.field, "%.40q cannot be read", text)
		}
		row.MakesPlan = true
	}
	if row.User == "" && row.Account == "" {
		row.MakesPlan = true
	}
	if err := directory.CheckPlan(*p); err != nil {
		field := "plan"
		if wrong := (store.FieldError{}); errors.As(err, &wrong) {
			field = "plan_" + wrong.Field
		}
		return fieldError{field, err}
	}
	return nil
}

// keyOf reads the key of a line, in clear or as its SHA-256.
func (r *importReader) keyOf(f map[string]string, row *directory.ImportRow) error {
	key, sum := f["key"], f["key_sha256"]
	switch status := f["key_status"]; {
	case status == "revoked":
		row.Revoked = true
	case status != "" && status != "active":
		return wrongField("key_status", "want active, revoked")
	}
	switch {
	case key != "" && sum != "":
		return wrongField("key_sha256", "the line has the key in clear too: want one of the two")
	case key != "":
		token, ok := r.in.Foreign.Parse(key, true)
		if !ok {
			return wrongField("key", "the key has none of the forms in key_formats, so that it would never be accepted")
		}
		row.HasKey, row.Token, row.Digest = true, token, token.Digest()
	case sum != "":
		digest, err := parseSum(sum)
		if err != nil {
			return fieldError{"key_sha256", err}
		}
		row.HasKey, row.Digest = true, digest
	case row.Revoked:
		return wrongField("key_status", "the line has no key")
	}
	return nil
}

// parseSum reads a SHA-256 in hexadecimal digits or in base64, of either alphabet.
func parseSum(s string) (d apikey.Digest, _ error) {
	if len(s) == hex.EncodedLen(sha256.Size) {
		if n, err := hex.Decode(d[:], []byte(s)); err == nil && n == len(d) {
			return d, nil
		}
	}
	text := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	sum, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(sum) != sha256.Size {
		return d, errors.New("want a SHA-256: 64 hexadecimal digits, or base64")
	}
	return apikey.Digest(sum), nil
}

// Exported is a line of an export: a user, without keys.
type Exported = directory.ExportRow

// Export lists all users in the form of an import, without keys. Plans and accounts without users
// have lines of their own.
func (o Operator) Export(ctx context.Context) iter.Seq2[Exported, error] {
	return func(yield func(Exported, error) bool) {
		now, err := o.db.Now(ctx)
		if err != nil {
			yield(Exported{}, err)
			return
		}
		for row, err := range o.directory().Export(ctx, usage.MonthOf(now)) {
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}
