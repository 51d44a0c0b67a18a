// Package demo shows what Keyporter decides: a real Envoy, a small upstream and the service run on
// a throw-away database, and every answer is compared with the expected one.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyporter/keyporter/envoy/bootstrap"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/service"
)

// demo is a whole stack on this machine, deleted at the end: a real Envoy, a small upstream, and
// the service on a SQLite database of its own.
type demo struct {
	out      io.Writer
	config   config.Config
	run      func(ctx context.Context, args []string, stdout, stderr io.Writer) int
	front    string // Envoy's address
	upstream *upstream
	key      string // worthless outside the demo
	cookie   string
	secrets  []secret // all values that must not be printed
}

// secret is a value that the tour replaces by its name.
type secret struct{ name, value string }

// Config is what a demo runs with.
type Config struct {
	Settings config.Config // the demo replaces the addresses and the database
	// Command runs one of Keyporter's commands and returns its exit status.
	Command func(ctx context.Context, args []string, stdout, stderr io.Writer) int
	Out     io.Writer
	Stay    bool // wait at the end until ctx ends, so that the user can send requests
}

// Run starts the stack and walks through the decisions with real requests. A wrong answer is an
// error.
func Run(ctx context.Context, c Config) error {
	dir, err := os.MkdirTemp("", "keyporter-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &demo{out: c.Out, config: c.Settings, run: c.Command}
	stop, err := d.start(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	if err := d.tour(ctx); err != nil {
		return err
	}
	if !c.Stay {
		return nil
	}
	link, err := d.quietly(ctx, "session", "create", "ada", "--link", "--page-url", "http://"+d.front)
	if err != nil {
		return err
	}
	link, _, _ = strings.Cut(link, "\n")
	d.say("\nThe stack stays up until you press Ctrl-C. The page of the user ada, in a browser:\n\n  %s\n\nFrom another terminal:\n\n"+
		"  curl -i -H 'X-API-Key: %s' 'http://%s/api/v1/brands?page=2'\n  curl -i -H 'Cookie: %s' 'http://%s/api'\n",
		link, d.key, d.front, d.cookie, d.front)
	<-ctx.Done()
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

// start starts the stack and returns the function that stops it, in reverse order.
func (d *demo) start(ctx context.Context, dir string) (stop func(), err error) {
	var stops []func()
	stopAll := func() {
		for i := len(stops) - 1; i >= 0; i-- {
			stops[i]()
		}
	}
	defer func() {
		if err != nil {
			stopAll()
		}
	}()
	if err := d.configure(dir); err != nil {
		return nil, err
	}
	if d.upstream, err = startUpstream(); err != nil {
		return nil, err
	}
	stops = append(stops, d.upstream.stop)
	// The page needs the seal key at its start.
	for _, command := range [][]string{{"migrate"}, {"seal", "init", d.config.SealKeyFile}} {
		if _, err := d.quietly(ctx, command...); err != nil {
			return nil, err
		}
	}
	stopServe, err := d.startServe(ctx, filepath.Join(dir, "keyporter.log"))
	if err != nil {
		return nil, err
	}
	stops = append(stops, stopServe)
	proxy, err := d.startEnvoy(ctx)
	if err != nil {
		return nil, err
	}
	stops = append(stops, func() { proxy.Kill() })
	return stopAll, nil
}

// configure chooses free addresses and a database in dir.
func (d *demo) configure(dir string) error {
	if _, err := parts.FindEnvoy(); err != nil {
		return err
	}
	for _, address := range []*string{&d.front, &d.config.ListenGRPC, &d.config.ListenHTTP, &d.config.ListenOps} {
		free, err := parts.FreeAddr()
		if err != nil {
			return err
		}
		*address = free
	}
	d.config.Database = "sqlite://" + filepath.Join(dir, "keyporter.db")
	d.config.SealKeyFile = filepath.Join(dir, "seal.key")
	d.config.InsecureCookies = true // the demo's Envoy speaks no TLS
	d.config.DrainDelay = 0
	return nil
}

// quietly runs a command that is not part of the tour, and returns its output.
func (d *demo) quietly(ctx context.Context, args ...string) (string, error) {
	var out, problems strings.Builder
	if status := d.run(ctx, append(args, "--database", d.config.Database), &out, &problems); status != 0 {
		return "", errors.New(problems.String())
	}
	return out.String(), nil
}

// startServe runs the service and returns once it is ready.
func (d *demo) startServe(ctx context.Context, logFile string) (stop func(), err error) {
	logs, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- service.Run(ctx, service.Config{Settings: d.config, Logs: logs}) }()
	for {
		if _, err := service.AskReady(ctx, d.config); err == nil {
			break
		}
		select {
		case err := <-ended:
			cancel()
			return nil, errors.Join(fmt.Errorf("the service ended early: %w", err), logs.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return func() {
		cancel()
		<-ended
		logs.Close()
	}, nil
}

func (d *demo) startEnvoy(ctx context.Context) (*parts.Envoy, error) {
	printed, err := bootstrap.YAML(bootstrap.Config{
		Routes: d.config.Routes, Authz: d.config.ListenGRPC, Page: d.config.ListenHTTP,
		Upstream: d.upstream.address, Listen: d.front, Admin: "127.0.0.1:0",
	})
	if err != nil {
		return nil, err
	}
	return parts.StartEnvoy(ctx, parts.EnvoyConfig{Bootstrap: printed})
}

// visit is one request of the tour and its expected result.
type visit struct {
	why    string
	method string // GET if empty
	path   string
	header string // one header, "Name: value"
	status int
	body   string // a part of the response body
	// method and path that the upstream received; empty: the request must not arrive
	upstream string
}

// tour creates a plan, an account, a user and a key with the commands of an operator, then sends
// requests with and without the key.
func (d *demo) tour(ctx context.Context) error {
	d.say("Keyporter behind a real Envoy on http://%s, with SQLite.\n", d.front)
	for _, stage := range []func(context.Context) error{d.tourKey, d.tourSession, d.tourRegenerate, d.tourPlan, d.tourMeters} {
		if err := stage(ctx); err != nil {
			return err
		}
	}
	d.say("\nEvery answer was right.\n")
	return nil
}

func (d *demo) tourKey(ctx context.Context) (err error) {
	for _, command := range []string{
		"plan set pro", "plan set free --api-access=false",
		"account set acme --plan pro --kind organization", "user set ada --account acme",
	} {
		if _, err := d.command(ctx, command, ""); err != nil {
			return err
		}
	}
	if d.key, err = d.command(ctx, "key create ada", "$KEY"); err != nil {
		return err
	}
	return d.visits(ctx, d.keyVisits())
}

func (d *demo) keyVisits() []visit {
	forged := d.key[:len(d.key)-4] + "0000"
	if forged == d.key {
		forged = d.key[:len(d.key)-4] + "0001"
	}
	const api = "/api/v1/brands"
	key := "X-API-Key: " + d.key
	return []visit{
		{"The key opens the API, and the upstream sees who but not the key,", "", api + "?page=2", key, 200, "", "GET " + api + "?page=2"},
		{"as a bearer token too,", "", api, "Authorization: Bearer " + d.key, 200, "", "GET " + api},
		{"and in the query, whose other bytes stay as they are.", "", api + "?b=1&api_key=" + d.key + "&a=%20", "", 200, "", "GET " + api + "?b=1&a=%20"},
		{"A localized path is rewritten.", "", "/api/v1/markalar/7", key, 200, "", "GET /api/v1/brands/7"},
		{"No key, no entry.", "", api, "", 401, "unauthorized", ""},
		{"A forged key costs not even a look-up.", "", api, "X-API-Key: " + forged, 401, "unauthorized", ""},
		{"The first place that is not empty wins, even if its key is bad.", "", api + "?api_key=" + d.key, "X-API-Key: wrong", 401, "unauthorized", ""},
		{"A path without a rule is not found.", "", "/admin", key, 404, "not_found", ""},
		{"A path that two programs may read differently is refused,", "", api + ";x/1", key, 400, "bad_request", ""},
		{"and so is a method that the rule does not name.", "POST", "/api/v1/tiktok-shop/credits", key, 405, "method_not_allowed", ""},
		{"A key does not open the routes of a browser session.", "", "/api/product-detail/7", key, 401, "unauthorized", ""},
	}
}

func (d *demo) tourSession(ctx context.Context) (err error) {
	if d.cookie, err = d.command(ctx, "session create ada", "$COOKIE"); err != nil {
		return err
	}
	cookie := "Cookie: " + d.cookie
	return d.visits(ctx, []visit{
		{"A session does, and the upstream does not see its cookie.", "", "/api/product-detail/7", cookie, 200, "", "GET /api/product-detail/7"},
		{"A session opens no API route.", "", "/api/v1/brands", cookie, 401, "unauthorized", ""},
		{"The user's own page, as a program sees it.", "", "/api", cookie, 200, `"user":"ada"`, ""},
		{"It shows the key on request, and the audit records that.", "POST", "/api/-/reveal", cookie, 200, d.key, ""},
		{"A browser without a session is sent to the login.", "", "/api", "Accept: text/html", 303, "", ""},
	})
}

func (d *demo) tourRegenerate(ctx context.Context) error {
	old := d.key
	d.secrets[0].name = "$OLD_KEY"
	key, err := d.command(ctx, "key regenerate ada", "$KEY")
	if err != nil {
		return err
	}
	d.key = key
	if err := d.visits(ctx, []visit{
		{"The old key opens nothing when the command returns,", "", "/api/v1/brands", "X-API-Key: " + old, 401, "unauthorized", ""},
		{"and the new one works.", "", "/api/v1/brands", "X-API-Key: " + d.key, 200, "", "GET /api/v1/brands"},
	}); err != nil {
		return err
	}
	d.say("\nNot by luck: the same again and again, with every replica asked for the old key all the time.")
	_, err = d.command(ctx, "drill revoke --rounds 30", "")
	return err
}

func (d *demo) tourPlan(ctx context.Context) error {
	if _, err := d.command(ctx, "account set acme --plan free", ""); err != nil {
		return err
	}
	if err := d.visits(ctx, []visit{
		{"The plan decides as well.", "", "/api/v1/brands", "X-API-Key: " + d.key, 403, "api_access_required", ""},
	}); err != nil {
		return err
	}
	if _, err := d.command(ctx, "account set acme --plan pro", ""); err != nil {
		return err
	}
	return d.visits(ctx, []visit{
		{"Back on the plan, the key works again.", "", "/api/v1/brands", "X-API-Key: " + d.key, 200, "", "GET /api/v1/brands"},
	})
}

// tourMeters exhausts the credits and the rate limit of a small plan.
func (d *demo) tourMeters(ctx context.Context) (err error) {
	for _, command := range []string{"plan set trial --credits 3", "account set solo --plan trial", "user set bob --account solo"} {
		if _, err := d.command(ctx, command, ""); err != nil {
			return err
		}
	}
	if d.key, err = d.command(ctx, "key create bob", "$BOBS_KEY"); err != nil {
		return err
	}
	const api, credits = "/api/v1/brands", "/api/v1/tiktok-shop/credits"
	key := "X-API-Key: " + d.key
	stages := []struct {
		visits  []visit
		command string
	}{
		{[]visit{
			{"A request costs a credit.", "", api, key, 200, "", "GET " + api},
			{"When the upstream fails,", "", api + "/broken", key, 500, "", "GET " + api + "/broken"},
		}, ""},
		{[]visit{
			{"the credit comes back, because Envoy's access log reports the failure. The balance costs a credit as well.", "", credits, key, 200, `"used":2,"limit":3,"remaining":1`, ""},
			{"The last one,", "", api, key, 200, "", "GET " + api},
			{"and no more.", "", api, key, 429, "credits_exhausted", ""},
		}, "credits grant bob 100"},
		{[]visit{
			{"Granted credits can be used at once.", "", api, key, 200, "", "GET " + api},
		}, "plan set trial --rate-limit 2"},
		{[]visit{
			{"The last minute already has as many requests as that.", "", api, key, 429, "rate_limited", ""},
		}, "ledger verify"},
	}
	for i, stage := range stages {
		if err := d.visits(ctx, stage.visits); err != nil {
			return err
		}
		if i == 0 {
			err = d.refunded(ctx, "bob")
		} else {
			_, err = d.command(ctx, stage.command, "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refunded waits until a user has received a refund: Envoy sends its access log once a second.
func (d *demo) refunded(ctx context.Context, user string) error {
	for range 100 {
		var out, problems strings.Builder
		if status := d.run(ctx, []string{"credits", "show", user, "--output", "json", "--database", d.config.Database}, &out, &problems); status != 0 {
			return errors.New(problems.String())
		}
		var balance struct{ Refunded int64 }
		if err := json.Unmarshal([]byte(out.String()), &balance); err != nil {
			return err
		}
		if balance.Refunded > 0 {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("no credit has come back in 10 s")
}

// command runs one of Keyporter's commands on the demo's database. If it creates a secret, command
// returns that, and from then on prints name in its place.
func (d *demo) command(ctx context.Context, line, name string) (string, error) {
	d.say("\n$ keyporter %s\n", line)
	var out, problems strings.Builder
	args := append(strings.Fields(line), "--database", d.config.Database, "--output", "json")
	if strings.HasPrefix(line, "session") {
		args = append(args, "--insecure-cookies")
	}
	if status := d.run(ctx, args, &out, &problems); status != 0 {
		return "", fmt.Errorf("keyporter %s: exit status %d: %s", line, status, problems.String())
	}
	var made struct{ Key, Cookie string }
	if err := json.Unmarshal([]byte(out.String()), &made); err != nil {
		return "", fmt.Errorf("keyporter %s: reading its JSON: %w", line, err)
	}
	value := made.Key + made.Cookie
	if name != "" {
		d.secrets = append(d.secrets, secret{name, value})
	}
	d.say("%s", d.hide(out.String()))
	return value, nil
}

func (d *demo) visits(ctx context.Context, visits []visit) error {
	for _, v := range visits {
		err := d.visit(ctx, v)
		for try := 0; errors.Is(err, errBusy) && try < 3; try++ {
			d.say("This machine was too busy to decide in time. Once more,")
			time.Sleep(time.Second)
			err = d.visit(ctx, v)
		}
		if err != nil {
			return fmt.Errorf("wrong answer to %s: %w", d.hide(v.curl(d.front)), err)
		}
	}
	return nil
}

func (d *demo) visit(ctx context.Context, v visit) error {
	d.say("\n%s\n$ %s\n", v.why, d.hide(v.curl(d.front)))
	d.upstream.last()
	request, err := http.NewRequestWithContext(ctx, v.verb(), "http://"+d.front+v.path, nil)
	if err != nil {
		return err
	}
	if name, value, ok := strings.Cut(v.header, ": "); ok {
		request.Header.Set(name, value)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	shown := d.hide(strings.TrimSpace(string(body)))
	if runes := []rune(shown); len(runes) > maxShown {
		shown = string(runes[:maxShown]) + "…"
	}
	d.say("%s\n%s\n", response.Status, shown)
	return v.judge(response.StatusCode, string(body), d.upstream.last(), d.key, d.cookie)
}

// maxShown bounds the part of an answer that is shown, in characters.
const maxShown = 400

// errBusy means that Keyporter could not decide within the time-out of a Check.
var errBusy = errors.New("503, which says to retry")

// judge returns an error if the answer is not the expected one.
func (v visit) judge(status int, body, seen, key, cookie string) error {
	first, _, _ := strings.Cut(seen, "\n")
	_, session, _ := strings.Cut(cookie, "=")
	switch {
	case status == http.StatusServiceUnavailable && v.status != status:
		return errBusy
	case status != v.status:
		return fmt.Errorf("status %d, want %d", status, v.status)
	case !strings.Contains(body, v.body):
		return fmt.Errorf("the body has no %q", v.body)
	case first != v.upstream:
		return fmt.Errorf("the upstream saw %q, want %q", first, v.upstream)
	case strings.Contains(seen, key), session != "" && strings.Contains(seen, session):
		return errors.New("the upstream saw a credential")
	}
	return nil
}

func (v visit) verb() string {
	if v.method == "" {
		return http.MethodGet
	}
	return v.method
}

// curl returns the curl command that sends the same request.
func (v visit) curl(front string) string {
	command := "curl -i"
	if v.method != "" {
		command += " -X " + v.method
	}
	if v.header != "" {
		command += fmt.Sprintf(" -H \"%s\"", v.header)
	}
	return fmt.Sprintf("%s \"http://%s%s\"", command, front, v.path)
}

// hide replaces the demo's secrets by their names, so that copied output contains none.
func (d *demo) hide(s string) string {
	for _, secret := range d.secrets {
		s = strings.ReplaceAll(s, secret.value, secret.name)
	}
	return s
}

// upstream is the API behind Envoy. It echoes what it received of the request.
type upstream struct {
	address string
	server  *http.Server
	seen    chan string // holds only the last request
}

func startUpstream() (*upstream, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u := &upstream{address: listener.Addr().String(), seen: make(chan string, 1)}
	u.server = &http.Server{Handler: u, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 5 * time.Second}
	go u.server.Serve(listener)
	return u, nil
}

func (u *upstream) stop() { u.server.Close() }

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request := r.Method + " " + r.RequestURI
	var headers strings.Builder
	if err := r.Header.Write(&headers); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	select {
	case u.seen <- request + "\n" + headers.String():
	default: // no one reads them any more
	}
	if strings.HasSuffix(r.URL.Path, "/broken") {
		w.WriteHeader(http.StatusInternalServerError)
	}
	fmt.Fprintf(w, "upstream: I saw %s of user %s, plan %s\n",
		request, r.Header.Get("x-keyporter-user"), r.Header.Get("x-keyporter-plan"))
}

// last returns what the upstream received since the previous call, or "".
func (u *upstream) last() string {
	select {
	case seen := <-u.seen:
		return seen
	default:
		return ""
	}
}
