package apikey

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
)

// The bounds of a [KeyFormat].
const (
	// MinForeign and MaxForeign bound a whole key of another system, in bytes.
	MinForeign = 16
	MaxForeign = 256
	// MinForeignPrefix and MaxForeignPrefix bound its prefix, unless it has none.
	MinForeignPrefix = 3
	MaxForeignPrefix = 32
	// MaxKeyFormats is the maximum number of formats.
	MaxKeyFormats = 16

	maxPattern = 512 // bytes
)

// KeyFormat describes the keys of another system, which are known by their SHA-256 alone.
type KeyFormat struct {
	// Prefix begins every key: letters, digits, _ and, but for the first, - . ~. Keys of a format without a prefix are
	// accepted in the header X-API-Key only, and found nowhere else.
	Prefix string
	// Pattern is a regular expression (RE2) for the whole rest of a key. A key consists of visible
	// ASCII characters without the comma, which separates the values of a header.
	Pattern string
}

// Foreign recognises the keys of other systems. The nil Foreign recognises none. It is immutable
// and safe for concurrent use.
type Foreign struct {
	formats  []foreignFormat
	prefixes []string       // of the formats with one
	found    *regexp.Regexp // a key with a prefix between two boundaries, as its group 1; nil without prefixes
}

type foreignFormat struct {
	prefix         string
	rest           *regexp.Regexp // matches the whole rest
	shortest, most int            // the bytes of a whole key
}

// NewForeign returns the recogniser of formats, or nil if there are none. The error joins all
// problems; each is a [KeyFormatError].
func NewForeign(formats []KeyFormat) (*Foreign, error) {
	if len(formats) == 0 {
		return nil, nil
	}
	if len(formats) > MaxKeyFormats {
		return nil, &KeyFormatError{MaxKeyFormats, fmt.Errorf("at most %d formats are possible", MaxKeyFormats)}
	}
	f := &Foreign{}
	var problems []error
	var alternatives []string
	for i, format := range formats {
		one, rest, err := format.compile()
		if err == nil && slices.Contains(formats[:i], format) {
			err = errors.New("the same format is there twice")
		}
		if err != nil {
			problems = append(problems, &KeyFormatError{i, err})
			continue
		}
		f.formats = append(f.formats, one)
		if one.prefix != "" {
			f.prefixes = append(f.prefixes, one.prefix)
			alternatives = append(alternatives, regexp.QuoteMeta(one.prefix)+"(?:"+rest+")")
		}
	}
	if err := errors.Join(problems...); err != nil || len(alternatives) == 0 {
		return f, err
	}
	var err error
	if f.found, err = regexp.Compile(`(?:\A|[^0-9A-Za-z_]|%[0-9A-Fa-f]{2})(` + strings.Join(alternatives, "|") + `)(?:\z|[^0-9A-Za-z_])`); err != nil {
		return nil, &KeyFormatError{0, fmt.Errorf("the patterns are too large together: %w", err)}
	}
	f.found.Longest()
	return f, nil
}

// KeyFormatError is a problem with one format of several.
type KeyFormatError struct {
	Index int
	Err   error
}

func (e *KeyFormatError) Error() string { return fmt.Sprintf("format %d: %v", e.Index, e.Err) }

// Unwrap returns the problem without the index.
func (e *KeyFormatError) Unwrap() error { return e.Err }

// compile returns a format, and the text of its pattern in a form that can be part of another.
func (k KeyFormat) compile() (f foreignFormat, rest string, err error) {
	if err := k.checkPrefix(); err != nil {
		return f, "", err
	}
	if k.Pattern == "" || len(k.Pattern) > maxPattern {
		return f, "", fmt.Errorf("pattern: want a regular expression of 1 to %d bytes", maxPattern)
	}
	tree, err := syntax.Parse(k.Pattern, syntax.Perl)
	if err != nil {
		return f, "", fmt.Errorf("pattern: %w", err)
	}
	if tree, err = visible(tree); err != nil {
		return f, "", fmt.Errorf("pattern: %w", err)
	}
	least, most := lengths(tree)
	f = foreignFormat{prefix: k.Prefix, shortest: len(k.Prefix) + least, most: min(math.MaxInt32, len(k.Prefix)+most)}
	rest = tree.String()
	if f.rest, err = regexp.Compile(`\A(?:` + rest + `)\z`); err != nil {
		return f, "", fmt.Errorf("pattern: %w", err)
	}
	return f, rest, nil
}

func (k KeyFormat) checkPrefix() error {
	if k.Prefix == "" {
		return nil
	}
	if len(k.Prefix) < MinForeignPrefix || len(k.Prefix) > MaxForeignPrefix {
		return fmt.Errorf("prefix: %.80q has not %d to %d characters", k.Prefix, MinForeignPrefix, MaxForeignPrefix)
	}
	if !isAlphanumeric(k.Prefix[0]) && k.Prefix[0] != '_' {
		return fmt.Errorf("prefix: %q does not begin with a letter, a digit or _", k.Prefix)
	}
	for _, c := range []byte(k.Prefix) {
		if !isAlphanumeric(c) && strings.IndexByte("-._~", c) < 0 {
			return fmt.Errorf("prefix: %q may hold only letters, digits and - . _ ~", k.Prefix)
		}
	}
	return nil
}

// Warnings names what about a format is valid and surely not meant, if anything.
func (k KeyFormat) Warnings(own string) (all []string) {
	f, _, err := k.compile()
	if err != nil {
		return nil
	}
	if f.shortest > MaxForeign || f.most < MinForeign {
		all = append(all, fmt.Sprintf("no key can match: with its prefix, it has %d to %d characters", MinForeign, MaxForeign))
	}
	for prefix, whose := range map[string]string{own: "keys of Keyporter's own", SessionPrefix: "sessions", LinkPrefix: "login links"} {
		if k.Prefix != "" && (strings.HasPrefix(k.Prefix, prefix) || strings.HasPrefix(prefix, k.Prefix)) {
			all = append(all, fmt.Sprintf("the prefix %q is also that of %s (%q): a guess at one of those is looked up as a key of this format", k.Prefix, whose, prefix))
		}
	}
	slices.Sort(all)
	return all
}

// Parse returns s as a key if it has one of the formats. Formats without a prefix count only if
// bare is set.
func (f *Foreign) Parse(s string, bare bool) (Token, bool) {
	if f == nil || len(s) < MinForeign || len(s) > MaxForeign {
		return Token{}, false
	}
	for i := range f.formats {
		format := &f.formats[i]
		if format.prefix == "" && !bare || !strings.HasPrefix(s, format.prefix) {
			continue
		}
		if format.rest.MatchString(s[len(format.prefix):]) {
			return newToken(s), true
		}
	}
	return Token{}, false
}

// FoundIn reports whether s contains a key with a prefix. Neither a letter, a digit nor _ adjoins
// it, unless that is part of an escape such as %3F. The time is linear in the length of s.
func (f *Foreign) FoundIn(s string) bool {
	start, _ := f.next(s, 0)
	return start >= 0
}

// Masked returns s with … in place of each key that FoundIn finds, in linear time as well.
func (f *Foreign) Masked(s string) string {
	from, end := f.next(s, 0)
	if from < 0 {
		return s
	}
	var b strings.Builder
	done := 0
	for from >= 0 {
		b.WriteString(s[done:from])
		b.WriteString("…")
		done = end
		from, end = f.next(s, end)
	}
	b.WriteString(s[done:])
	return b.String()
}

// Prefixes returns the prefixes of the formats. Do not modify the slice.
func (f *Foreign) Prefixes() []string {
	if f == nil {
		return nil
	}
	return f.prefixes
}

// next returns the place of the first key in s that begins at from or later, or -1. The expression
// never goes back: what it finds with a length that no key has is passed over. Most texts hold no
// prefix and are not searched at all.
func (f *Foreign) next(s string, from int) (start, end int) {
	if f == nil || f.found == nil || from == 0 && !f.anyPrefix(s) {
		return -1, -1
	}
	for from < len(s) {
		match := f.found.FindStringSubmatchIndex(s[from:])
		if match == nil {
			return -1, -1
		}
		start, end = from+match[2], from+match[3]
		if n := end - start; n >= MinForeign && n <= MaxForeign {
			return start, end
		}
		from = end
	}
	return -1, -1
}

func (f *Foreign) anyPrefix(s string) bool {
	return slices.ContainsFunc(f.prefixes, func(prefix string) bool { return strings.Contains(s, prefix) })
}

// visibleRanges are the characters of a key: all of visible ASCII but the comma.
var visibleRanges = []rune{'!', ',' - 1, ',' + 1, '~'}

// visible restricts an expression to the characters of a key. It refuses what looks beyond the key.
func visible(re *syntax.Regexp) (*syntax.Regexp, error) {
	switch re.Op {
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return nil, fmt.Errorf("it stands for the whole rest of a key: leave out %s", re)
	case syntax.OpLiteral:
		for _, c := range re.Rune {
			if !isVisible(c) {
				return nil, fmt.Errorf("no key holds %q", c)
			}
		}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return &syntax.Regexp{Op: syntax.OpCharClass, Rune: visibleRanges}, nil
	case syntax.OpCharClass:
		if ranges := intersection(re.Rune, visibleRanges); len(ranges) > 0 {
			return &syntax.Regexp{Op: syntax.OpCharClass, Rune: ranges}, nil
		}
		return &syntax.Regexp{Op: syntax.OpNoMatch}, nil
	}
	whole := *re
	whole.Sub = nil
	for _, sub := range re.Sub {
		restricted, err := visible(sub)
		if err != nil {
			return nil, err
		}
		whole.Sub = append(whole.Sub, restricted)
	}
	return &whole, nil
}

func isVisible(c rune) bool { return len(intersection([]rune{c, c}, visibleRanges)) > 0 }

// intersection returns the common part of two lists of ranges.
func intersection(a, b []rune) (both []rune) {
	for i := 0; i+1 < len(a); i += 2 {
		for j := 0; j+1 < len(b); j += 2 {
			if low, high := max(a[i], b[j]), min(a[i+1], b[j+1]); low <= high {
				both = append(both, low, high)
			}
		}
	}
	return both
}

// endless is more than any text has, and small enough to be added and multiplied.
const endless = 1 << 20

// lengths returns the least and the most bytes of a text that re matches, at most endless. If it
// matches nothing, the least is endless and the most 0.
func lengths(re *syntax.Regexp) (least, most int) {
	switch re.Op {
	case syntax.OpNoMatch:
		return endless, 0
	case syntax.OpLiteral:
		return len(re.Rune), len(re.Rune)
	case syntax.OpCharClass:
		return 1, 1
	case syntax.OpCapture, syntax.OpConcat:
		for _, sub := range re.Sub {
			l, m := lengths(sub)
			least, most = least+l, most+m
		}
	case syntax.OpAlternate:
		least = endless
		for _, sub := range re.Sub {
			l, m := lengths(sub)
			least, most = min(least, l), max(most, m)
		}
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		l, m := lengths(re.Sub[0])
		from, to := repetitions(re)
		least, most = l*from, min(m, endless)*to
	}
	return min(least, endless), min(most, endless)
}

func repetitions(re *syntax.Regexp) (least, most int) {
	switch re.Op {
	case syntax.OpStar:
		return 0, endless
	case syntax.OpPlus:
		return 1, endless
	case syntax.OpQuest:
		return 0, 1
	}
	if re.Max < 0 {
		return re.Min, endless
	}
	return re.Min, re.Max
}
