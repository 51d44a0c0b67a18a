package bootstrap

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// EnvoyVersions are the oldest recommended versions of Envoy: the first of each line without its
// known faults.
const EnvoyVersions = "1.40.1, 1.39.5, 1.38.8 or 1.37.10"

// part is a part of the bootstrap that a user's own Envoy needs too, named after its block in the
// template.
type part struct {
	Name  string
	Place string // where it goes, in sentences, one a line
	Token bool   // contains the token, if there is one
}

// parts are in the order in which they are documented.
var parts = []part{
	{"filter", `http_filters of the connection manager, last before envoy.filters.http.router.
It is two filters; the second asks the cluster of the part "cluster". A route that nobody is to be asked about needs typed_per_filter_config with
ExtAuthzPerRoute { disabled: true }; one with a rule by name has check_settings there, { context_extensions: { keyporter-rule: NAME } }.`, true},
	{"cluster", `clusters of static_resources. Rename it here, in the filter and in the access log alike.`, true},
	{"access-log", `access_log of the connection manager, beside your own, which should log no query: a key may stand in it.
Without this part no credit comes back when the upstream fails, and users do not see their requests.`, true},
	{"local-reply", `local_reply_config of the connection manager, whose mappers come first.
What Envoy answers by itself then looks like Keyporter's answers, that of your own routes with direct_response too, if its status is
an error. To keep those as they are, write in the first mapper: response.code_details in ['ext_authz_denied', 'direct_response'].`, false},
	{"edge", `early_header_mutation_extensions of the connection manager, first in the list.
Beside it belong into the connection manager, so that all on the way read a path, a host and a header alike:
normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: REJECT_REQUEST, strip_trailing_host_dot: true,
in route_config ignore_port_in_host_matching: true, and in common_http_protocol_options
headers_with_underscores_action: DROP_HEADER.`, false},
}

// PartNames returns the names of all parts that [Parts] prints.
func PartNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.Name)
	}
	return names
}

// Parts returns parts of the bootstrap of c, for the configuration of another Envoy, as commented
// YAML: one document for each name, in the given order. Its first line says where it goes. They are
// the same text as in [YAML].
func Parts(c Config, names ...string) ([]byte, error) {
	b, err := newInput(c)
	if err != nil {
		return nil, fmt.Errorf("making parts of an Envoy configuration: %w", err)
	}
	var documents []string
	var problems []error
	for _, name := range names {
		i := slices.IndexFunc(parts, func(p part) bool { return p.Name == name })
		if i < 0 {
			problems = append(problems, fmt.Errorf("there is no part %q: the parts are %s", name, strings.Join(PartNames(), ", ")))
			continue
		}
		text, err := parts[i].print(b)
		if err != nil {
			return nil, fmt.Errorf("making the part %s: %w", name, err)
		}
		documents = append(documents, text)
	}
	if len(names) == 0 {
		problems = append(problems, fmt.Errorf("no part is named: the parts are %s", strings.Join(PartNames(), ", ")))
	}
	return []byte(strings.Join(documents, "---\n")), errors.Join(problems...)
}

// print returns the part of a bootstrap without indentation, below its description.
func (p part) print(b *input) (string, error) {
	var block bytes.Buffer
	if err := templates.ExecuteTemplate(&block, p.Name, b); err != nil {
		return "", err
	}
	var head bytes.Buffer
	fmt.Fprintln(&head, "# This goes into", strings.ReplaceAll(p.Place, "\n", "\n# "))
	if p.Token && b.Token != "" {
		fmt.Fprintln(&head, "# THIS IS A SECRET: it holds the gRPC token, in clear.")
	}
	if err := templates.ExecuteTemplate(&head, "marks", b); err != nil {
		return "", err
	}
	return head.String() + "\n\n" + atLeftEdge(block.String()) + "\n", nil
}

var indentation = regexp.MustCompile(`^\n *`)

// atLeftEdge removes the indentation of the first line, which follows a line break, from all lines.
func atLeftEdge(block string) string {
	return strings.ReplaceAll(block, indentation.FindString(block), "\n")[1:]
}
