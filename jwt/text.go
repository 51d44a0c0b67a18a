package jwt

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

var errNoText = errors.New("no text")

// textOf reads a claim that is a text or, as the IDs of some apps, a whole number. It refuses a
// text with an invalid byte, escape or character: after repair, the names of several users would be
// the same.
func textOf(claim json.RawMessage) (string, error) {
	if strings.HasPrefix(string(claim), `"`) {
		var text string
		if err := json.Unmarshal(claim, &text); err != nil {
			return "", err
		}
		if text == "" || !utf8.Valid(claim) || hasLoneSurrogate(string(claim)) || strings.ContainsFunc(text, unicode.IsControl) {
			return "", errNoText
		}
		return text, nil
	}
	var number json.Number
	if err := json.Unmarshal(claim, &number); err != nil {
		return "", err
	}
	if _, err := number.Int64(); err != nil {
		return "", err
	}
	return number.String(), nil
}

// hasLoneSurrogate reports whether a well-formed JSON string has an escape \uXXXX for half of a
// character. Package encoding/json replaces it with U+FFFD.
func hasLoneSurrogate(literal string) bool {
	for {
		escape := strings.IndexByte(literal, '\\')
		if escape < 0 {
			return false
		}
		literal = literal[escape:]
		unit, isUnit := unicodeEscape(literal)
		switch {
		case !isUnit: // another escape, of two bytes
			literal = literal[2:]
		case !utf16.IsSurrogate(unit):
			literal = literal[6:]
		default:
			next, _ := unicodeEscape(literal[6:])
			if utf16.DecodeRune(unit, next) == unicode.ReplacementChar {
				return true
			}
			literal = literal[12:]
		}
	}
}

// unicodeEscape returns the value of the escape \uXXXX at the start of s, if there is one.
func unicodeEscape(s string) (unit rune, ok bool) {
	if len(s) < 6 || s[:2] != `\u` {
		return 0, false
	}
	value, err := strconv.ParseUint(s[2:6], 16, 16)
	return rune(value), err == nil
}
