package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/jwt"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// config is the effective configuration.
type config struct {
	Database            string
	DatabaseConnections int
	Output              string

	ListenGRPC, ListenHTTP, ListenOps string
	GRPCTokenFile                     string
	RefundUnreported                  bool
	ListenSettle, SettleTokenFile     string
	CheckTimeout, DrainDelay          time.Duration
	Codec                             codec.Kind
	CacheSize                         int
	Lease                             time.Duration
	Advertise                         string
	Migrate                           bool

	Redis                           string
	RateLimitStrict, RateLimitShare bool

	KeyPrefix       string
	AcceptUntagged  bool
	InsecureCookies bool
	LoginURL        string
	SealKeyFile     string
	NewKeysPerHour  int
	JWT             jwt.Config
	JWTCookie       string

	RequestLogRetention time.Duration
	PageURL             string
	PagePath            string // "" only after an invalid value

	PageName, PageLogo, PageColor string
	PageLinks                     []portal.Link

	LogLevel  slog.Level
	LogFormat string

	Rules []authz.Rule // include the page's own rules
	CORS  authz.CORS
	// Upstreams are the named upstreams. If there are none, the command line of the bootstrap names
	// the only one.
	Upstreams map[string]bootstrap.Upstream
	Routes    *authz.RouteTable // made of Rules and CORS

	places []string // FILE:LINE:COLUMN of each rule from a file; these rules come first in Rules

	UpstreamPreflights int

	warnings []string               // settings that are valid but may be unintended
	file     string                 // the configuration file; "": none
	again    func() (config, error) // reads everything once more; nil: never reread
	hangups  <-chan os.Signal       // each signal requests a reread
	seen     []fs.FileInfo          // state of the files right after they were read

	values  map[string]string // setting → its value as written
	sources map[string]string // setting → where its value comes from
	levels  map[string]level  // setting → the level of its latest value
	level   level             // the level being read
}

// setting is one setting: a flag, an environment variable and a key in the file.
type setting struct {
	name   string // name of the flag; the file's key has _ in place of -
	value  string // default
	help   string // names the kind of value in `backquotes`
	enum   []string
	toggle bool   // true or false; the flag alone means true
	secret bool   // can also come from a file of its own: see withFiles
	of     string // the setting for the value in the named file
	set    func(*config, string) error
	// show masks secrets in a value; nil if every value can be shown.
	show func(string) string
}

// settings are all settings, in the order in which they are shown.
var settings = withFiles([]setting{
	{name: "database", value: "sqlite://keyporter.db", help: "`URL` of the database: sqlite://PATH or postgres://…",
		set: func(c *config, s string) error { c.Database = s; return checkDatabase(s) }, show: store.MaskURL, secret: true},
	{name: "database-connections", value: strconv.Itoa(store.DefaultConnections), help: "maximum `number` of connections that this replica opens to PostgreSQL",
		set: func(c *config, s string) error {
			return setInt(&c.DatabaseConnections, s, store.MinConnections, store.MaxConnections)
		}},
	{name: "output", value: "text", help: "output `format`: text or json", enum: []string{"text", "json"},
		set: func(c *config, s string) error { c.Output = s; return nil }},
	{name: "listen-grpc", value: "127.0.0.1:9001", help: "`address` for Envoy's checks: HOST:PORT or unix:///PATH",
		set: func(c *config, s string) error { c.ListenGRPC = s; return checkListen(s, "unix:///PATH") }},
	{name: "listen-http", value: "127.0.0.1:8081", help: "`address` of the users' page: HOST:PORT, or off",
		set: func(c *config, s string) error { c.ListenHTTP = s; return checkListen(s, "off") }},
	{name: "listen-ops", value: "127.0.0.1:9013", help: "`address` of /metrics, /healthz and /readyz: HOST:PORT",
		set: func(c *config, s string) error { c.ListenOps = s; return checkListen(s, "") }},
	{name: "grpc-token-file", help: "`file` with the token that callers of the gRPC port must send; none: every caller is trusted",
		set: func(c *config, s string) error { c.GRPCTokenFile = s; return nil }},
	{name: "listen-settle", value: "off", help: "`address` of the settle port, where an upstream refunds or confirms a charge: HOST:PORT, or off; needs --settle-token-file",
		set: func(c *config, s string) error { c.ListenSettle = s; return checkListen(s, "off") }},
	{name: "settle-token-file", help: "`file` with the token that callers of the settle port must send",
		set: func(c *config, s string) error { c.SettleTokenFile = s; return nil }},
	{name: "codec", value: codec.Fast.String(), help: "`codec` for Envoy's messages: fast, or generated (the protobuf compiler's, same results at twice the CPU time)",
		set: func(c *config, s string) (err error) {
			c.Codec, err = codec.ParseKind(s)
			return err
		}},
	{name: "check-timeout", value: envoy.DefaultTimeout.String(), help: "maximum `time` for one decision; keep it below Envoy's timeout, 250ms in the printed configuration",
		set: func(c *config, s string) error {
			return setDuration(&c.CheckTimeout, s, time.Millisecond, 10*time.Second)
		}},
	{name: "drain-delay", value: envoy.DefaultDrainDelay.String(), help: "`time` between failing the health checks and stopping",
		set: func(c *config, s string) error { return setDuration(&c.DrainDelay, s, 0, 10*time.Minute) }},
	{name: "upstream-preflights", value: "100", help: "maximum `number` of CORS preflights per second that this replica passes to the upstream, on rules with cors: upstream",
		set: func(c *config, s string) error { return setInt(&c.UpstreamPreflights, s, 1, 1_000_000) }},
	{name: "cache-size", value: "100000", help: "maximum `number` of keys in memory",
		set: func(c *config, s string) error { return setInt(&c.CacheSize, s, 1, 100_000_000) }},
	{name: "lease", value: lease.DefaultLife.String(), help: "maximum `time` that this replica answers from memory without contact to the database, and how long a change waits for an unreachable replica",
		set: func(c *config, s string) error { return setDuration(&c.Lease, s, minLease, maxLease) }},
	{name: "advertise", help: "`address` of the gRPC listener in the list of replicas, as other machines reach it: HOST:PORT; by default derived from --listen-grpc",
		set: func(c *config, s string) error {
			c.Advertise = s
			if s == "" {
				return nil
			}
			return checkListen(s, "unix:///PATH")
		}},
	{name: "migrate", value: "true", help: "migrate the database schema at start", toggle: true,
		set: func(c *config, s string) error { return setBool(&c.Migrate, s) }},
	{name: "redis", help: "`URL` of the Valkey or Redis in which replicas count requests together: redis://… or rediss://…; none: each replica admits its share of every rate limit",
		set: func(c *config, s string) error { c.Redis = s; return checkRedis(s) }, show: ratelimit.MaskValkeyURL, secret: true},
	{name: "rate-limit-strict", value: "false", help: "answer 503 while Valkey is unreachable, instead of admitting a share of every rate limit", toggle: true,
		set: func(c *config, s string) error { return setBool(&c.RateLimitStrict, s) }},
	{name: "rate-limit-share", value: "false", help: "accept that replicas without Valkey divide every rate limit among them, and silence the warnings about it", toggle: true,
		set: func(c *config, s string) error { return setBool(&c.RateLimitShare, s) }},
	{name: "unreported", value: "charge", help: "charge or refund: keep or give back `credits` for requests with no reported outcome, one hour after month end",
		enum: []string{"charge", "refund"}, set: func(c *config, s string) error { c.RefundUnreported = s == "refund"; return nil }},
	{name: "key-prefix", value: apikey.DefaultPrefix, help: "`text` at the start of every key",
		set: func(c *config, s string) error { c.KeyPrefix = s; return checkKeyPrefix(s) }},
	{name: "accept-untagged", value: "false", help: "also look up keys without the keyed tag, such as imported ones", toggle: true,
		set: func(c *config, s string) error { return setBool(&c.AcceptUntagged, s) }},
	{name: "insecure-cookies", value: "false", help: "use a session cookie that browsers also send over plain HTTP; for trials only", toggle: true,
		set: func(c *config, s string) error { return setBool(&c.InsecureCookies, s) }},
	{name: "login-url", help: "`URL` of your login, to which the page redirects a browser without a session; none: a page that explains login links",
		set: func(c *config, s string) error { c.LoginURL = s; return checkLoginURL(s) }, show: maskLoginURL},
	{name: "jwt-keys", help: "`JWKS` that verifies your web app's tokens: a file, or https://…; such a token opens the page and session routes",
		set: func(c *config, s string) error { c.JWT.Keys = s; return nil }},
	{name: "jwt-issuer", help: "required claim `iss` of these tokens",
		set: func(c *config, s string) error { c.JWT.Issuer = s; return nil }},
	{name: "jwt-audience", help: "required value in the claim `aud` of these tokens",
		set: func(c *config, s string) error { c.JWT.Audience = s; return nil }},
	{name: "jwt-algorithms", value: strings.Join(jwt.DefaultAlgorithms(), ","), help: "accepted signature `algorithms`, from " + strings.Join(jwt.Algorithms(), ", "),
		set: func(c *config, s string) error {
			c.JWT.Algorithms = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
			return nil
		}},
	{name: "jwt-types", value: strings.Join(jwt.DefaultTypes(), ","), help: "accepted values of the header `typ`, with or without application/; a token without typ is accepted too",
		set: func(c *config, s string) error {
			c.JWT.Types = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
			return nil
		}},
	{name: "jwt-keys-max-age", value: "0", help: "maximum `time` to trust the last JWKS while it cannot be read; then requests with a token get 503; 0: no limit",
		set: func(c *config, s string) error {
			if s == "0" {
				c.JWT.MaxAge = 0
				return nil
			}
			return setDuration(&c.JWT.MaxAge, s, minKeysAge, 10*365*24*time.Hour)
		}},
	{name: "jwt-claim", value: "sub", help: "`claim` that identifies the user; it is compared with user set --subject",
		set: func(c *config, s string) error { c.JWT.Claim = s; return nil }},
	{name: "jwt-cookie", help: "`cookie` that holds the token; none: it is a bearer token in Authorization",
		set: func(c *config, s string) error { c.JWTCookie = s; return checkCookieName(s) }},
	{name: "seal-key-file", help: "`file` with the private seal key (see seal init), which lets the page show users their key again; none: a key is shown once, when it is made",
		set: func(c *config, s string) error { c.SealKeyFile = s; return nil }},
	{name: "new-keys-per-hour", value: "10", help: "maximum `number` of keys that a user can make on the page in an hour",
		set: func(c *config, s string) error { return setInt(&c.NewKeysPerHour, s, 1, 1_000_000) }},
	{name: "request-log-retention", value: "720h", help: "`time` for which the requests on the users' page are kept; 0: this replica records none, and deletes none of the others",
		set: func(c *config, s string) error { return setDuration(&c.RequestLogRetention, s, 0, maxRetention) }},
	{name: "page-url", help: "`URL` at which users reach your Envoy, such as https://api.example.com; used in login links",
		set: func(c *config, s string) error { c.PageURL = strings.TrimRight(s, "/"); return checkPageURL(s) }},
	{name: "page-path", value: authz.DefaultPagePath, help: "`path` of the users' page behind Envoy, such as /account/api; its rules are added to the route table",
		set: func(c *config, s string) error { return c.setPagePath(s) }},
	{name: "page-name", value: "Keyporter", help: "`name` of the API on the users' page",
		set: func(c *config, s string) error { c.PageName = s; return checkPageName(s) }},
	{name: "page-logo-file", help: "`file` with the logo on the users' page: SVG or PNG",
		set: func(c *config, s string) error { c.PageLogo = s; return nil }},
	{name: "page-color", value: "#2f5bea", help: "`colour` of buttons and bars on the users' page, such as #2f5bea",
		set: func(c *config, s string) error { c.PageColor = s; return checkColor(s) }},
	{name: "page-links", help: "`links` at the foot of the users' page: Documentation=https://docs.example.com, Support=https://…",
		set: func(c *config, s string) (err error) { c.PageLinks, err = parseLinks(s); return err }},
	{name: "log-level", value: "info", help: "`level` of the log: debug, info, warn or error", enum: []string{"debug", "info", "warn", "error"},
		set: func(c *config, s string) error { return c.LogLevel.UnmarshalText([]byte(s)) }},
	{name: "log-format", value: "json", help: "`format` of the log: json or text", enum: []string{"json", "text"},
		set: func(c *config, s string) error { c.LogFormat = s; return nil }},
})

// Bounds of a lease. It is renewed every quarter of its life; a shorter one would be lost to the
// scheduling delays of a busy machine.
const (
	minLease = 200 * time.Millisecond
	maxLease = 30 * time.Second
)

// minKeysAge is the shortest --jwt-keys-max-age: one or two slow answers must not lock everybody
// out.
const minKeysAge = time.Minute

// key returns the setting's name in the file.
func (s setting) key() string { return strings.ReplaceAll(s.name, "-", "_") }

// variable returns the setting's name in the environment.
func (s setting) variable() string { return variablePrefix + strings.ToUpper(s.key()) }

const variablePrefix = "KEYPORTER_"

// apply validates a value and stores it in c.
func (s setting) apply(c *config, value, source string) error {
	if value == "" && s.value != "" {
		return errors.New("the value is empty: leave the setting out for its default")
	}
	if s.enum != nil && !slices.Contains(s.enum, value) {
		return fmt.Errorf("%q is none of %s", value, strings.Join(s.enum, ", "))
	}
	if err := errors.Join(s.settle(c, value), s.set(c, value)); err != nil {
		return err
	}
	c.values[s.name], c.sources[s.name], c.levels[s.name] = value, source, c.level
	return nil
}

// addFlags adds the flags of some settings; load reads their values.
func addFlags(flags *pflag.FlagSet, names ...string) {
	for _, s := range settings {
		if !slices.Contains(names, s.name) && !slices.Contains(names, s.of) {
			continue
		}
		help := s.help + fmt.Sprintf(" (%s)", s.variable())
		if s.toggle {
			flags.Bool(s.name, s.value == "true", help)
			continue
		}
		flags.String(s.name, s.value, help)
		if s.value == "" { // as if the flag were absent
			flags.Lookup(s.name).Annotations = map[string][]string{mayBeEmpty: {}}
		}
	}
}

// load returns the effective configuration of a command: flag over environment over file over
// default. The error lists every mistake in all of them at once, including those that more finds.
func (a *app) load(cmd *cobra.Command, more ...func(*config) error) (config, error) {
	return unlessEnded(cmd.Context(), func() (config, error) { return a.loadAgain(cmd, more...) })
}

// loadAgain is load without its end at ctx: the reloader bounds its own reads.
func (a *app) loadAgain(cmd *cobra.Command, more ...func(*config) error) (config, error) {
	variables, problems := a.variables()
	file, err := configFile(cmd, variables)
	return readConfig(cmd.Flags(), variables, file, append(problems, err), more...)
}

// readConfig builds the configuration from flags, variables and a file. Its error includes the
// problems that are already known.
func readConfig(flags *pflag.FlagSet, variables map[string]string, file string, problems []error, more ...func(*config) error) (config, error) {
	c := newConfig()
	c.file = file
	problems = append(problems, c.applyDefaults()...)
	c.level = ofFile
	problems = append(problems, loadFile(&c, file)...)
	c.level = ofEnvironment
	for _, s := range settings {
		if value, ok := variables[s.variable()]; ok {
			if err := s.apply(&c, value, s.variable()); err != nil {
				problems = append(problems, fmt.Errorf("environment variable %s: %w", s.variable(), err))
			}
		}
	}
	c.level = ofFlag
	for _, s := range settings {
		if flag := flags.Lookup(s.name); flag != nil && flag.Changed {
			if err := s.apply(&c, flag.Value.String(), "--"+s.name); err != nil {
				problems = append(problems, fmt.Errorf("--%s: %w", s.name, err))
			}
		}
	}
	if err := c.checkJWT(); err != nil {
		problems = append(problems, err)
	}
	if c.settles() && c.SettleTokenFile == "" {
		problems = append(problems, errors.New("--listen-settle: needs --settle-token-file: whoever reached the port could give charges back"))
	}
	problems = append(problems, c.makeRoutes())
	if c.RateLimitStrict && c.Redis == "" {
		problems = append(problems, errors.New("--rate-limit-strict: without --redis there is nothing to be strict about"))
	}
	for _, check := range more {
		problems = append(problems, check(&c))
	}
	if err := errors.Join(problems...); err != nil {
		return config{}, usageError{err}
	}
	return c, nil
}

func newConfig() config {
	return config{values: map[string]string{}, sources: map[string]string{}, levels: map[string]level{}}
}

func (c *config) applyDefaults() (problems []error) {
	for _, s := range settings {
		if s.value == "" {
			c.sources[s.name] = "default"
			continue
		}
		if err := s.apply(c, s.value, "default"); err != nil {
			problems = append(problems, fmt.Errorf("default of %s: %w", s.name, err))
		}
	}
	return problems
}

// configFile returns the file that --config or the environment names, or "".
func configFile(cmd *cobra.Command, variables map[string]string) (string, error) {
	if flag := cmd.Flags().Lookup("config"); flag.Changed {
		if flag.Value.String() == "" {
			return "", errors.New("--config: the name of the file is empty")
		}
		return flag.Value.String(), nil
	}
	return variables[variablePrefix+"CONFIG"], nil
}

// serviceLink matches the variables that Kubernetes sets in every pod for a Service named keyporter
// or keyporter-something.
var serviceLink = regexp.MustCompile(`_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$`)

// variables returns the environment variables with Keyporter's prefix, and a problem for each that
// is not a setting.
func (a *app) variables() (values map[string]string, unknown []error) {
	known := []string{variablePrefix + "CONFIG"}
	for _, s := range settings {
		known = append(known, s.variable())
	}
	values = map[string]string{}
	for _, entry := range a.environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, variablePrefix) || serviceLink.MatchString(name) {
			continue
		}
		if !slices.Contains(known, name) {
			unknown = append(unknown, fmt.Errorf("environment variable %s: there is no such setting%s", name, routes.Nearest(name, known)))
			continue
		}
		values[name] = value
	}
	return values, unknown
}

func setDuration(into *time.Duration, s string, least, most time.Duration) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < least || d > most {
		return fmt.Errorf("%q is not a duration from %v to %v, such as 150ms or 3s", s, least, most)
	}
	*into = d
	return nil
}

func setInt(into *int, s string, least, most int) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		return fmt.Errorf("%q is not a number from %d to %d", s, least, most)
	}
	*into = n
	return nil
}

func setBool(into *bool, s string) (err error) {
	*into, err = routes.ParseBool(s)
	return err
}

func checkRedis(s string) error {
	if s == "" {
		return nil
	}
	return ratelimit.CheckValkeyURL(s)
}

// checkDatabase validates a database URL, and suggests the nearest name for an unknown parameter.
func checkDatabase(s string) error {
	err := store.CheckURL(s)
	if unknown := (*store.ParameterError)(nil); errors.As(err, &unknown) {
		return fmt.Errorf("%w%s", err, routes.Nearest(unknown.Name, unknown.Known))
	}
	return err
}

// checkListen validates an address to listen on; other is accepted in place of HOST:PORT.
func checkListen(s, other string) error {
	want := "HOST:PORT"
	if other != "" {
		want += " or " + other
	}
	if s == "off" && other == "off" || strings.HasPrefix(s, "unix:///") && strings.HasPrefix(other, "unix:") {
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not an address: want %s", s, want)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && host == "" {
		return fmt.Errorf("%q has no port from 0 to 65535: want %s", s, want)
	}
	return nil
}

func checkKeyPrefix(s string) error {
	if s == "" {
		return errors.New("a prefix has at least one character")
	}
	for prefix, what := range map[string]string{apikey.SessionPrefix: "sessions", apikey.LinkPrefix: "login links"} {
		if strings.HasSuffix(s, prefix) { // that prefix would match inside every key
			return fmt.Errorf("%q ends with %s, which begins %s; choose another prefix for keys", s, prefix, what)
		}
	}
	return apikey.CheckPrefix(s)
}

// maskLoginURL masks a password and keeps the query, which such a URL may need.
func maskLoginURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "…"
	}
	return u.Redacted()
}

func checkLoginURL(s string) error {
	if s == "" || checkTarget(s) == nil {
		return nil
	}
	return fmt.Errorf("%.80q is not a URL that begins with https://HOST, http://HOST or a single /", s)
}

// advertised returns the address at which others reach the gRPC listener, as well as it can be
// determined.
func (c *config) advertised() string {
	if c.Advertise != "" {
		return c.Advertise
	}
	host, port, err := net.SplitHostPort(c.ListenGRPC)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort(hostName(), port)
	}
	return c.ListenGRPC
}

// grpcToken reads the token that callers of the gRPC port must send, if one is configured.
func (c *config) grpcToken() (bearer.Token, error) { return readToken("gRPC", c.GRPCTokenFile) }

// settles reports whether upstreams can settle charges.
func (c *config) settles() bool { return c.ListenSettle != "" && c.ListenSettle != "off" }

// settleToken reads the token that callers of the settle port must send, if that port is open.
func (c *config) settleToken() (bearer.Token, error) {
	if !c.settles() {
		return bearer.Token{}, nil
	}
	return readToken("settle", c.SettleTokenFile)
}

// readToken reads a token from a file; without a file it returns the zero Token.
func readToken(name, file string) (bearer.Token, error) {
	if file == "" {
		return bearer.Token{}, nil
	}
	text, err := readAtMost(file, maxSecret)
	if err != nil {
		return bearer.Token{}, fmt.Errorf("reading the %s token: %w", name, err)
	}
	token, err := bearer.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		return bearer.Token{}, fmt.Errorf("reading the %s token from %s: %w", name, file, err)
	}
	return token, nil
}
