package inspect

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// raw is the original document. It shows extensions of Envoy whose types are not known here.
type raw struct {
	text  json.RawMessage
	known map[Path]json.RawMessage // requested parts, and the parts around them
}

// text is a text in a document, and its place.
type text struct {
	path Path
	text string
}

// texts returns all texts of the part at a path, in the order of their paths.
func (r *raw) texts(at Path) []text {
	var value any
	if json.Unmarshal(r.part(at), &value) != nil {
		return nil
	}
	var all []text
	collect(value, at, &all)
	slices.SortFunc(all, func(a, b text) int { return strings.Compare(string(a.path), string(b.path)) })
	return all
}

func collect(value any, at Path, all *[]text) {
	switch value := value.(type) {
	case string:
		*all = append(*all, text{at, value})
	case []any:
		for i, item := range value {
			collect(item, at.Item(i), all)
		}
	case map[string]any:
		for name, member := range value {
			collect(member, at.At(name), all)
		}
	}
}

// lastStep matches the end of a path: .name, ["name"] or [0].
var lastStep = regexp.MustCompile(`(?:\.?(\w+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\])$`)

// part returns the part at a path, or nil.
func (r *raw) part(at Path) json.RawMessage {
	if at == "" {
		return r.text
	}
	if found, ok := r.known[at]; ok {
		return found
	}
	step := lastStep.FindStringSubmatch(string(at))
	if step == nil {
		return nil
	}
	around := r.part(at[:len(at)-len(step[0])])
	found := member(around, step[1], step[2], step[3])
	r.known[at] = found
	return found
}

// member returns a field, an item or the value of a key. Fields may have their names from Envoy's
// API or from JSON.
func member(around json.RawMessage, field, item, key string) json.RawMessage {
	if item != "" {
		var list []json.RawMessage
		i, err := strconv.Atoi(item)
		if err != nil || json.Unmarshal(around, &list) != nil || i >= len(list) {
			return nil
		}
		return list[i]
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(around, &members) != nil {
		return nil
	}
	if key != "" {
		name, _ := strconv.Unquote(key)
		return members[name]
	}
	if found, ok := members[field]; ok {
		return found
	}
	return members[camel(field)]
}

// camel is the name of a field in JSON.
func camel(name string) string {
	first, rest, _ := strings.Cut(name, "_")
	for part := range strings.SplitSeq(rest, "_") {
		if part != "" {
			first += strings.ToUpper(part[:1]) + part[1:]
		}
	}
	return first
}
