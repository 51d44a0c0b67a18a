// Package bootstrap prints Envoy's configuration for a route table: the whole, or parts of it for
// an Envoy that has its own. Envoy then takes the route of the rule that decides, and asks
// Keyporter about every request. It is pure: it reads no file and starts nothing.
package bootstrap

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
)

// The defaults of a [Config]: `keyporter serve` listens there by default.
const (
	DefaultAuthz    = "127.0.0.1:9001"
	DefaultUpstream = "127.0.0.1:8000"
	DefaultPage     = "127.0.0.1:8081"
	DefaultListen   = "0.0.0.0:8080"
	DefaultAdmin    = "127.0.0.1:9901"
)

// Config describes an Envoy configuration. An address is HOST:PORT or unix:///PATH. Only
// Routes is required.
type Config struct {
	Routes   *authz.RouteTable
	Authz    string       // where Keyporter answers Checks; "": DefaultAuthz
	Upstream string       // the API: an address, or a URL of http, h2c or https; "": DefaultUpstream
	Page     string       // Keyporter's page; "": DefaultPage
	Listen   string       // where Envoy takes requests, with an IP address as host; "": DefaultListen
	Admin    string       // Envoy's admin interface, likewise; "": DefaultAdmin
	TLS      TLS          // how Envoy reaches Keyporter; zero: without TLS
	Token    bearer.Token // token that callers of Keyporter must send, if any; the result has it

	UpstreamCAFile   string // PEM file as Envoy sees it: CAs of an https upstream; "": the system's
	UpstreamInsecure bool   // an https upstream is not verified

	// ConfigFile is the file that Routes and Upstreams come from, for the command quoted in the
	// result; "": none.
	ConfigFile string

	// Upstreams are the upstreams that rules name. One called default replaces Upstream, unless
	// Upstream is set.
	Upstreams map[string]Upstream
}

//go:embed bootstrap.yaml.tmpl
var wholeText string

//go:embed parts.yaml.tmpl
var partsText string

// templates also has the blocks of partsText, which [Parts] prints alone.
var templates = template.Must(template.Must(template.New("bootstrap").
	Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(wholeText)).New("parts").Parse(partsText)).Lookup("bootstrap")

// YAML returns a complete Envoy configuration as commented YAML. The error joins all problems
// of c.
func YAML(c Config) ([]byte, error) {
	b, err := newInput(c)
	if err != nil {
		return nil, fmt.Errorf("making an Envoy bootstrap: %w", err)
	}
	var out bytes.Buffer
	if err := templates.Execute(&out, b); err != nil {
		return nil, fmt.Errorf("making an Envoy bootstrap: %w", err)
	}
	return out.Bytes(), nil
}

// input is the input of the templates. All its texts are checked: none can end a YAML string or
// a comment.
type input struct {
	Command, EnvoyVersions     string
	Authz, Page, Listen, Admin address
	Upstreams                  []upstream
	AuthzTLS, PageTLS          *tlsClient // nil: no TLS
	NamesNode                  bool
	Token                      string
	MaxHeaders, MaxHeadersKB   int
	MaxPageBody                int
	LoggedPath                 string // a format string of Envoy's, without '
	CORS, Preflights           bool   // other origins are answered; preflights by the upstream
	MaxDuration                string // of routes without one of their own
	LocalReplies               []localReply
	Hosts                      []virtualHost
}

// virtualHost is the routes of one host, or of all hosts without their own.
type virtualHost struct {
	Name, Domain string
	Routes       []route
}

func newInput(c Config) (*input, error) {
	c.Authz = cmp.Or(c.Authz, DefaultAuthz)
	c = c.withDefaultUpstream()
	c.Page = cmp.Or(c.Page, DefaultPage)
	c.Listen = cmp.Or(c.Listen, DefaultListen)
	c.Admin = cmp.Or(c.Admin, DefaultAdmin)
	b := &input{Command: command(&c), EnvoyVersions: EnvoyVersions, LocalReplies: localReplies(), MaxHeaders: maxHeaders, MaxHeadersKB: maxHeadersKB, MaxPageBody: maxPageBody}
	var problems []error
	var err error
	for _, a := range []struct {
		name  string
		text  string
		parse func(string) (address, error)
		to    *address
	}{
		{"authz", c.Authz, parseTarget, &b.Authz},
		{"page", c.Page, parseTarget, &b.Page},
		{"listen", c.Listen, parseListen, &b.Listen},
		{"admin", c.Admin, parseListen, &b.Admin},
	} {
		if *a.to, err = a.parse(a.text); err != nil {
			problems = append(problems, fmt.Errorf("%s address: %w", a.name, err))
		}
	}
	if b.Upstreams, err = c.upstreams(); err != nil {
		problems = append(problems, err)
	}
	if b.AuthzTLS, b.PageTLS, err = c.TLS.clients(b.Authz, b.Page); err != nil {
		problems = append(problems, err)
	}
	if c.Routes == nil {
		problems = append(problems, errors.New("no route table"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	b.Hosts, b.MaxDuration = hosts(c.Routes), maxDuration(c.Routes)
	b.CORS, b.Preflights = c.Routes.SpeaksCORS(), c.Routes.PassesPreflights()
	b.LoggedPath = loggedPath(c.Routes.Foreign().Prefixes())
	b.Token, b.NamesNode = c.Token.Reveal(), c.TLS.SecretsDir != ""
	return b, nil
}

// plainFile matches a file name that may stand in a comment and needs no quoting in a shell.
var plainFile = regexp.MustCompile(`^[A-Za-z0-9._/@:+=-]+$`)

// command returns the command that prints this bootstrap.
func command(c *Config) string {
	words := []string{"keyporter envoy"}
	switch {
	case plainFile.MatchString(c.ConfigFile):
		words = append(words, "--config", c.ConfigFile)
	case c.ConfigFile != "":
		words = append(words, "--config FILE")
	}
	words = append(words, "--authz", c.Authz)
	if upstream := (Upstream{c.Upstream, c.UpstreamCAFile, c.UpstreamInsecure}); c.ConfigFile == "" || upstream != c.Upstreams[authz.DefaultUpstream] {
		words = append(words, upstream.flags()...)
	}
	words = append(words, "--page", c.Page, "--listen", c.Listen)
	if c.Admin != DefaultAdmin {
		words = append(words, "--admin", c.Admin)
	}
	words = append(words, c.TLS.flags()...)
	if !c.Token.IsZero() {
		words = append(words, "--grpc-token-file FILE")
	}
	return strings.Join(words, " ")
}

// route is one of Envoy's routes.
type route struct {
	Match  string // how Path is compared: path or prefix
	Path   string
	Expect bool // only requests with this header
	Action string
	Why    string
	rule   *authz.Rule
}

// hosts are the virtual hosts of a table. Envoy selects one as [authz.RouteTable.For] does.
func hosts(table *authz.RouteTable) (all []virtualHost) {
	for _, h := range table.Hosts() {
		if h.Host == "" {
			all = append(all, virtualHost{"all", "*", routes(h)})
			continue
		}
		all = append(all, virtualHost{fmt.Sprintf("host_%d", len(all)+1), h.Host, routes(h)})
	}
	return all
}

// routes puts the rules of a host into Envoy's order, in which the first match wins, so that Envoy
// finds the same rule as [authz.HostRoutes.Match]. A path without a rule is answered with 404,
// should Keyporter ever let it pass.
func routes(host *authz.HostRoutes) []route {
	var exact, below []route
	for _, rule := range host.Rules() {
		base, isBelow := rule.Base()
		r := route{Match: "path", Path: base, Action: action(rule), Why: rule.Kind.String(), rule: rule}
		if !isBelow {
			exact = append(exact, r)
			if slashed := host.Match(base + "/"); slashed == rule && !strings.HasSuffix(base, "/") {
				r.Path, r.Why = base+"/", r.Why+", as without the slash"
				exact = append(exact, r)
			}
			continue
		}
		// With its slash, the prefix matches whole segments and not the path itself.
		r.Match, r.Path = "prefix", base+"/"
		below = append(below, r)
	}
	slices.SortStableFunc(below, func(a, b route) int { return len(b.Path) - len(a.Path) })
	exact, below = expecting(exact), expecting(below)
	rest := route{Match: "prefix", Path: "/", Action: notFound, Why: "all else"}
	return append(append(exact, below...), rest)
}

// expecting puts another route before each route to the page, for clients that wait for
// 100-continue before they send a body (Expect: 100-continue). They would never get it for a
// request that is awaited whole. A user's request goes to the page at once: the page sends
// 100-continue, and admits few requests of one user at a time. The public forms refuse such
// clients.
func expecting(routes []route) (all []route) {
	for _, r := range routes {
		if r.rule.To == authz.ToPage && r.rule.Kind != authz.KindNone {
			first := r
			first.Expect, first.Action = true, toPage(r.rule)
			if r.rule.Kind == authz.KindPublic {
				first.Action = "direct_response: { status: 417 }"
			}
			all = append(all, first)
		}
		all = append(all, r)
	}
	return all
}

const notFound = "direct_response: { status: 404 }"

func action(rule *authz.Rule) string {
	switch {
	case rule.Kind == authz.KindNone:
		return notFound
	case rule.To == authz.ToPage:
		return toPage(rule) + ", " + wholeRequest
	}
	pool := ""
	if rule.Kind != authz.KindAPIKey {
		pool = "priority: HIGH, " // a name for the second of two pools: see the clusters
	}
	return "route: { cluster: " + clusterOf(rule.To) + ", " + pool + times(rule) + " }"
}

func toPage(rule *authz.Rule) string { return "route: { cluster: page, " + times(rule) + " }" }

// maxPageBody is the maximum body of a request to the page, in bytes. Its forms have less than 100.
const maxPageBody = 4 << 10

// wholeRequest makes a route wait for the whole request.
var wholeRequest = fmt.Sprintf(`typed_per_filter_config: { envoy.filters.http.buffer: { "@type": `+
	`type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute, buffer: { max_request_bytes: %d } } }`, maxPageBody)

// times limits the time of a request and its answer. Envoy ignores the timeout of a route that also
// has a duration; such a rule uses the connection manager's duration, see [maxDuration].
func times(rule *authz.Rule) string {
	timeout, idle, life := rule.Times()
	if timeout != authz.Endless {
		return fmt.Sprintf("timeout: %s, idle_timeout: %s", duration(timeout), duration(idle))
	}
	// A gRPC client's shorter deadline holds too; without the last field Envoy would tell the
	// upstream only the longer one.
	return fmt.Sprintf("timeout: 0s, idle_timeout: %s, max_stream_duration: { max_stream_duration: %[2]s, grpc_timeout_header_max: %[2]s }",
		duration(idle), duration(life))
}

// maxDuration is the duration of all rules with a timeout: a table has at most one.
func maxDuration(table *authz.RouteTable) string {
	for _, rule := range table.Rules() {
		if timeout, _, life := rule.Times(); timeout != authz.Endless {
			return duration(life)
		}
	}
	return duration(authz.DefaultMaxDuration)
}

// duration returns a time as Envoy reads it; 0 means none to Envoy.
func duration(s authz.Span) string {
	if s == authz.Endless {
		return "0s"
	}
	return strconv.FormatFloat(time.Duration(s).Seconds(), 'f', -1, 64) + "s"
}

// escaped matches the escape of a character that may be in a key: a letter, a digit, '-', '.', '_'
// or '~'. Envoy resolves these before it logs a path, unless it has refused the path.
const escaped = `[%](?:2[DEde]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])`

// loggedPath is a format string for a path without its query. It ends where a key may begin that a
// client has put into the path: if it holds api_key=, anything encoded twice, which is refused, the
// escape of a character of keys, or 40 hexadecimal digits. Envoy bounds the size of an expression,
// so there are several; and a % is in brackets, because it could end the format string.
//
// It also ends at a word with the prefix of a key from another system, whatever follows. Only a path
// that contains a prefix is searched for it.
func loggedPath(prefixes []string) string {
	const path = `request.url_path`
	contains, cut := "", path
	for _, prefix := range prefixes {
		begins := `(?:\b|[%][0-9A-Fa-f]{2})` + strings.ReplaceAll(prefix, ".", "[.]")
		contains += path + `.contains("` + prefix + `") && ` + path + `.matches(r"` + begins + `") || `
		cut = `re.extract(` + cut + `, r"^(.*?)(?:` + begins + `|$)", r"\1")`
	}
	return `%CEL(` + contains + path + `.matches("(?i:api_key(=|[%]3d)|[%]25[0-9a-f]{2})") || ` +
		path + `.matches("[0-9a-f]{40}") || ` + path + `.matches("[0-9A-F]{40}") || ` + path + `.matches("` + escaped + `") ? ` +
		`re.extract(re.extract(` + cut + `, "^(.*?)(?:(?i:api_key|[%]25|[0-9a-f]{20})|$)", r"\1"), "^(.*?)(?:` + escaped + `|$)", r"\1(masked)") : ` +
		path + `)%`
}

// localReply gives an answer of Envoy's own the form of ours.
type localReply struct {
	Why        string
	When       string // an expression in CEL
	Status     int    // 0: Envoy's
	RetryAfter bool
	Body       string // a format string of Envoy's
}

// The limits of a request's headers, including those that Keyporter adds. Keyporter accepts a Check
// of up to 256 KiB.
const (
	maxHeaders   = 100
	maxHeadersKB = 60
)

// localReplies are in Envoy's order: the first match wins.
func localReplies() []localReply {
	replies := []localReply{
		{
			Why: "The client's headers are too large, or leave no room for Keyporter's.",
			When: fmt.Sprintf("response.code == 431 || response.code_details == 'ext_authz_invalid' && (size(request.headers) > %d || request.total_size > %d)",
				maxHeaders, maxHeadersKB<<10),
			Status: 431, Body: localBody(authz.TooLarge),
		},
		{
			Why:  "No route matches, as for CONNECT, or the request must not pass.",
			When: "response.code == 404", Body: localBody(authz.NoRoute),
		},
	}
	replies = append(replies, refusals...)
	return append(replies, localReply{
		Why:  "An answer of Keyporter that cannot be carried out for another reason.",
		When: "response.code_details == 'ext_authz_invalid'", Status: 503, RetryAfter: true, Body: localBody(authz.Undecided),
	}, localReply{
		Why:  "No answer of Keyporter (ext_authz_error), or none of the upstream.",
		When: "response.code >= 500", RetryAfter: true, Body: localBody(authz.Undecided),
	})
}

// refusals are Envoy's refusals of client errors. Their texts name the refused part as far as Envoy
// reports it, and quote nothing of it.
var refusals = []localReply{
	{
		Why:  "A path that Envoy does not normalize.",
		When: "response.code_details == 'path_normalization_failed'",
		Body: refusal("The path was refused: it encodes a slash, a backslash or a zero byte, or a fragment follows it."),
	},
	{
		Why:  "A target that is no path.",
		When: "response.code_details == 'http1.invalid_url'",
		Body: refusal("The path was refused: it is neither a path nor a URL with a host."),
	},
	{
		Why:    "A URL with https where the connection has no TLS. A 403 is about a plan.",
		When:   "response.code_details == 'http1.https_url_on_plaintext_connection'",
		Status: 400,
		Body:   refusal("The path was refused: it is a URL of another scheme than the connection's."),
	},
	{
		Why:  "HTTP/1.1 without Host, or with a bad one.",
		When: "response.code_details in ['missing_host_header', 'http.invalid_authority']",
		Body: refusal("The header Host was refused: it is missing, or is no name or address."),
	},
	{
		Why: "Headers tell the end of the body in two ways, or in none that Envoy knows.",
		When: "response.code_details in ['http1.content_length_and_chunked_not_allowed', 'http1.invalid_transfer_encoding'] || " +
			"response.code_details == 'direct_response' && response.code == 400",
		Status: 400,
		Body:   refusal("The request headers were refused: they do not say in one way where the body ends."),
	},
	{
		Why:  "What is no HTTP/1.1. Envoy does not tell where.",
		When: "response.code_details == 'http1.codec_error'",
		Body: refusal("The path, the query or a header was refused: it holds a character that must be encoded, or is not HTTP."),
	},
	{
		Why:  "More than a form of the page has.",
		When: "response.code == 413",
		Body: refusal("The request body was refused: it is longer than any that is meant for the users' page."),
	},
	{
		Why:  "A client that waits before it sends a public form of the page.",
		When: "response.code == 417 && response.code_details == 'direct_response'",
		Body: refusal("The header Expect was refused: send the form with the request."),
	},
	{
		Why:  "A time-out while the request was still open.",
		When: "response.code == 408",
		Body: refusal("The request was still open when its time was over."),
	},
	{
		Why:  "Anything else that the client has done.",
		When: "response.code >= 400 && response.code < 500", Body: localBody(authz.BadPath),
	},
}

// refusal returns the body of a denial with a text.
func refusal(text string) string { return authz.Outcome{Code: "bad_request", Text: text}.Body() }

// localBody returns the body of a denial as a format string, in which a literal '%' is doubled.
func localBody(reason authz.Reason) string {
	return strings.ReplaceAll(reason.Outcome().Body(), "%", "%%")
}
