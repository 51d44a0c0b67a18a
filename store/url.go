package store

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lib/pq"
)

// ParameterError reports an unknown parameter of a database URL.
type ParameterError struct {
	Name  string
	Known []string // the known parameters
}

// Error implements error.
func (e *ParameterError) Error() string {
	return fmt.Sprintf("the database URL: there is no parameter %q", e.Name)
}

// CheckURL checks a database URL without reading files or connecting. The error holds no part of a
// password.
func CheckURL(address string) error {
	switch scheme, rest, _ := strings.Cut(address, "://"); {
	case scheme == "sqlite" && rest != "":
		return nil
	case scheme == "sqlite":
		return errors.New("the database URL names no file: want sqlite://PATH")
	case scheme != "postgres" && scheme != "postgresql":
		return errors.New("a database URL begins with sqlite:// or postgres://")
	}
	dsn, err := postgresDSN(address)
	if err == nil {
		_, err = newTarget(dsn)
	}
	return err
}

// IsPostgres reports whether a database URL is one of PostgreSQL.
func IsPostgres(address string) bool {
	scheme, _, _ := strings.Cut(address, "://")
	return scheme == "postgres" || scheme == "postgresql"
}

// CheckURLFiles checks the files named by a database URL and the environment.
func CheckURLFiles(address string) error {
	if strings.HasPrefix(address, "sqlite://") {
		return nil
	}
	dsn, err := postgresDSN(address)
	if err != nil {
		return err
	}
	server, err := newTarget(dsn)
	if err != nil {
		return err
	}
	return server.checkFiles()
}

// postgresURL is a URL as libpq reads it.
type postgresURL struct {
	user, password string
	hosts, ports   []string
	database       string
	parameters     map[string]string
}

// postgresDSN translates a URL for the driver, whose own parser rejects several hosts with ports of
// their own, as in postgres://h1:5432,h2:5433/keys.
func postgresDSN(address string) (string, error) {
	u, err := parsePostgresURL(address)
	if err != nil {
		return "", err
	}
	all := map[string]string{}
	add := func(name, value string) {
		if value != "" {
			all[name] = value
		}
	}
	add("user", u.user)
	add("password", u.password)
	add("dbname", u.database)
	add("host", strings.Join(u.hosts, ","))
	if strings.Trim(strings.Join(u.ports, ""), ",") != "" {
		add("port", strings.Join(u.ports, ","))
	}
	for name, value := range u.parameters {
		add(name, value)
	}
	if err := defaultHosts(all); err != nil {
		return "", err
	}
	quote := strings.NewReplacer(`'`, `\'`, `\`, `\\`)
	var b strings.Builder
	for name, value := range all {
		fmt.Fprintf(&b, "%s='%s' ", name, quote.Replace(value))
	}
	return strings.TrimSpace(b.String()), nil
}

// defaultHosts fills gaps in lists of hosts and ports with the defaults, and checks the ports.
func defaultHosts(all map[string]string) error {
	if hosts, ok := all["host"]; ok && strings.Contains(hosts, ",") {
		list := strings.Split(hosts, ",")
		for i, host := range list {
			if host == "" {
				list[i] = "localhost"
			}
		}
		all["host"] = strings.Join(list, ",")
	}
	ports, ok := all["port"]
	if !ok {
		return nil
	}
	list := strings.Split(ports, ",")
	for i, port := range list {
		if port == "" {
			list[i] = "5432"
			continue
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errors.New("the database URL: a port is not a number from 1 to 65535; a password with : / ? or @ needs them written as %3A %2F %3F %40")
		}
	}
	all["port"] = strings.Join(list, ",")
	return nil
}

// parsePostgresURL splits a URL as libpq does.
func parsePostgresURL(address string) (u postgresURL, err error) {
	_, rest, _ := strings.Cut(address, "://")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority, rest := rest[:end], rest[end:]
	path, query, _ := strings.Cut(rest, "?")
	if strings.Contains(path, "@") {
		return u, errors.New("the database URL: there is a @ after the host; a password with / or ? needs them written as %2F and %3F")
	}
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		user, password, _ := strings.Cut(authority[:at], ":")
		u.user, u.password, authority = unescape(user, &err), unescape(password, &err), authority[at+1:]
	}
	for one := range strings.SplitSeq(authority, ",") {
		host, port, problem := splitHost(one)
		err = errors.Join(err, problem)
		u.hosts, u.ports = append(u.hosts, unescape(host, &err)), append(u.ports, port)
	}
	u.database = unescape(strings.TrimPrefix(path, "/"), &err)
	if err == nil {
		u.parameters, err = parseParameters(query)
	}
	return u, err
}

// splitHost splits HOST, HOST:PORT, [IPv6] and [IPv6]:PORT.
func splitHost(s string) (host, port string, err error) {
	if inside, found := strings.CutPrefix(s, "["); found {
		host, port, found = strings.Cut(inside, "]")
		if !found || net.ParseIP(host) == nil || port != "" && port[0] != ':' {
			return "", "", errors.New("the database URL: a host in brackets is not an IPv6 address")
		}
		return host, strings.TrimPrefix(port, ":"), nil
	}
	host, port, _ = strings.Cut(s, ":")
	if strings.Contains(port, ":") {
		return "", "", errors.New("the database URL: an IPv6 address stands in brackets: [::1]")
	}
	return host, port, nil
}

func unescape(s string, problem *error) string {
	plain, err := url.PathUnescape(s)
	if err != nil {
		*problem = errors.New("the database URL: % begins no two hexadecimal digits; % itself is %25")
	}
	if strings.ContainsRune(plain, 0) {
		*problem = errors.New("the database URL: %00 cannot be part of it")
	}
	return plain
}

func parseParameters(query string) (map[string]string, error) {
	all := map[string]string{}
	if query == "" {
		return all, nil
	}
	var err error
	for one := range strings.SplitSeq(query, "&") {
		name, value, found := strings.Cut(one, "=")
		if !found {
			return nil, errors.New("the database URL: what follows the question mark is NAME=VALUE&NAME=VALUE; a password with a ? needs it written as %3F")
		}
		name = unescape(name, &err)
		value = unescape(value, &err)
		if err != nil {
			return nil, err
		}
		if name == "ssl" && value == "true" { // as in JDBC's URLs; libpq accepts it
			name, value = "sslmode", "require"
		}
		if err := checkParameter(name, value); err != nil {
			if strings.Contains(query, "@") { // perhaps that of a password
				return nil, errors.New("the database URL: there is an unknown or wrong parameter; a password with a ? needs it written as %3F, and @ in a parameter is %40")
			}
			return nil, err
		}
		all[name] = value
	}
	return all, nil
}

// checkParameter checks a parameter's name, and its value if only a few are possible.
func checkParameter(name, value string) error {
	switch {
	case slices.Contains(notOurs, name):
		return fmt.Errorf("the database URL: %s is a parameter of libpq that this program's driver does not have: leave it out", name)
	case !slices.Contains(ours, name) && !slices.Contains(settingNames(), strings.ToLower(name)) && !strings.Contains(name, "."):
		return &ParameterError{Name: name, Known: append(settingNames(), ours...)}
	case name == "target_session_attrs" && !slices.Contains(writable, value):
		return fmt.Errorf("the database URL: target_session_attrs=%s: this program writes, and takes the primary of several servers: want primary or read-write", value)
	}
	values, ok := parameterValues[name]
	if ok && !slices.Contains(values, value) {
		best := ""
		for _, v := range values {
			if strings.EqualFold(v, strings.ReplaceAll(value, "_", "-")) {
				best = fmt.Sprintf("; did you mean %s?", v)
			}
		}
		return fmt.Errorf("the database URL: %s=%s: want one of %s%s", name, value, strings.Join(values, ", "), best)
	}
	return nil
}

// ours lists the parameters that the driver knows.
var ours = []string{
	"host", "hostaddr", "port", "dbname", "database", "user", "password", "passfile", "options", "application_name",
	"fallback_application_name", "sslmode", "sslnegotiation", "sslcert", "sslkey", "sslrootcert", "sslsni", "sslinline",
	"ssl_min_protocol_version", "ssl_max_protocol_version", "connect_timeout", "client_encoding", "target_session_attrs",
	"load_balance_hosts", "min_protocol_version", "max_protocol_version", "service",
	"binary_parameters", "disable_prepared_binary_result", "tz", "role",
}

// notOurs lists the parameters that only libpq knows.
var notOurs = []string{
	"channel_binding", "gssdelegation", "gssencmode", "gsslib", "keepalives", "keepalives_count", "keepalives_idle",
	"keepalives_interval", "krbspn", "krbsrvname", "oauth_client_id", "oauth_client_secret", "oauth_issuer", "oauth_scope",
	"replication", "require_auth", "requirepeer", "requiressl", "scram_client_key", "scram_server_key", "servicefile",
	"sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkeylogfile", "sslpassword", "tcp_user_timeout",
}

var writable = []string{string(pq.TargetSessionAttrsAny), string(pq.TargetSessionAttrsPrimary), string(pq.TargetSessionAttrsReadWrite)}

var parameterValues = map[string][]string{
	"sslmode":            {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
	"sslnegotiation":     {"postgres", "direct"},
	"load_balance_hosts": {"disable", "random"},
}

// settingsText is the settings of PostgreSQL 16 and 18 that a session may have of its own.
//
//go:embed settings.txt
var settingsText string

func settingNames() []string { return strings.Fields(settingsText) }

// MaskURL returns a database URL without anything that may be a password.
func MaskURL(address string) string {
	scheme, _, _ := strings.Cut(address, "://")
	u, err := url.Parse(address)
	if err != nil {
		return maskHosts(scheme, address)
	}
	if strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
		return u.Scheme + "://…" // an unescaped / ? or # in a password moves it here
	}
	if u.RawQuery != "" {
		u.RawQuery = "…" // may hold a password as well
	}
	return u.Redacted()
}

// maskHosts is MaskURL for several hosts with ports of their own.
func maskHosts(scheme, address string) string {
	u, err := parsePostgresURL(address)
	if err != nil || strings.Count(address, "@") > 1 || len(u.hosts) < 2 || defaultHosts(map[string]string{"port": strings.Join(u.ports, ",")}) != nil {
		return scheme + "://…"
	}
	var who, what string
	if u.user != "" {
		who = url.User(u.user).String() + "@"
	}
	if u.password != "" {
		who = strings.TrimSuffix(who, "@") + ":xxxxx@"
	}
	if len(u.parameters) > 0 {
		what = "?…"
	}
	hosts := make([]string, len(u.hosts))
	for i, host := range u.hosts {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		if hosts[i] = host; u.ports[i] != "" {
			hosts[i] += ":" + u.ports[i]
		}
	}
	return scheme + "://" + who + strings.Join(hosts, ",") + "/" + url.PathEscape(u.database) + what
}
