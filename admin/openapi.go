package admin

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/usage"
)

// object is a JSON object.
type object map[string]any

func openAPI(_ context.Context, c *call, _ none) (json.RawMessage, error) { return c.document, nil }

// document returns the OpenAPI document of a table. Everything in it is what the table's operations
// are made of, so that it cannot differ from them.
func document(table []operation) (json.RawMessage, error) {
	paths := map[string]object{}
	for i := range table {
		o := &table[i]
		if paths[o.path] == nil {
			paths[o.path] = object{}
		}
		paths[o.path][strings.ToLower(o.method)] = o.describe()
	}
	scopes := []string{}
	for _, scope := range bearer.Scopes() {
		scopes = append(scopes, string(scope))
	}
	return json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Keyporter operators' API", "version": "1",
			"description": "Plans, accounts, users, keys, sessions and credits. A change is in force on every replica when its call returns with confirmed: true. Scopes of tokens: " + strings.Join(scopes, ", ") + ".",
		},
		"security": []object{{"token": []string{}}},
		"paths":    paths,
		"components": object{
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}},
			"schemas":         object{"Problem": problemSchema()},
			"responses": object{"Problem": object{
				"description": "A refusal, as in RFC 9457. The code is stable.",
				"headers": object{
					"X-Request-Id": header("The name of the request"),
					idempotencyKey: header("Of a change: the name of the call, for its repetition"),
					"Retry-After":  header("With 429 and 503: when to try again, in seconds"),
				},
				"content": object{problemType: object{"schema": object{"$ref": "#/components/schemas/Problem"}}},
			}},
		},
	}, "", " ")
}

func header(description string) object {
	return object{"description": description, "schema": object{"type": "string"}}
}

func problemSchema() object {
	schema := schemaOf(reflect.TypeFor[problemBody]())
	var codes []string
	for _, kind := range kinds {
		codes = append(codes, string(kind.code))
	}
	schema["properties"].(object)["code"] = object{"type": "string", "enum": codes}
	return schema
}

// describe returns the operation object.
func (o *operation) describe() object {
	scope := "any token"
	if o.scope != "" {
		scope = "scope " + string(o.scope)
	}
	responses := object{"default": object{"$ref": "#/components/responses/Problem"}, "200": o.response("Done")}
	if o.out.Implements(reflect.TypeFor[change]()) {
		responses["200"] = o.response("Done, and enforced on every replica")
		responses["202"] = o.response("Done, and not yet known to be enforced on every replica: repeat the call with the Idempotency-Key of this answer to wait again")
	}
	d := object{
		"operationId": o.id, "summary": o.summary, "description": "Needs " + scope + ".",
		"tags": []string{strings.Split(o.id, ".")[0]}, "parameters": o.parameters(), "responses": responses,
	}
	if body := o.requestBody(); body != nil {
		d["requestBody"] = body
	}
	return d
}

func (o *operation) response(description string) object {
	headers := object{"X-Request-Id": header("The name of the request")}
	if o.changes() {
		headers[idempotencyKey] = header("The name of the call")
	}
	if taggedTypes[resultOf(o.out)] {
		headers["ETag"] = header("The version, for If-Match")
	}
	content := object{jsonType: object{"schema": schemaOf(o.out)}}
	if o.out.Implements(reflect.TypeFor[streamed]()) {
		content[csvType] = object{"schema": object{"type": "string"}}
	}
	return object{"description": description, "headers": headers, "content": content}
}

func (o *operation) parameters() []object {
	all := []object{}
	for _, p := range o.params {
		if p.place != "json" {
			all = append(all, object{"name": p.name, "in": p.place, "required": p.place == "path" || p.required, "description": p.doc, "schema": p.schema()})
		}
	}
	return all
}

func (o *operation) requestBody() object {
	properties, required := object{}, []string{}
	for _, p := range o.params {
		if p.place != "json" {
			continue
		}
		schema := p.schema()
		schema["description"] = p.doc
		properties[p.name] = schema
		if p.required {
			required = append(required, p.name)
		}
	}
	if len(properties) == 0 {
		return nil
	}
	schema := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		schema["required"] = required
	}
	return object{"required": len(required) > 0, "content": object{jsonType: object{"schema": schema}}}
}

// schema returns which values the parameter has.
func (p *param) schema() object {
	s := schemaOf(p.kind)
	if p.kind == reflect.TypeFor[usage.Limit]() {
		s["anyOf"].([]object)[0]["maximum"] = *p.max
		return s
	}
	if p.enum != nil {
		s["enum"] = p.enum
	}
	if p.min != nil {
		s["minimum"] = *p.min
	}
	if p.max != nil {
		s["maximum"] = *p.max
	}
	if p.length > 0 {
		s["maxLength"] = p.length
	}
	switch {
	case p.form == "" && p.enum == nil && p.kind == reflect.TypeFor[string]():
		s["pattern"] = `^[^\x00-\x1f\x7f-\x9f�]*$` // as parse wants it
	case p.form == "name":
		s["pattern"] = `^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$`
	case p.form == "visible":
		s["pattern"] = `^[!-~]+$`
	}
	return s
}

// schemaOf returns the JSON schema of a type, as encoding/json writes it.
func schemaOf(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[usage.Limit]():
		return object{"anyOf": []object{{"type": "integer", "minimum": 0}, {"type": "string", "enum": []string{usage.Unlimited.String()}}}}
	case reflect.TypeFor[period]():
		return object{"type": "string", "pattern": spans}
	case reflect.TypeFor[month]():
		return object{"type": "string", "pattern": `^[0-9]{4}-(0[1-9]|1[0-2])$`}
	case reflect.TypeFor[json.RawMessage]():
		return object{"type": "object"}
	}
	if t.Implements(reflect.TypeFor[change]()) {
		return joined(schemaOf(resultOf(t)), schemaOf(reflect.TypeFor[operations.Enforcement]()))
	}
	if t.Implements(reflect.TypeFor[streamed]()) {
		items := schemaOf(reflect.New(t.Elem()).Interface().(streamed).item())
		return object{"type": "object", "properties": object{"items": object{"type": "array", "items": items}}, "required": []string{"items"}}
	}
	switch t.Kind() {
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schemaOf(t.Elem())}
	case reflect.Pointer:
		return nullable(schemaOf(t.Elem()))
	case reflect.Slice:
		return object{"type": "array", "items": schemaOf(t.Elem())}
	case reflect.Struct:
		return structSchema(t)
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	}
	return object{"type": "integer"} // nothing here has fractions
}

// resultOf returns the type of what a change returns, or the type itself.
func resultOf(t reflect.Type) reflect.Type {
	if t.Implements(reflect.TypeFor[change]()) {
		result, _ := t.FieldByName("Result")
		return result.Type
	}
	return t
}

func nullable(schema object) object {
	if name, plain := schema["type"].(string); plain {
		schema["type"] = []string{name, "null"}
		return schema
	}
	return object{"anyOf": []object{schema, {"type": "null"}}}
}

// joined returns the schema of an object with the fields of both.
func joined(a, b object) object {
	for name, schema := range b["properties"].(object) {
		a["properties"].(object)[name] = schema
	}
	a["required"] = append(a["required"].([]string), b["required"].([]string)...)
	return a
}

// throughPointer reports whether a field is of an embedded struct that may be missing.
func throughPointer(t reflect.Type, field reflect.StructField) bool {
	return len(field.Index) > 1 && t.Field(field.Index[0]).Type.Kind() == reflect.Pointer
}

func structSchema(t reflect.Type) object {
	properties, required := object{}, []string{}
	for _, field := range reflect.VisibleFields(t) {
		name, option, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous && name == "" || !field.IsExported() || name == "-" {
			continue
		}
		properties[name] = schemaOf(field.Type)
		if option != "omitempty" && !throughPointer(t, field) {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	return object{"type": "object", "properties": properties, "required": required}
}
