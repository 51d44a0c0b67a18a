package inspect

import (
	"fmt"
	"regexp"
	"strconv"
)

// release is a version of Envoy. Its first number is 1.
type release struct{ minor, patch int }

var releasePattern = regexp.MustCompile(`\b1\.(\d+)\.(\d+)(-\w+)?`)

// parseRelease finds the release in a version as Envoy writes it: in a bootstrap 1.40.1, at
// /server_info COMMIT/1.40.1/Clean/RELEASE/BoringSSL. A build on the way to a release may lack its
// fixes, and counts as the release before.
func parseRelease(version string) (r release, name string, ok bool) {
	found := releasePattern.FindStringSubmatch(version)
	if found == nil {
		return release{}, "", false
	}
	r.minor, _ = strconv.Atoi(found[1])
	r.patch, _ = strconv.Atoi(found[2])
	if found[3] != "" {
		r.patch--
	}
	return r, found[0], true
}

func (r release) isOlderThan(other release) bool {
	return r.minor < other.minor || r.minor == other.minor && r.patch < other.patch
}

func (r release) String() string { return fmt.Sprintf("1.%d.%d", r.minor, r.patch) }

// oldestMinor is the oldest minor release that the Envoy project has recently fixed. Releases newer
// than those in the tables have no fault known here.
const oldestMinor = 36

// fixed has the first patch of each minor release without a known fault of ext_authz:
// CVE-2026-47205, -50572 and -73547, and of path normalization: CVE-2026-73511 and -73551.
var fixed = map[int]int{36: 10, 37: 6, 38: 4, 39: 1, 40: 0}

// recommended has the first patch of each minor release that is recommended for Keyporter.
var recommended = map[int]int{36: 13, 37: 10, 38: 8, 39: 5, 40: 1}

// first returns the oldest release in a table that r should be.
func (r release) first(table map[int]int) release {
	minor := max(r.minor, oldestMinor)
	return release{minor, table[minor]}
}

func (r release) isFaulty() bool { return r.isOlderThan(r.first(fixed)) }

func findFaulty(c *config, report report) {
	if r, name, ok := parseRelease(c.version); ok && r.isFaulty() {
		report(c.versionPath, fmt.Sprintf("Envoy %s is older than %s", name, r.first(fixed)))
	}
}

func findOld(c *config, report report) {
	if r, name, ok := parseRelease(c.version); ok && !r.isFaulty() && r.isOlderThan(r.first(recommended)) {
		report(c.versionPath, fmt.Sprintf("Envoy %s is older than %s", name, r.first(recommended)))
	}
}
