// Package config is the configuration of a service: its settings, read from flags, the environment
// and a file, checked as a whole, and printed. It opens nothing but the connections that
// [Config.Connect] tests. The commands read it, and internal/service runs with it.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/bearer"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/internal/tlsport"
	"github.com/keyporter/keyporter/jwt"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/ratelimit"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/lease"
)

// Config is the effective configuration.
type Config struct {
	Database            string
	DatabaseConnections int
	Output              string

	Server, TokenFile, CAFile string // Server is "" if the command works on the database
	Insecure                  bool

	ListenGRPC, ListenHTTP, ListenOps string
	Pprof                             bool
	GRPCTokenFile                     string
	RefundUnreported                  bool
	ListenSettle, SettleTokenFile     string
	ListenAdmin, AdminTokensFile      string
	WebhooksFile                      string
	WebhookAllow                      []netip.Prefix
	CheckTimeout, DrainDelay          time.Duration
	Codec                             codec.Kind
	Selection                         codec.Selection
	Transport                         envoy.Transport
	CacheSize                         int
	Lease                             time.Duration
	Advertise                         string
	Migrate                           bool

	GRPCSocketMode  fs.FileMode
	GRPCSocketUsers []uint32 // nil: all whom the permissions let

	// TLS is the TLS of each port, by the name of the port: see [TLSPorts].
	TLS           map[string]*tlsport.Files
	TLSMinVersion uint16

	Redis                           string
	RateLimitStrict, RateLimitShare bool

	KeyPrefix       string
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
	// KeyFormats are the forms of keys from other systems.
	KeyFormats []apikey.KeyFormat
	// Upstreams are the named upstreams. If there are none, the command line of the bootstrap names
	// the only one.
	Upstreams map[string]bootstrap.Upstream
	Routes    *authz.RouteTable // made of Rules, CORS and KeyFormats

	places       []string // FILE:LINE:COLUMN of each rule from a file; these rules come first in Rules
	formatPlaces []string // and of each of KeyFormats

	UpstreamPreflights int

	Warnings []string // settings that are valid but may be unintended
	File     string   // the configuration file; "": none

	values  map[string]string // setting → its value as written
	sources map[string]string // setting → where its value comes from
	levels  map[string]level  // setting → the level of its latest value
	level   level             // the level being read
}

// Setting is one setting: a flag, an environment variable and a key in the file.
type Setting struct {
	Name    string // name of the flag; the file's key has _ in place of -
	Default string
	Help    string   // names the kind of value in `backquotes`
	Enum    []string // the only values; nil: any
	Toggle  bool     // true or false; the flag alone means true
	secret  bool     // can also come from a file of its own: see withFiles
	of      string   // the setting for the value in the named file
	set     func(*Config, string) error
	// show masks secrets in a value; nil if every value can be shown.
	show func(string) string
}

// Settings returns all settings, in the order in which they are shown.
func Settings() []Setting { return slices.Clone(settings) }

// settings are all settings, in the order in which they are shown.
var settings = withFiles(withTLS([]Setting{
	{Name: "database", Default: "sqlite://keyporter.db", Help: "`URL` of the database: sqlite://PATH or postgres://…",
		set: func(c *Config, s string) error { c.Database = s; return checkDatabase(s) }, show: store.MaskURL, secret: true},
	{Name: "database-connections", Default: strconv.Itoa(store.DefaultConnections), Help: "maximum `number` of connections that this replica opens to PostgreSQL",
		set: func(c *Config, s string) error {
			return setInt(&c.DatabaseConnections, s, store.MinConnections, store.MaxConnections)
		}},
	{Name: "server", Help: "`URL` of the operators' API of a running service, such as https://keyporter.internal:9012: the command works there in place of the database; needs --token-file",
		set: func(c *Config, s string) error {
			c.Server = s
			return c.checkGiven(s)
		}},
	{Name: "token-file", Help: "`file` with the token that a command sends to --server",
		set: func(c *Config, s string) error { c.TokenFile = s; return c.checkGiven(s) }},
	{Name: "ca-file", Help: "`file` with the certificates, in PEM, of the authorities that vouch for --server; none: those of the system",
		set: func(c *Config, s string) error { c.CAFile = s; return c.checkGiven(s) }},
	{Name: "insecure", Default: "false", Help: "let the token travel to another machine over plain HTTP, in a network that nobody else can read", Toggle: true,
		set: func(c *Config, s string) error { return setBool(&c.Insecure, s) }},
	{Name: "output", Default: "text", Help: "output `format`: text or json", Enum: []string{"text", "json"},
		set: func(c *Config, s string) error { c.Output = s; return nil }},
	{Name: "listen-grpc", Default: "127.0.0.1:9001", Help: "`address` for Envoy's checks: HOST:PORT or unix:///PATH",
		set: func(c *Config, s string) error { c.ListenGRPC = s; return checkListen(s, "unix:///PATH") }},
	{Name: "grpc-socket-mode", Default: strconv.FormatInt(int64(socketMode), 8), Help: "`permissions` of the Unix socket of --listen-grpc, in octal digits",
		set: func(c *Config, s string) error { return c.setSocketMode(s) }},
	{Name: "grpc-socket-users", Help: "`users` whose processes may connect to the Unix socket of --listen-grpc, as names or numbers, separated by commas; none: all whom its permissions let; Linux only",
		set: func(c *Config, s string) error { return c.setSocketUsers(s) }},
	{Name: "listen-http", Default: "127.0.0.1:8081", Help: "`address` of the users' page: HOST:PORT, or off",
		set: func(c *Config, s string) error { c.ListenHTTP = s; return checkListen(s, "off") }},
	{Name: "listen-ops", Default: "127.0.0.1:9013", Help: "`address` of /metrics, /healthz and /readyz: HOST:PORT",
		set: func(c *Config, s string) error { c.ListenOps = s; return checkListen(s, "") }},
	{Name: "pprof", Default: "false", Help: "serve profiles of Go's net/http/pprof at /debug/pprof/ of --listen-ops, to all who reach it", Toggle: true,
		set: func(c *Config, s string) error { return setBool(&c.Pprof, s) }},
	{Name: "grpc-token-file", Help: "`file` with the token that callers of the gRPC port must send; none: every caller is trusted",
		set: func(c *Config, s string) error { c.GRPCTokenFile = s; return nil }},
	{Name: "listen-settle", Default: "off", Help: "`address` of the settle port, where an upstream refunds a charge or lets it stand: HOST:PORT, or off; needs --settle-token-file",
		set: func(c *Config, s string) error { c.ListenSettle = s; return checkListen(s, "off") }},
	{Name: "settle-token-file", Help: "`file` with the token that callers of the settle port must send",
		set: func(c *Config, s string) error { c.SettleTokenFile = s; return nil }},
	{Name: "listen-admin", Default: "off", Help: "`address` of the operators' API: HOST:PORT, or off; needs --admin-tokens-file",
		set: func(c *Config, s string) error { c.ListenAdmin = s; return checkListen(s, "off") }},
	{Name: "admin-tokens-file", Help: "`file` with a line NAME: SHA256 SCOPE… for each token of the operators' API, or NAME: san=SAN SCOPE… for a certificate",
		set: func(c *Config, s string) error { c.AdminTokensFile = s; return nil }},
	{Name: "webhooks-file", Help: "`file` with the endpoints that are told of events; none: no events are written",
		set: func(c *Config, s string) error { c.WebhooksFile = s; return nil }},
	{Name: "webhook-allow", Help: "`ranges` of private addresses that webhooks may have, such as 10.1.0.0/16, with commas in between",
		set: func(c *Config, s string) (err error) { c.WebhookAllow, err = parsePrefixes(s); return err }},
	{Name: "codec", Default: codec.Fast.String(), Help: "`codec` for Envoy's messages: fast, or generated (the protobuf compiler's, same results at twice the CPU time)",
		set: func(c *Config, s string) (err error) {
			c.Codec, err = codec.ParseKind(s)
			return err
		}},
	{Name: "transport", Default: envoy.FastTransport.String(), Help: "`transport` of the gRPC port: fast (our own), or grpc (grpc-go, same answers at three times the CPU time; the way back, for two releases)",
		set: func(c *Config, s string) (err error) {
			c.Transport, err = envoy.ParseTransport(s)
			return err
		}},
	{Name: "upstream-headers", Default: codec.DefaultHeaders.String(), Help: "identity `headers` that an upstream gets, by name without x-keyporter-: some of user, account, plan, key-id and charge, or none; the others are removed from requests; charge is added where --listen-settle is on",
		set: func(c *Config, s string) (err error) {
			c.Selection.Headers, err = codec.ParseHeaders(s)
			return err
		}},
	{Name: "metadata", Default: codec.DefaultMetadata.String(), Help: "`facts` in Envoy's dynamic metadata beside user, key_id, reason and charge: account, plan, both with a comma in between, or none",
		set: func(c *Config, s string) (err error) {
			c.Selection.Metadata, err = codec.ParseMetadata(s)
			return err
		}},
	{Name: "check-timeout", Default: envoy.DefaultTimeout.String(), Help: "maximum `time` for one decision; keep it below Envoy's timeout, 250ms in the printed configuration",
		set: func(c *Config, s string) error {
			return setDuration(&c.CheckTimeout, s, time.Millisecond, 10*time.Second)
		}},
	{Name: "drain-delay", Default: envoy.DefaultDrainDelay.String(), Help: "`time` between failing the health checks and stopping",
		set: func(c *Config, s string) error { return setDuration(&c.DrainDelay, s, 0, 10*time.Minute) }},
	{Name: "upstream-preflights", Default: "100", Help: "maximum `number` of CORS preflights per second that this replica passes to the upstream, on rules with cors: upstream",
		set: func(c *Config, s string) error { return setInt(&c.UpstreamPreflights, s, 1, 1_000_000) }},
	{Name: "cache-size", Default: "100000", Help: "maximum `number` of keys in memory",
		set: func(c *Config, s string) error { return setInt(&c.CacheSize, s, 1, 100_000_000) }},
	{Name: "lease", Default: lease.DefaultLife.String(), Help: "maximum `time` that this replica answers from memory without contact to the database, and how long a change waits for an unreachable replica",
		set: func(c *Config, s string) error { return setDuration(&c.Lease, s, minLease, MaxLease) }},
	{Name: "advertise", Help: "`address` of the gRPC listener in the list of replicas, as other machines reach it: HOST:PORT; by default derived from --listen-grpc",
		set: func(c *Config, s string) error {
			c.Advertise = s
			if s == "" {
				return nil
			}
			return checkListen(s, "unix:///PATH")
		}},
	{Name: "migrate", Default: "true", Help: "migrate the database schema at start", Toggle: true,
		set: func(c *Config, s string) error { return setBool(&c.Migrate, s) }},
	{Name: "redis", Help: "`URL` of the Valkey or Redis in which replicas count requests together: redis://… or rediss://…; none: each replica admits its share of every rate limit",
		set: func(c *Config, s string) error { c.Redis = s; return checkRedis(s) }, show: ratelimit.MaskValkeyURL, secret: true},
	{Name: "rate-limit-strict", Default: "false", Help: "answer 503 while Valkey is unreachable, instead of admitting a share of every rate limit", Toggle: true,
		set: func(c *Config, s string) error { return setBool(&c.RateLimitStrict, s) }},
	{Name: "rate-limit-share", Default: "false", Help: "accept that replicas without Valkey divide every rate limit among them, and silence the warnings about it", Toggle: true,
		set: func(c *Config, s string) error { return setBool(&c.RateLimitShare, s) }},
	{Name: "unreported", Default: "charge", Help: "charge or refund: keep or give back `credits` for requests with no reported outcome, one hour after month end",
		Enum: []string{"charge", "refund"}, set: func(c *Config, s string) error { c.RefundUnreported = s == "refund"; return nil }},
	{Name: "key-prefix", Default: apikey.DefaultPrefix, Help: "`text` at the start of every key",
		set: func(c *Config, s string) error { c.KeyPrefix = s; return CheckKeyPrefix(s) }},
	{Name: "insecure-cookies", Default: "false", Help: "use a session cookie that browsers also send over plain HTTP; for trials only", Toggle: true,
		set: func(c *Config, s string) error { return setBool(&c.InsecureCookies, s) }},
	{Name: "login-url", Help: "`URL` of your login, to which the page redirects a browser without a session; none: a page that explains login links",
		set: func(c *Config, s string) error { c.LoginURL = s; return checkLoginURL(s) }, show: maskLoginURL},
	{Name: "jwt-keys", Help: "`JWKS` that verifies your web app's tokens: a file, or https://…; such a token opens the page and session routes",
		set: func(c *Config, s string) error { c.JWT.Keys = s; return nil }},
	{Name: "jwt-issuer", Help: "required claim `iss` of these tokens",
		set: func(c *Config, s string) error { c.JWT.Issuer = s; return nil }},
	{Name: "jwt-audience", Help: "required value in the claim `aud` of these tokens",
		set: func(c *Config, s string) error { c.JWT.Audience = s; return nil }},
	{Name: "jwt-algorithms", Default: strings.Join(jwt.DefaultAlgorithms(), ","), Help: "accepted signature `algorithms`, from " + strings.Join(jwt.Algorithms(), ", "),
		set: func(c *Config, s string) error {
			c.JWT.Algorithms = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
			return nil
		}},
	{Name: "jwt-types", Default: strings.Join(jwt.DefaultTypes(), ","), Help: "accepted values of the header `typ`, with or without application/; a token without typ is accepted too",
		set: func(c *Config, s string) error {
			c.JWT.Types = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
			return nil
		}},
	{Name: "jwt-keys-max-age", Default: "0", Help: "maximum `time` to trust the last JWKS while it cannot be read; then requests with a token get 503; 0: no limit",
		set: func(c *Config, s string) error {
			if s == "0" {
				c.JWT.MaxAge = 0
				return nil
			}
			return setDuration(&c.JWT.MaxAge, s, minKeysAge, 10*365*24*time.Hour)
		}},
	{Name: "jwt-claim", Default: "sub", Help: "`claim` that identifies the user; it is compared with user set --subject",
		set: func(c *Config, s string) error { c.JWT.Claim = s; return nil }},
	{Name: "jwt-cookie", Help: "`cookie` that holds the token; none: it is a bearer token in Authorization",
		set: func(c *Config, s string) error { c.JWTCookie = s; return checkCookieName(s) }},
	{Name: "seal-key-file", Help: "`file` with the private seal key (see seal init), which lets the page and the operators' API show keys again; none: a key is shown once, when it is made",
		set: func(c *Config, s string) error { c.SealKeyFile = s; return nil }},
	{Name: "new-keys-per-hour", Default: "10", Help: "maximum `number` of keys that a user can make on the page in an hour",
		set: func(c *Config, s string) error { return setInt(&c.NewKeysPerHour, s, 1, 1_000_000) }},
	{Name: "request-log-retention", Default: "720h", Help: "`time` for which the requests on the users' page are kept; 0: this replica records none, and deletes none of the others",
		set: func(c *Config, s string) error { return setDuration(&c.RequestLogRetention, s, 0, MaxRetention) }},
	{Name: "page-url", Help: "`URL` at which users reach your Envoy, such as https://api.example.com; used in login links",
		set: func(c *Config, s string) error { c.PageURL = strings.TrimRight(s, "/"); return checkPageURL(s) }},
	{Name: "page-path", Default: authz.DefaultPagePath, Help: "`path` of the users' page behind Envoy, such as /account/api; its rules are added to the route table",
		set: func(c *Config, s string) error { return c.setPagePath(s) }},
	{Name: "page-name", Default: "Keyporter", Help: "`name` of the API on the users' page",
		set: func(c *Config, s string) error { c.PageName = s; return checkPageName(s) }},
	{Name: "page-logo-file", Help: "`file` with the logo on the users' page: SVG or PNG",
		set: func(c *Config, s string) error { c.PageLogo = s; return nil }},
	{Name: "page-color", Default: "#2f5bea", Help: "`colour` of buttons and bars on the users' page, such as #2f5bea",
		set: func(c *Config, s string) error { c.PageColor = s; return checkColor(s) }},
	{Name: "page-links", Help: "`links` at the foot of the users' page: Documentation=https://docs.example.com, Support=https://…",
		set: func(c *Config, s string) (err error) { c.PageLinks, err = parseLinks(s); return err }},
	{Name: "log-level", Default: "info", Help: "`level` of the log: debug, info, warn or error", Enum: []string{"debug", "info", "warn", "error"},
		set: func(c *Config, s string) error { return c.LogLevel.UnmarshalText([]byte(s)) }},
	{Name: "log-format", Default: "json", Help: "`format` of the log: json or text", Enum: []string{"json", "text"},
		set: func(c *Config, s string) error { c.LogFormat = s; return nil }},
}))

// Bounds of a lease. It is renewed every quarter of its life; a shorter one would be lost to the
// scheduling delays of a busy machine.
const (
	minLease = 200 * time.Millisecond
	MaxLease = 30 * time.Second
)

// minKeysAge is the shortest --jwt-keys-max-age: one or two slow answers must not lock everybody
// out.
const minKeysAge = time.Minute

// MaxRetention bounds the retention of requests.
const MaxRetention = 10 * 365 * 24 * time.Hour

// key returns the setting's name in the file.
func (s Setting) key() string { return strings.ReplaceAll(s.Name, "-", "_") }

// Variable returns the setting's name in the environment.
func (s Setting) Variable() string { return VariablePrefix + strings.ToUpper(s.key()) }

// VariablePrefix begins the name of every setting in the environment.
const VariablePrefix = "KEYPORTER_"

// apply validates a value and stores it in c.
func (s Setting) apply(c *Config, value, source string) error {
	if value == "" && s.Default != "" {
		return errors.New("the value is empty: leave the setting out for its default")
	}
	if s.Enum != nil && !slices.Contains(s.Enum, value) {
		return fmt.Errorf("%q is none of %s", value, strings.Join(s.Enum, ", "))
	}
	if err := errors.Join(s.resolveTwin(c, value), s.set(c, value)); err != nil {
		return err
	}
	c.values[s.Name], c.sources[s.Name], c.levels[s.Name] = value, source, c.level
	return nil
}

// MayBeEmpty marks a flag that accepts an empty value.
const MayBeEmpty = "keyporter_may_be_empty"

// AddFlags adds the flags of some settings; [Sources.Read] reads their values.
func AddFlags(flags *pflag.FlagSet, names ...string) {
	for _, s := range settings {
		if !slices.Contains(names, s.Name) && !slices.Contains(names, s.of) {
			continue
		}
		help := s.Help + fmt.Sprintf(" (%s)", s.Variable())
		if s.Toggle {
			flags.Bool(s.Name, s.Default == "true", help)
			continue
		}
		flags.String(s.Name, s.Default, help)
		if s.Default == "" { // as if the flag were absent
			flags.Lookup(s.Name).Annotations = map[string][]string{MayBeEmpty: {}}
		}
	}
}

// Sources are the places, beside the defaults, that a configuration comes from. A flag beats a
// variable, which beats the file.
type Sources struct {
	Flags     *pflag.FlagSet    // flags that are absent or were not given set nothing
	Variables map[string]string // environment variable → value; see [Variables]
	File      string            // name of the file; "": none
	Problems  []error           // mistakes found in the sources themselves
}

// Read returns the effective configuration. The error lists every mistake in all sources at once,
// including those that more finds.
func (s Sources) Read(more ...func(*Config) error) (Config, error) {
	c := newConfig()
	c.File = s.File
	problems := append(s.Problems, c.applyDefaults()...)
	c.level = ofFile
	problems = append(problems, loadFile(&c, s.File)...)
	c.level = ofEnvironment
	for _, one := range settings {
		if value, ok := s.Variables[one.Variable()]; ok {
			if err := one.apply(&c, value, one.Variable()); err != nil {
				problems = append(problems, fmt.Errorf("environment variable %s: %w", one.Variable(), err))
			}
		}
	}
	c.level = ofFlag
	for _, one := range settings {
		if flag := s.Flags.Lookup(one.Name); flag != nil && flag.Changed {
			if err := one.apply(&c, flag.Value.String(), "--"+one.Name); err != nil {
				problems = append(problems, fmt.Errorf("--%s: %w", one.Name, err))
			}
		}
	}
	if err := c.checkJWT(); err != nil {
		problems = append(problems, err)
	}
	if c.Settles() && c.SettleTokenFile == "" {
		problems = append(problems, errors.New("--listen-settle: needs --settle-token-file: whoever reached the port could give charges back"))
	}
	if c.Settles() && c.levels["upstream-headers"] == ofDefault {
		c.Selection.Headers |= codec.FactCharge // an upstream that settles a charge must know its name
	}
	problems = append(problems, c.checkServer(), c.checkAdmin(), c.checkTLS(), c.checkSocket(), c.makeRoutes(), c.checkKeyFormats())
	if c.RateLimitStrict && c.Redis == "" {
		problems = append(problems, errors.New("--rate-limit-strict: without --redis there is nothing to be strict about"))
	}
	for _, check := range more {
		problems = append(problems, check(&c))
	}
	if err := errors.Join(problems...); err != nil {
		return Config{}, err
	}
	return c, nil
}

func newConfig() Config {
	c := Config{values: map[string]string{}, sources: map[string]string{}, levels: map[string]level{}, TLS: map[string]*tlsport.Files{}}
	for _, port := range TLSPorts {
		c.TLS[port] = &tlsport.Files{}
	}
	return c
}

func (c *Config) applyDefaults() (problems []error) {
	for _, s := range settings {
		if s.Default == "" {
			c.sources[s.Name] = "default"
			continue
		}
		if err := s.apply(c, s.Default, "default"); err != nil {
			problems = append(problems, fmt.Errorf("default of %s: %w", s.Name, err))
		}
	}
	return problems
}

// FileName returns the file that --config or the environment names, or "".
func FileName(flags *pflag.FlagSet, variables map[string]string) (string, error) {
	if flag := flags.Lookup("config"); flag.Changed {
		if flag.Value.String() == "" {
			return "", errors.New("--config: the name of the file is empty")
		}
		return flag.Value.String(), nil
	}
	return variables[VariablePrefix+"CONFIG"], nil
}

// serviceLink matches the variables that Kubernetes sets in every pod for a Service named keyporter
// or keyporter-something.
var serviceLink = regexp.MustCompile(`_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$`)

// Variables returns the environment variables with Keyporter's prefix, and a problem for each that
// is not a setting.
func Variables(environ []string) (values map[string]string, unknown []error) {
	known := []string{VariablePrefix + "CONFIG"}
	for _, s := range settings {
		known = append(known, s.Variable())
	}
	values = map[string]string{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, VariablePrefix) || serviceLink.MatchString(name) {
			continue
		}
		if instead, was := gone[strings.ToLower(strings.TrimPrefix(name, VariablePrefix))]; was {
			unknown = append(unknown, fmt.Errorf("environment variable %s: %s", name, instead))
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

// checkGiven rejects an empty value of a flag: the command would work on another service than the
// one that was meant.
func (c *Config) checkGiven(s string) error {
	if s == "" && c.level == ofFlag {
		return errors.New("the value is empty: is a variable not set?")
	}
	return nil
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

// CheckKeyPrefix rejects a prefix of keys that would match other secrets.
func CheckKeyPrefix(s string) error {
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

// Advertised returns the address at which others reach the gRPC listener of this host, as well as
// it can be determined.
func (c *Config) Advertised(host string) string {
	if c.Advertise != "" {
		return c.Advertise
	}
	address, port, err := net.SplitHostPort(c.ListenGRPC)
	if ip := net.ParseIP(address); err == nil && (address == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort(host, port)
	}
	return c.ListenGRPC
}

// GRPCToken reads the token that callers of the gRPC port must send, if one is configured.
func (c *Config) GRPCToken() (bearer.Token, error) { return readToken("gRPC", c.GRPCTokenFile) }

// Settles reports whether upstreams can settle charges.
func (c *Config) Settles() bool { return c.ListenSettle != "" && c.ListenSettle != "off" }

// SettleToken reads the token that callers of the settle port must send, if that port is open.
func (c *Config) SettleToken() (bearer.Token, error) {
	if !c.Settles() {
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
