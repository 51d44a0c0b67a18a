package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/keyporter/keyporter/internal/parts"
	"github.com/keyporter/keyporter/internal/parts/partstest"
)

const composeFile = "../../docker-compose.yaml"

// The compose stack works as written. Tests have no container engine, so the services run natively:
// each with its command, environment, mounts, dependencies and health check from the file, its
// image mapped to the real program, and its name to a loopback address of its own. The test then
// follows the README, and runs `docker compose up` once more, which must succeed as well.
func TestComposeStack(t *testing.T) {
	t.Parallel()
	c := newComposition(t)
	c.up()
	out, err := c.once("key")
	key := keyPattern.FindString(out)
	if err != nil || key == "" {
		t.Fatalf("the service key printed no key: %q, %v", out, err)
	}
	c.checkAPI(key)
	c.checkPage(key)
	c.up()
	c.checkMetrics()
	for name, out := range c.outputs {
		if keyPattern.MatchString(out) {
			t.Errorf("a key is in the log of %s, which is kept", name)
		}
	}
	if out, err := c.once("key"); err == nil || !strings.Contains(out, "exists already: replace it with `keyporter key regenerate demo`") {
		t.Errorf("asking for another key prints %q, want that there is one already, and what to do", out)
	}
}

const readme = "/api/v1/brands" // path of the README's request

var keyPattern = regexp.MustCompile(`wh_[0-9a-f]{48}`)

// checkAPI sends the README's request: with a key, the upstream answers it and does not see the
// key.
func (c *composition) checkAPI(key string) {
	c.t.Helper()
	for name, a := range map[string]answer{
		"in the header": c.ask("GET", readme, "X-API-Key: "+key),
		"in the query":  c.ask("GET", readme+"?page=2&api_key="+key),
	} {
		if a.status != 200 || !strings.Contains(a.body, "GET "+readme) || strings.Contains(a.body, key) {
			c.t.Errorf("a key %s: %d %s, want 200 from the upstream, without the key", name, a.status, strings.ReplaceAll(a.body, key, "KEY"))
		}
	}
	for name, a := range map[string]answer{"no key": c.ask("GET", readme), "a wrong key": c.ask("GET", readme, "X-API-Key: wrong")} {
		if a.status != 401 || a.body != bodies["unauthorized"] {
			c.t.Errorf("%s: %d %s, want 401", name, a.status, a.body)
		}
	}
}

// checkPage replaces the key on the page, with a session from `docker compose run`.
// TestRegeneratingOnThePage covers the requests that the page rejects.
func (c *composition) checkPage(old string) {
	c.t.Helper()
	session, err := c.once("key", "session", "create", "demo")
	if err != nil {
		c.t.Fatal(err)
	}
	session, _, _ = strings.Cut(session, "\n")
	a := c.ask("POST", "/api/regenerate", "Cookie: "+session)
	made := keyPattern.FindString(a.body)
	if a.status != 200 || made == "" || !strings.Contains(a.body, `"confirmed":true`) {
		c.t.Fatalf("regenerating: %d %s, want 200 and a confirmed new key", a.status, a.body)
	}
	for key, want := range map[string]int{old: 401, made: 200} {
		if a := c.ask("GET", readme, "X-API-Key: "+key); a.status != want {
			c.t.Errorf("a key after the regeneration: %d, want %d", a.status, want)
		}
	}
	_, secret, _ := strings.Cut(session, "=")
	for _, name := range []string{"keyporter", "envoy"} {
		mustNotContain(c.t, "the output of "+name, c.processes[name].Output(), old, made, secret)
	}
}

// checkMetrics reads the metrics like another container.
func (c *composition) checkMetrics() {
	c.t.Helper()
	if listen := c.project.Services["keyporter"].Environment["KEYPORTER_LISTEN_OPS"]; listen == nil || *listen != "0.0.0.0:9013" {
		c.t.Errorf("the metrics are at %v, where no other container reaches them", listen)
	}
	response, err := http.Get("http://" + c.addresses["keyporter"] + ":9013/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	if text, err := io.ReadAll(response.Body); err != nil || !strings.Contains(string(text), "keyporter_build_info{") {
		c.t.Errorf("the metrics: %s, %v", response.Status, err)
	}
}

// Only Envoy is reachable from outside, and PostgreSQL only by Keyporter. Long-running services
// have health checks, are hardened and restart after a failure.
func TestComposeExposesOnlyEnvoy(t *testing.T) {
	t.Parallel()
	project := loadComposition(t)
	for _, s := range project.Services {
		if (len(s.Ports) > 0) != (s.Name == "envoy") {
			t.Errorf("%s publishes %d ports", s.Name, len(s.Ports))
		}
		if s.NetworkMode != "" || s.Privileged || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s leaves its own network, is privileged or may become so", s.Name)
		}
		if (s.Build != nil) != (s.Name == "keyporter") {
			t.Errorf("%s: the image must be built by the service keyporter alone", s.Name)
		}
		if s.Restart != "no" && (s.Restart != "unless-stopped" || s.HealthCheck == nil || s.HealthCheck.Disable) {
			t.Errorf("%s runs for long without a health check, or is not started again", s.Name)
		}
		if s.Name != "postgres" && (!s.ReadOnly || !slices.Contains(s.CapDrop, "ALL")) {
			t.Errorf("%s may write to its file system or keeps capabilities", s.Name)
		}
		if _, reaches := s.Networks["database"]; reaches != (s.Name == "postgres" || s.Image == "keyporter:local") {
			t.Errorf("%s reaches the network of the database: %v", s.Name, reaches)
		}
	}
	if !project.Networks["database"].Internal {
		t.Error("the network of the database is open to outside")
	}
}

// Envoy and the authorizer share a socket that only they can open.
func TestComposeSharesOneSocket(t *testing.T) {
	t.Parallel()
	project := loadComposition(t)
	keyporter, envoy := project.Services["keyporter"], project.Services["envoy"]
	grpc := keyporter.Environment["KEYPORTER_LISTEN_GRPC"]
	if grpc == nil || !strings.HasPrefix(*grpc, "unix:///run/keyporter/") {
		t.Errorf("the authorizer listens on %v, want a Unix socket", grpc)
	}
	if keyporter.User == "" || keyporter.User != envoy.User {
		t.Errorf("the authorizer runs as %q, Envoy as %q, want the same user", keyporter.User, envoy.User)
	}
	var have []string
	for _, s := range project.Services {
		if slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Source == "authz" && v.Target == "/run/keyporter" }) {
			have = append(have, s.Name)
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, []string{"envoy", "keyporter"}) {
		t.Errorf("%v have the socket, want Envoy and the authorizer", have)
	}
}

// No service starts before its dependencies work, and `up --wait` succeeds: compose treats the end
// of a command as a failure unless a service waits for its success. Health checks are frequent
// during a start and rare afterwards.
func TestComposeWaitsForWhatIsNeeded(t *testing.T) {
	t.Parallel()
	project := loadComposition(t)
	waitedFor := map[string]bool{}
	for _, s := range project.Services {
		for name := range s.DependsOn {
			waitedFor[name] = waitedFor[name] || isPartOfUp(s)
		}
	}
	for _, s := range project.Services {
		if check := s.HealthCheck; s.Restart == "no" && isPartOfUp(s) && !waitedFor[s.Name] {
			t.Errorf("nothing waits for the end of %s, so that `up --wait` fails", s.Name)
		} else if s.Restart != "no" && (check.StartPeriod == nil || check.StartInterval == nil || *check.StartInterval > types.Duration(time.Second) || *check.Interval < types.Duration(5*time.Second)) {
			t.Errorf("%s is asked for its health too often, or too seldom while it starts", s.Name)
		}
		for name, dependency := range s.DependsOn {
			want := types.ServiceConditionHealthy
			if project.Services[name].Restart == "no" {
				want = types.ServiceConditionCompletedSuccessfully
			}
			if dependency.Condition != want {
				t.Errorf("%s waits for %s to be %s, want %s", s.Name, name, dependency.Condition, want)
			}
		}
	}
}

// The second file that the page shows gives a configuration of one's own to every service that
// makes keys: with the default prefix in one of them, it would make keys that the others refuse.
func TestComposeGivesTheConfigurationToAllThatMakeKeys(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/docker-compose.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "  ```yaml\n")
	block, _, _ = strings.Cut(block, "  ```")
	override := filepath.Join(t.TempDir(), "docker-compose.override.yaml")
	if err := os.WriteFile(override, []byte(block), 0o600); err != nil {
		t.Fatal(err)
	}
	project := loadComposition(t, override)
	for _, name := range []string{"keyporter", "key"} {
		s := project.Services[name]
		config := s.Environment["KEYPORTER_CONFIG"]
		if config == nil || !slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool {
			return filepath.Base(v.Source) == "keyporter.yaml" && v.Target == *config && v.ReadOnly
		}) {
			t.Errorf("%s reads the configuration %v, and mounts %v", name, config, s.Volumes)
		}
		if s.Environment["KEYPORTER_DATABASE"] == nil {
			t.Errorf("%s has no database any more", name)
		}
	}
	if n := len(project.Services["keyporter"].Volumes); n != 3 {
		t.Errorf("keyporter mounts %d volumes, want its two and the configuration", n)
	}
}

// The build context contains all tracked files, or Go would mark the version as modified, and no
// file with secrets.
func TestDockerignoreLeavesOutNothingTracked(t *testing.T) {
	t.Parallel()
	ignore, err := os.ReadFile("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	for line := range strings.Lines(string(ignore)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			patterns = append(patterns, line)
		}
	}
	if !slices.Contains(patterns, ".env") {
		t.Error(".env is part of the context")
	}
	list := exec.Command("git", append([]string{"ls-files", "--"}, patterns...)...)
	list.Dir = "../.."
	tracked, err := list.Output()
	if err != nil {
		t.Skipf("not a checkout: %v", err)
	}
	if len(tracked) > 0 {
		t.Errorf("git tracks what the context leaves out:\n%s", tracked)
	}
}

// isPartOfUp reports whether `docker compose up` starts a service.
func isPartOfUp(s types.ServiceConfig) bool { return len(s.Profiles) == 0 }

// password is a difficult value for the password in .env.
const password = `p@ss/w:r d#?%&'"$HOME`

// loadComposition reads the compose file, and others that change it.
func loadComposition(t *testing.T, more ...string) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions(append([]string{composeFile}, more...), cli.WithName("keyporter"), cli.WithResolvedPaths(true), cli.WithProfiles([]string{"*"}),
		cli.WithEnv([]string{"POSTGRES_PASSWORD=" + password}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// composition is a compose project that runs natively.
type composition struct {
	t         *testing.T
	project   *types.Project
	dir       string
	addresses map[string]string // service → its loopback address
	postgres  *parts.Postgres
	started   map[string]bool
	processes map[string]*parts.Process
	outputs   map[string]string // output of the services that run once
}

func newComposition(t *testing.T) *composition {
	dir, err := os.MkdirTemp("", "kp") // short, because a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &composition{
		t: t, project: loadComposition(t), dir: dir,
		addresses: map[string]string{}, started: map[string]bool{}, processes: map[string]*parts.Process{}, outputs: map[string]string{},
	}
	for i, name := range c.project.ServiceNames() {
		// Two runs on one machine must not share addresses.
		c.addresses[name] = fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()%128, os.Getpid()/128%256, i+1)
	}
	return c
}

// up starts every service once its dependencies meet their conditions. Running services stay.
func (c *composition) up() {
	c.t.Helper()
	ready := map[string]bool{}
	for before := -1; len(ready) > before; {
		before = len(ready)
		for _, name := range c.project.ServiceNames() {
			service := c.project.Services[name]
			if ready[name] || !isPartOfUp(service) || !mayStart(service, ready) {
				continue
			}
			if !c.started[name] || service.Restart == "no" {
				c.start(service)
			}
			c.started[name], ready[name] = true, true
		}
	}
	for _, service := range c.project.Services {
		if isPartOfUp(service) && !ready[service.Name] {
			c.t.Fatalf("%s never starts: only %v do", service.Name, ready)
		}
	}
}

func mayStart(service types.ServiceConfig, ready map[string]bool) bool {
	for name := range service.DependsOn {
		if !ready[name] {
			return false
		}
	}
	return true
}

// start starts a service and waits until it is healthy or, if it runs once, has succeeded.
func (c *composition) start(service types.ServiceConfig) {
	c.t.Helper()
	image, _, _ := strings.Cut(service.Image, ":")
	switch {
	case image == "postgres":
		c.startPostgres(service)
	case image == "mendhak/http-https-echo":
		c.startEcho(service)
		return
	case service.Restart == "no":
		out, err := c.once(service.Name)
		if err != nil {
			c.t.Fatal(err)
		}
		c.outputs[service.Name] += out
		return
	default:
		c.run(service)
	}
	check := service.HealthCheck.Test
	partstest.EventuallyNil(c.t, service.Name+" is healthy", func() error {
		_, err := parts.Run(c.t.Context(), c.command(service, check[1:]))
		return err
	})
}

// startPostgres does what the image's entry point does, and requires the password like the image.
func (c *composition) startPostgres(service types.ServiceConfig) {
	c.t.Helper()
	access, err := os.CreateTemp("", "keyporter-hba-")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { os.Remove(access.Name()) })
	_, err = access.WriteString("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
	if err = errors.Join(err, access.Chmod(0o644), access.Close()); err != nil { // the server may run as another user
		c.t.Fatal(err)
	}
	c.postgres = partstest.StartPostgres(c.t, parts.PostgresConfig{Major: 18, Settings: map[string]string{"hba_file": access.Name()}})
	user, password, database := *service.Environment["POSTGRES_USER"], *service.Environment["POSTGRES_PASSWORD"], *service.Environment["POSTGRES_DB"]
	for _, statement := range []string{
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", user, strings.ReplaceAll(password, "'", "''")),
		fmt.Sprintf("CREATE DATABASE %s OWNER %s", database, user),
	} {
		if out, err := c.postgres.SQL(c.t.Context(), "postgres", statement); err != nil {
			c.t.Fatalf("%v: %s", err, out)
		}
	}
}

// startEcho replaces the echo image: it answers with the request it received.
func (c *composition) startEcho(service types.ServiceConfig) {
	c.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(c.addresses[service.Name], *service.Environment["HTTP_PORT"]))
	if err != nil {
		c.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %v", r.Method, r.RequestURI, r.Header)
	})}
	go server.Serve(l)
	c.t.Cleanup(func() { server.Close() })
}

func (c *composition) run(service types.ServiceConfig) {
	c.t.Helper()
	process, err := parts.Start(c.command(service, service.Command))
	if err != nil {
		c.t.Fatal(err)
	}
	c.processes[service.Name] = process
	c.t.Cleanup(func() {
		process.Stop()
		if c.t.Failed() {
			c.t.Logf("%s wrote:\n%s", service.Name, process.Output())
		}
	})
}

// once runs a one-off service, or another command line in its container as `docker compose run`
// does, and returns its output.
func (c *composition) once(name string, line ...string) (string, error) {
	c.t.Helper()
	service, err := c.project.GetService(name)
	if err != nil {
		return "", err
	}
	if len(line) == 0 {
		line = service.Command
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	out, err := parts.Run(ctx, c.command(service, line))
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return out, nil
}

// command maps a service's command line to this machine.
func (c *composition) command(service types.ServiceConfig, line []string) parts.Command {
	c.t.Helper()
	args := make([]string, len(line))
	for i, arg := range line {
		args[i] = c.rewrite(service, arg)
	}
	command := parts.Command{Args: args, Dir: c.dir, Env: []string{"PATH=" + os.Getenv("PATH")}}
	for name, value := range service.Environment {
		if value != nil {
			command.Env = append(command.Env, name+"="+c.rewrite(service, *value))
		}
	}
	switch image, _, _ := strings.Cut(service.Image, ":"); {
	case args[0] == "bash":
		command.Path, command.Args = "/bin/bash", args[1:]
	case image == "postgres":
		host, port, _ := net.SplitHostPort(c.postgres.Addr())
		command.Path, command.Args = c.postgres.Program(args[0]), append(args[1:], "--host", host, "--port", port)
	case image == "keyporter":
		command.Path = keyporter(c.t)
		// a health check names the program; a command follows the entry point
		if args[0] == "keyporter" {
			command.Args = args[1:]
		}
	default: // Envoy; another one may be running on this machine
		command.Path, command.Args = partstest.Envoy(c.t), append(args[1:], "--disable-hot-restart")
	}
	return command
}

// rewrite maps addresses, service names and mounts in a text to this machine.
func (c *composition) rewrite(service types.ServiceConfig, text string) string {
	c.t.Helper()
	for _, volume := range service.Volumes {
		if volume.Type == "bind" {
			text = strings.ReplaceAll(text, volume.Target, c.copied(service, volume.Source))
			continue
		}
		text = strings.ReplaceAll(text, volume.Target, c.volume(volume.Source))
	}
	for _, own := range []string{"127.0.0.1", "0.0.0.0"} {
		text = strings.ReplaceAll(text, own, c.addresses[service.Name])
	}
	for name, address := range c.addresses {
		if !c.reaches(service, name) {
			continue
		}
		if name == "postgres" && c.postgres != nil {
			text = strings.ReplaceAll(text, "postgres:5432", c.postgres.Addr())
		}
		text = regexp.MustCompile(`\b`+name+`:(\d)`).ReplaceAllString(text, address+":$1")
		text = strings.ReplaceAll(text, fmt.Sprintf("address: %q", name), fmt.Sprintf("address: %q", address))
	}
	return text
}

// reaches reports whether a service shares a network with another one, and therefore resolves its
// name.
func (c *composition) reaches(service types.ServiceConfig, name string) bool {
	for network := range c.project.Services[name].Networks {
		if _, common := service.Networks[network]; common {
			return true
		}
	}
	return false
}

// volume returns the folder of a named volume.
func (c *composition) volume(name string) string {
	c.t.Helper()
	dir := filepath.Join(c.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// copied returns a copy of a mounted file with its addresses mapped. The copy is made only once: a
// health check must not rewrite it while the service reads it.
func (c *composition) copied(service types.ServiceConfig, source string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, service.Name+"-"+filepath.Base(source))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	text, err := os.ReadFile(source)
	if err != nil {
		c.t.Fatal(err)
	}
	mapped := service
	mapped.Volumes = slices.DeleteFunc(slices.Clone(service.Volumes), func(v types.ServiceVolumeConfig) bool { return v.Type == "bind" })
	if err := os.WriteFile(path, []byte(c.rewrite(mapped, string(text))), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// ask sends a request to Envoy's published port, and repeats it while it gets a 503: the stack has
// the time-outs of production, and a busy machine may need more.
func (c *composition) ask(method, target string, header ...string) (a answer) {
	c.t.Helper()
	there := &connection{address: fmt.Sprintf("%s:%d", c.addresses["envoy"], c.project.Services["envoy"].Ports[0].Target)}
	defer there.close()
	partstest.EventuallyNil(c.t, method+" "+target+" is decided", func() (err error) {
		if a, err = there.send(request{method: method, target: target, header: header}); err == nil && a.status == 503 {
			err = errors.New(a.body)
		}
		return err
	})
	return a
}
