package admin

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

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
	paths, named := map[string]object{}, newSchemas()
	named.of(reflect.TypeFor[problemBody]())
	for i := range table {
		o := &table[i]
		if paths[o.path] == nil {
			paths[o.path] = object{}
		}
		paths[o.path][strings.ToLower(o.method)] = o.describe(named)
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
			"schemas":         named.all,
		},
	}, "", " ")
}

func header(description string) object {
	return object{"description": description, "schema": object{"type": "string"}}
}

// describe returns the operation object.
func (o *operation) describe(named *schemas) object {
	scope := "any token"
	if o.scope != "" {
		scope = "scope " + string(o.scope)
	}
	responses := object{"200": o.response("Done", named)}
	if o.out.Implements(reflect.TypeFor[change]()) {
		responses["200"] = o.response("Done, and enforced on every replica", named)
		responses["202"] = o.response("Done, and not yet known to be enforced on every replica: repeat the call with the Idempotency-Key of this answer to wait again", named)
	}
	for status, codes := range o.refusals() {
		responses[strconv.Itoa(status)] = o.refusal(codes, named)
	}
	d := object{
		"operationId": o.id, "summary": o.summary, "description": "Needs " + scope + ".",
		"tags": []string{strings.Split(o.id, ".")[0]}, "parameters": o.parameters(named), "responses": responses,
	}
	if body := o.requestBody(named); body != nil {
		d["requestBody"] = body
	}
	return d
}

func (o *operation) response(description string, named *schemas) object {
	headers := object{"X-Request-Id": header("The name of the request")}
	if o.changes() {
		headers[idempotencyKey] = header("The name of the call")
	}
	if taggedTypes[resultOf(o.out)] {
		headers["ETag"] = header("The version, for If-Match")
	}
	content := object{jsonType: object{"schema": named.of(o.out)}}
	if o.out.Implements(reflect.TypeFor[streamed]()) {
		content[csvType] = object{"schema": object{"type": "string"}}
	}
	return object{"description": description, "headers": headers, "content": content}
}

// refusals returns the problems of the operation by their status, in the order of kinds.
func (o *operation) refusals() map[int][]code {
	by := map[int][]code{}
	for _, kind := range kinds {
		if slices.Contains(o.codes, kind.code) {
			by[kind.status] = append(by[kind.status], kind.code)
		}
	}
	return by
}

// refusal returns the response of a status with some problems.
func (o *operation) refusal(codes []code, named *schemas) object {
	var titles []string
	for _, kind := range kinds {
		if slices.Contains(codes, kind.code) {
			titles = append(titles, kind.title)
		}
	}
	headers := object{"X-Request-Id": header("The name of the request")}
	if o.changes() {
		headers[idempotencyKey] = header("The name of the call, for its repetition")
	}
	switch codes[0] {
	case unauthorized:
		headers["WWW-Authenticate"] = header("Bearer")
	case rateLimited, busy:
		headers["Retry-After"] = header("When to try again, in seconds")
	}
	schema := object{"allOf": []object{named.of(reflect.TypeFor[problemBody]()), {"properties": object{"code": object{"enum": codes}}}}}
	return object{"description": strings.Join(titles, "; or: "), "headers": headers, "content": object{problemType: object{"schema": schema}}}
}

func (o *operation) parameters(named *schemas) []object {
	all := []object{}
	for _, p := range o.params {
		if p.place != "json" && p.name != "Accept" { // which the types of the answer document
			all = append(all, object{"name": p.name, "in": p.place, "required": p.place == "path" || p.required, "description": p.doc, "schema": p.schema(named)})
		}
	}
	return all
}

func (o *operation) requestBody(named *schemas) object {
	schema, required := bodyOf(o.params, named)
	if schema == nil {
		return nil
	}
	body := named.add(capitalized(o.in.Name())+"Body", o.in, func() object { return schema })
	return object{"required": required, "content": object{jsonType: object{"schema": body}}}
}

// bodyOf returns the schema of an object with the fields of a body or of an item of one; nil if
// there are none.
func bodyOf(params []param, named *schemas) (schema object, needed bool) {
	properties, required := object{}, []string{}
	for _, p := range params {
		if p.place != "json" {
			continue
		}
		field := p.schema(named)
		field["description"] = p.doc
		properties[p.name] = field
		if p.required {
			required = append(required, p.name)
		}
	}
	if len(properties) == 0 {
		return nil, false
	}
	schema = object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		schema["required"] = required
	}
	return schema, len(required) > 0
}

// schema returns which values the parameter has.
func (p *param) schema(named *schemas) object {
	if p.of != nil {
		item := p.kind.Elem()
		of := named.add(capitalized(item.Name()), item, func() object { schema, _ := bodyOf(p.of, named); return schema })
		return object{"type": "array", "minItems": 1, "maxItems": operations.MaxBatch, "items": of}
	}
	s := named.of(p.kind)
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
	case p.form == "etag":
		s["pattern"] = etags
	case p.form == "visible":
		s["pattern"] = `^[!-~]+$`
	}
	return s
}
