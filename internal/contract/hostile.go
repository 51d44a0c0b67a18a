package contract

import (
	"path"
	"slices"
	"strings"
)

var (
	// Hostile are forms that some programs resolve and others do not.
	Hostile = []string{
		".", "..", "%2e", "%2e%2e", ".%2e", "%2E.", "..;", ".;", "..;x=y", ";", ";x", "x;y=z", "%3b", "..%3b", "%2f", "%2F", "..%2f", "%5c",
		"%5C", "\\", "..\\", "..%5c", "%00", "x%00y", "%252f", "%252e%252e", "%255c", "%25", "%25%32%66", "%", "%z", "%zz", "%2", "%61", "%41",
		"%7e", "%2d", "%5f", "%30", "%0a", "%0d%0a", "%09", "%7f", "%c0%af", "%c0%ae%c0%ae", "%e0%80%af", "%ff", "%c3", "\xc3\xa9", "\xff", "#", "x#y",
		"%23", "%3f", "", "x y", "*", "%u002f", "..%ef%bc%8f", "%c1%9c", "%f0%80%80%af",
	}
	// Loose are characters that a path's normal form drops at the end of a segment, and Unseen
	// those that it drops everywhere.
	Loose = []string{
		".", "..", "...", "~", ",", ":", "%20", "%20.", ".%20", "%C2%A0", "%C2%85", "%E3%80%80", "%E2%80%89", "%E2%80%A8", "%E2%80%A4", "%EF%BC%8E",
	}
	Unseen = []string{"%E2%80%8B", "%E2%80%8D", "%EF%BB%BF", "%C2%AD", "%EF%B8%8F", "%CD%8F", "%E1%85%9F"}
	// Odd are further characters that some programs ignore.
	Odd = []string{"%2E", "+", "!", "*", "$", "@", "'", ";", ";v=1", "%3B", "%00", "%09", "%0A", "%0D", "%7F", "%E3%80%82", "%CC%81"}
	// Suffixes only select the format of an answer in some programs.
	Suffixes = []string{
		".json", ".JSON", ".html", ".api", ".xml", ".json.gz", ".json%20", ".json.", "..json", "%2Ejson", "%EF%BC%8Ejson", ".%6Ason", ".j%C5%BFon", ":json", "~1.json",
	}
)

// HostilePaths are targets with all of these forms at every segment of a path of the API, such as
// /api/v1/brands, and with other spellings of it. Targets with a blank are no request line, and
// left out.
func HostilePaths(api string) (targets []string) {
	first, rest, _ := strings.Cut(api[1:], "/")
	first = "/" + first
	parent, last := path.Split(api)
	spellings := []string{strings.ToUpper(path.Base(parent)), strings.ToUpper(last[:1]) + last[1:], "%EF%BC%A2", "br%EF%BD%81nds", "%C4%B1", "%C5%BF", "%E2%84%AA"}
	for _, form := range slices.Concat(Hostile, Loose, Unseen, Odd, Suffixes, spellings) {
		for _, pattern := range []string{
			"/%s", "/%s" + api, first + "/%s/" + rest, first + "/%s", parent + "%s", parent + "%s/" + last, api + "%s", api + "%sx",
			api + "/%s", api + "/%s/x", api + "/%s/admin", api + "/x%sx/y", api + "/%s/%s/%s/admin",
			api + "/../%s/admin", "/%s" + api[1:], first + "%s" + rest,
		} {
			if target := strings.ReplaceAll(pattern, "%s", form); !strings.Contains(target, " ") {
				targets = append(targets, target)
			}
		}
	}
	return targets
}

// Outside explains why a target that reached the upstream is not clearly a path of the API.
func Outside(api, target string) string {
	path, _, _ := strings.Cut(target, "?")
	if path != api && !strings.HasPrefix(path, api+"/") {
		return "not a path that a key opens here"
	}
	for _, segment := range strings.Split(path[1:], "/") {
		if segment == "." || segment == ".." {
			return "a dot segment is left"
		}
	}
	lower := strings.ToLower(path)
	for _, form := range []string{"//", "\\", ";", "#", "%2f", "%5c", "%2e", "%00", "%3b", "%23", "%25", "%3f", "%c0", "%c1"} {
		if strings.Contains(lower, form) {
			return "holds " + form
		}
	}
	return ""
}
