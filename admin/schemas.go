package admin

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/usage"
)

// schemas are the JSON schemas of structs by name, as encoding/json writes them.
type schemas struct {
	all   map[string]object
	types map[string]reflect.Type // name → the type that has it
}

func newSchemas() *schemas {
	return &schemas{map[string]object{}, map[string]reflect.Type{}}
}

// schemaNames are the names of types whose own name says too little, or is that of another one.
var schemaNames = map[reflect.Type]string{
	reflect.TypeFor[operations.User]():    "UserOverview",
	reflect.TypeFor[operations.Key]():     "KeyOverview",
	reflect.TypeFor[operations.Request](): "RequestOverview",
	reflect.TypeFor[operations.Balance](): "CreditBalance",
	reflect.TypeFor[problemBody]():        "Problem",
}

// nameOf returns the name of a struct: for Page[Plan], PlanPage.
func nameOf(t reflect.Type) string {
	if name := schemaNames[t]; name != "" {
		return name
	}
	base, _, generic := strings.Cut(t.Name(), "[")
	if generic {
		items, _ := t.FieldByName("Items")
		base = nameOf(items.Type.Elem()) + base
	}
	return capitalized(base)
}

func capitalized(name string) string { return strings.ToUpper(name[:1]) + name[1:] }

// add returns a reference to the schema with a name, which it makes unless it is there.
func (s *schemas) add(name string, t reflect.Type, schema func() object) object {
	if taken, found := s.types[name]; !found {
		s.types[name] = t
		s.all[name] = schema()
	} else if taken != t {
		panic("admin: two schemas have the name " + name)
	}
	return object{"$ref": "#/components/schemas/" + name}
}

// of returns the schema of a type, by reference if it has a name.
func (s *schemas) of(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[usage.Limit]():
		return object{"anyOf": []object{{"type": "integer", "minimum": 0}, {"type": "string", "enum": []string{usage.Unlimited.String()}}}}
	case reflect.TypeFor[period]():
		return object{"type": "string", "pattern": spans}
	case reflect.TypeFor[month]():
		return object{"type": "string", "pattern": `^[0-9]{4}-(0[1-9]|1[0-2])$`}
	case reflect.TypeFor[code]():
		return codeSchema()
	case reflect.TypeFor[json.RawMessage]():
		return object{"type": "object"}
	}
	if t.Implements(reflect.TypeFor[change]()) {
		result := resultOf(t)
		return s.add(nameOf(result)+"Change", t, func() object {
			return joined(s.structOf(result), s.structOf(reflect.TypeFor[operations.Enforcement]()))
		})
	}
	if t.Implements(reflect.TypeFor[streamed]()) {
		item := reflect.New(t.Elem()).Interface().(streamed).item()
		return s.add(nameOf(item)+"List", t, func() object {
			items := object{"type": "array", "items": s.of(item)}
			return object{"type": "object", "properties": object{"items": items}, "required": []string{"items"}}
		})
	}
	switch t.Kind() {
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Pointer:
		return nullable(s.of(t.Elem()))
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Struct:
		return s.add(nameOf(t), t, func() object { return s.structOf(t) })
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	}
	return object{"type": "integer"} // nothing here has fractions
}

// codeSchema lists the codes of all problems. Each status of an operation has some of them.
func codeSchema() object {
	var codes []code
	for _, kind := range kinds {
		codes = append(codes, kind.code)
	}
	return object{"type": "string", "enum": codes}
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

func (s *schemas) structOf(t reflect.Type) object {
	properties, required := object{}, []string{}
	for _, field := range reflect.VisibleFields(t) {
		name, option, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous && name == "" || !field.IsExported() || name == "-" {
			continue
		}
		properties[name] = s.of(field.Type)
		if option != "omitempty" && !throughPointer(t, field) {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	return object{"type": "object", "properties": properties, "required": required}
}
