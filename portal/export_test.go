package portal

import "reflect"

// Texts returns all texts of the page in a language.
func Texts(language string) reflect.Value {
	for _, t := range languages {
		if t.Language == language {
			return reflect.ValueOf(*t)
		}
	}
	panic("no such language")
}
