package inspect

import (
	"fmt"
	"regexp"
)

// Path is a place in a configuration, in the notation of jq and yq without the first dot:
// static_resources.listeners[0].name. Names of fields are those of Envoy's API, with underscores.
type Path string

var plainName = regexp.MustCompile(`^[A-Za-z_]\w*$`)

// At is the member of an object.
func (p Path) At(name string) Path {
	if !plainName.MatchString(name) {
		return p + Path(fmt.Sprintf("[%q]", name))
	}
	if p == "" {
		return Path(name)
	}
	return p + "." + Path(name)
}

// Item is the member of a list.
func (p Path) Item(i int) Path { return p + Path(fmt.Sprintf("[%d]", i)) }

// in is a member of a member, and so on.
func (p Path) in(names ...string) Path {
	for _, name := range names {
		p = p.At(name)
	}
	return p
}
