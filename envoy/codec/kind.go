package codec

import "fmt"

// Kind selects how messages are read and written. All codecs read and write the same.
type Kind uint8

// The codecs.
const (
	Fast      Kind = iota // Checks and access logs in place, all else by the generated code
	Generated             // everything by the generated code
)

// String returns the name of k in the configuration.
func (k Kind) String() string {
	if k == Generated {
		return "generated"
	}
	return "fast"
}

// ParseKind reads the name of a codec.
func ParseKind(s string) (Kind, error) {
	for _, k := range []Kind{Fast, Generated} {
		if s == k.String() {
			return k, nil
		}
	}
	return Fast, fmt.Errorf("unknown codec %q: want fast or generated", s)
}
