//go:build ignore

// Generate writes the triggers of SQLite, which has no statement triggers and no functions, so that
// each table needs the same long texts. Run it as `go generate ./store`. Once the file is released
// it stays as it is: a later change of a trigger is a migration of its own, with DROP TRIGGER and
// CREATE TRIGGER.
package main

import (
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"text/template"
)

// table is a table whose changes are recorded. In texts, @ stands before the columns of a row.
type table struct {
	Name, Key string // Key: the primary key

	// The change feed: the columns that a decision rests on, and the name that a change touches. It
	// does not record a table without such columns.
	Decide []string
	Touch  string
	Added  string // the change that a new row makes; none if ""
	// Displaced is a condition on the rows that INSERT OR REPLACE removes without a DELETE trigger,
	// beside the row with the same rowid. Moved are the unique columns by which UPDATE OR REPLACE
	// removes the row of another name.
	Displaced string
	Moved     []string

	// The audit: the kind of thing, the name of a row, and the columns that it shows. Of Digest it
	// says that it was replaced; of Public it shows four bytes, which tell two values apart.
	Kind, Row      string
	Show           []string
	Digest, Public string
	Kept           bool // deletions are not recorded
}

var tables = []table{
	{
		Name: "plans", Key: "name",
		Decide: []string{"name", "api_access", "rate_limit", "rate_window", "credits", "pool"},
		Touch:  "'plan:' || @name", Added: "'added'", Displaced: "name = NEW.name",
		Kind: "plan", Row: "@name", Show: []string{"name", "api_access", "rate_limit", "rate_window", "credits", "pool"},
	},
	{
		Name: "accounts", Key: "name",
		Decide: []string{"name", "plan", "status"},
		Touch:  "'account:' || @name", Added: "'added'", Displaced: "name = NEW.name",
		Kind: "account", Row: "@name", Show: []string{"name", "kind", "plan", "status"},
	},
	{
		Name: "users", Key: "name",
		Decide: []string{"name", "account", "status", "subject", "not_before"},
		Touch:  "'user:' || @name", Added: "'added'", Displaced: "name = NEW.name OR subject = NEW.subject", Moved: []string{"subject"},
		Kind: "user", Row: "@name", Show: []string{"name", "kind", "account", "status", "subject", "not_before"},
	},
	{
		Name: "keys", Key: "id",
		Decide: []string{"id", "user_name", "digest", "revoked_at"},
		Touch:  "'user:' || @user_name", Added: "'added'",
		Displaced: "id = NEW.id OR digest = NEW.digest OR user_name = NEW.user_name AND revoked_at IS NULL AND NEW.revoked_at IS NULL",
		Moved:     []string{"id", "digest"},
		Kind:      "key", Row: "@user_name", Show: []string{"id", "user_name", "created_at", "revoked_at"}, Digest: "digest",
	},
	{
		Name: "sessions", Key: "digest",
		Decide: []string{"digest", "user_name", "expires_at", "revoked_at"},
		Touch:  "'user:' || @user_name", Displaced: "digest = NEW.digest", Moved: []string{"digest"},
		Kind: "session", Row: "@user_name", Show: []string{"user_name", "created_at", "expires_at", "revoked_at"}, Digest: "digest",
	},
	{
		Name: "login_links", Key: "digest",
		Kind: "login link", Row: "@user_name", Show: []string{"user_name", "created_at", "expires_at", "used_at"}, Digest: "digest", Kept: true,
	},
	{
		Name: "credit_grants", Key: "id",
		Decide: []string{"month", "kind", "name", "credits"},
		Touch:  "@kind || ':' || @name", Added: "NEW.kind || ':' || NEW.name", Displaced: "id = NEW.id", Moved: []string{"id"},
		Kind: "grant", Row: "@name", Show: []string{"id", "month", "kind", "name", "credits"},
	},
	{
		Name: "seal_keys", Key: "id",
		Kind: "seal key", Row: "'page'", Show: []string{"created_at"}, Public: "public",
	},
}

// in returns a text for a row: OLD or NEW, or "" for the table's own.
func in(row, text string) string {
	if row != "" {
		row += "."
	}
	return strings.ReplaceAll(text, "@", row)
}

// of returns columns of a row as a list.
func of(row string, columns []string) string { return in(row, "@"+strings.Join(columns, ", @")) }

// Compared returns the columns that make an update worth recording in the audit.
func (t table) Compared() []string {
	columns := slices.Clone(t.Show)
	for _, hidden := range []string{t.Digest, t.Public} {
		if hidden != "" {
			columns = append(columns, hidden)
		}
	}
	return columns
}

// Object is a row as JSON.
func (t table) Object(row string) string {
	var pairs []string
	for _, column := range t.Show {
		pairs = append(pairs, "'"+column+"', "+row+"."+column)
	}
	return "json_object(" + strings.Join(pairs, ", ") + ")"
}

// Changed is the old and new values of a row as JSON.
func (t table) Changed() string {
	var rows []string
	for i, column := range t.Show {
		format := "SELECT '%s', OLD.%[1]s, NEW.%[1]s"
		if i == 0 {
			format = "SELECT '%s' AS k, OLD.%[1]s AS o, NEW.%[1]s AS n"
		}
		rows = append(rows, fmt.Sprintf(format, column))
	}
	if t.Public != "" {
		rows = append(rows, fmt.Sprintf("SELECT '%s', substr(hex(OLD.%[1]s), 1, 8), substr(hex(NEW.%[1]s), 1, 8)", t.Public))
	}
	const indent = "\n            "
	all := "(SELECT json_group_object(k, json_array(o, n)) FROM (" + indent + strings.Join(rows, indent+"UNION ALL ") + ") WHERE o IS NOT n)"
	if t.Digest == "" {
		return all
	}
	return "json_patch(" + all + "," + indent + fmt.Sprintf(`CASE WHEN OLD.%s IS NOT NEW.%[1]s THEN '{"%[1]s":"replaced"}' ELSE '{}' END)`, t.Digest)
}

var text = template.Must(template.New("").Funcs(template.FuncMap{"in": in, "of": of}).Parse(
	`-- Code generated by store/migrations/generate.go. DO NOT EDIT.

-- The triggers of the change feed (changes_…) and of the audit (audit_…).
{{range .}}
-- {{.Name}} {{- if .Decide}}
{{- if .Displaced}}
CREATE TRIGGER changes_{{.Name}}_replace BEFORE INSERT ON {{.Name}} BEGIN
    INSERT INTO changes (what) SELECT {{in "" .Touch}} FROM {{.Name}}
        WHERE (rowid = NEW.rowid OR {{.Displaced}})
            AND ({{of "" .Decide}}) IS NOT ({{of "NEW" .Decide}});
END;
{{- end}}
{{- if .Added}}
CREATE TRIGGER changes_{{.Name}}_insert AFTER INSERT ON {{.Name}} BEGIN
    INSERT INTO changes (what) VALUES ({{.Added}});
END;
{{- end}}
{{- if .Moved}}
CREATE TRIGGER changes_{{.Name}}_move BEFORE UPDATE OF {{of "" .Moved}} ON {{.Name}} BEGIN
    INSERT INTO changes (what) SELECT {{in "" .Touch}} FROM {{.Name}}
        WHERE ({{range $i, $c := .Moved}}{{if $i}} OR {{end}}{{$c}} = NEW.{{$c}}{{end}}) AND {{.Key}} <> OLD.{{.Key}};
END;
{{- end}}
CREATE TRIGGER changes_{{.Name}}_update AFTER UPDATE ON {{.Name}}
WHEN ({{of "OLD" .Decide}})
    IS NOT ({{of "NEW" .Decide}}) BEGIN
    INSERT INTO changes (what) VALUES ({{in "OLD" .Touch}} || ' ' || {{in "NEW" .Touch}});
END;
CREATE TRIGGER changes_{{.Name}}_delete AFTER DELETE ON {{.Name}} BEGIN
    INSERT INTO changes (what) VALUES ({{in "OLD" .Touch}});
END;
{{- end}}
CREATE TRIGGER audit_{{.Name}}_insert AFTER INSERT ON {{.Name}} BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'created', '{{.Kind}}', {{in "NEW" .Row}},
        {{.Object "NEW"}});
END;
CREATE TRIGGER audit_{{.Name}}_update AFTER UPDATE ON {{.Name}}
WHEN ({{of "OLD" .Compared}})
    IS NOT ({{of "NEW" .Compared}}) BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'changed', '{{.Kind}}', {{in "NEW" .Row}},
        {{.Changed}});
END;
{{- if not .Kept}}
CREATE TRIGGER audit_{{.Name}}_delete AFTER DELETE ON {{.Name}} BEGIN
    INSERT INTO audit (actor, action, kind, name, detail) VALUES (coalesce((SELECT actor FROM audit_actor), 'sql'), 'deleted', '{{.Kind}}', {{in "OLD" .Row}},
        {{.Object "OLD"}});
END;
{{- end}}
{{end}}`))

func main() {
	path := "migrations/00100_triggers.sqlite.sql"
	if len(os.Args) > 1 {
		path = os.Args[1]
	}
	file, err := os.Create(path)
	if err != nil {
		log.Fatal(err)
	}
	if err := text.Execute(file, tables); err != nil {
		log.Fatal(err)
	}
	if err := file.Close(); err != nil {
		log.Fatal(err)
	}
}
