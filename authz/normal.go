package authz

import (
	"path"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// normalForm returns the form to which the most lenient upstream may reduce a path: it ignores
// case, the width of letters, invisible characters, dots and blanks at the ends of segments and, if
// cut is set, an extension of the last segment. All spellings of one resource have the same normal
// form, regardless of the upstream's framework.
//
// The path may hold escapes; the normal form has none.
func normalForm(p string, cut bool) string {
	p, _ = lowered(p) // fits, because paths of rules are ASCII
	return trimmed(p, cut)
}

// lowered returns a path without escapes, with one form for each letter. It returns false if the
// result is longer than any legitimate path needs: see roomFor.
func lowered(p string) (_ string, fits bool) {
	if strings.IndexByte(p, '%') >= 0 {
		return folded(percentDecoded(p))
	}
	return strings.ToLower(p), true // a canonical path without escapes is ASCII
}

// roomFor returns the maximum length of the NFKC form of a text of n bytes, in bytes. One character
// can expand to eighteen: a path of such characters would cost a hundred times as much as others,
// and such a request needs no key.
func roomFor(n int) int { return 2*n + 1<<10 }

// trimmed returns a lowered path without the characters that some programs cut off its segments.
func trimmed(p string, cut bool) string {
	slash := strings.HasSuffix(p, "/")
	segments := strings.Split(p, "/")
	kept := segments[:0]
	for _, segment := range segments {
		segment = strings.TrimRightFunc(strings.TrimLeftFunc(segment, isDotOrBlank), isLoose)
		if segment != "" {
			kept = append(kept, segment)
		}
	}
	if last := len(kept) - 1; cut && last >= 0 {
		kept[last] = withoutExtension(kept[last])
	}
	p = "/" + strings.Join(kept, "/")
	if slash && p != "/" {
		p += "/"
	}
	return p
}

// folded returns a text in lower case, in Unicode's compatible form (NFKC), without invisible
// characters. Other forms of dots, blanks and slashes become ASCII, so it resolves dot segments
// again. It returns false if the result does not fit into roomFor.
func folded(s string) (_ string, fits bool) {
	if !norm.NFKC.IsNormalString(s) {
		room := make([]byte, roomFor(len(s)))
		n, _, err := norm.NFKC.Transform(room, []byte(s), true)
		if err != nil {
			return "", false
		}
		s = string(room[:n])
	}
	if changed := strings.Map(fold, s); changed != s {
		s = norm.NFKC.String(changed)
	}
	s = strings.ReplaceAll(s, `\`, "/") // a full-width one, to programs that treat \ as /
	clean := path.Clean("/" + s)
	if strings.HasSuffix(s, "/") && clean != "/" {
		clean += "/"
	}
	return clean, true
}

// fold returns the lower case of r's upper case, because programs compare in either: a dotless i, a
// long s and the Kelvin sign become ordinary letters. It drops invisible characters.
func fold(r rune) rune {
	if ' ' <= r && r < 0x7f {
		return unicode.ToLower(r)
	}
	if unicode.In(r, unicode.Cf, unicode.Cc, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) {
		return -1
	}
	return unicode.ToLower(unicode.ToUpper(r))
}

func isDotOrBlank(r rune) bool { return r == '.' || unicode.IsSpace(r) || unicode.Is(unicode.Z, r) }

// isLoose reports whether some programs cut r off the end of a segment: dots, blanks, and marks
// that separate a name from a version, a parameter or a suffix.
func isLoose(r rune) bool { return isDotOrBlank(r) || strings.ContainsRune("~,:", r) }

// withoutExtension returns a segment without its extension: all from the last dot on.
func withoutExtension(segment string) string {
	if dot := strings.LastIndexByte(segment, '.'); dot > 0 {
		return strings.TrimRightFunc(segment[:dot], isLoose)
	}
	return segment
}
