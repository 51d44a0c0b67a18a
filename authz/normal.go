package authz

import (
	"path"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// normalForm returns what the most forgiving of upstreams may take a path for: without regard to
// case, to the width of letters, to what cannot be seen, to dots and blanks at the ends of segments
// and, where cut says so, to an extension of the last segment. Two spellings of one resource have
// one normal form, whichever framework answers them.
//
// The path may hold escapes; the normal form has none.
func normalForm(p string, cut bool) string {
	p, _ = lowered(p) // fits, as paths of rules are ASCII
	return trimmed(p, cut)
}

// lowered returns a path without escapes, in one form of each letter, or false where that takes
// more room than any path of a good client needs: see roomFor.
func lowered(p string) (_ string, fits bool) {
	if strings.IndexByte(p, '%') >= 0 {
		return folded(percentDecoded(p))
	}
	return strings.ToLower(p), true // a canonical path is ASCII but for its escapes
}

// roomFor is how long the compatible form of a text of n bytes may be, in bytes. One character can
// stand for eighteen: a path of nothing else would cost a hundred times what others do, and nobody
// has to show a key for that.
func roomFor(n int) int { return 2*n + 1<<10 }

// trimmed returns a lowered path without what some programs cut off its segments.
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

// folded returns a text in lower case, in Unicode's compatible form (NFKC) and without what cannot
// be seen. Dots, blanks and slashes in other forms have become ASCII, so dot segments are resolved
// again. It reports false where there is not enough room.
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
	s = strings.ReplaceAll(s, `\`, "/") // of full width, to a program that takes it for the other kind
	clean := path.Clean("/" + s)
	if strings.HasSuffix(s, "/") && clean != "/" {
		clean += "/"
	}
	return clean, true
}

// fold returns the lower case of r's upper case, since programs compare in either: a dotless i, a
// long s and the sign for Kelvin are then letters like any other. What cannot be seen is dropped.
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

// isLoose reports whether some programs cut r off the end of a segment: dots and blanks, and the
// marks that separate a name from a version, a parameter or a suffix.
func isLoose(r rune) bool { return isDotOrBlank(r) || strings.ContainsRune("~,:", r) }

// withoutExtension returns a segment without what stands behind its last dot.
func withoutExtension(segment string) string {
	if dot := strings.LastIndexByte(segment, '.'); dot > 0 {
		return strings.TrimRightFunc(segment[:dot], isLoose)
	}
	return segment
}
