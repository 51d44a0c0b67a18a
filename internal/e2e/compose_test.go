package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
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

// The compose stack works as it is written. There is no container engine in a test, so the services
// run natively: each one's command, environment, mounts, dependencies and health check as in the
// file, its image mapped to the real program, its name to a loopback address of its own. Then what
// the README says to do is done.
func TestComposeStack(t *testing.T) {
	c := newComposition(t)
	c.up()
	key := regexp.MustCompile(`wh_[0-9a-f]{48}`).FindString(c.outputs["key"])
	if key == "" {
		t.Fatalf("the service key printed no key: %q", c.outputs["key"])
	}
	status, body := c.get("X-API-Key", key)
	if status != 200 || !strings.Contains(body, "GET /api/v1/brands") || strings.Contains(body, key) {
		t.Errorf("with the key: %d %s, want 200 from the upstream, without the key", status, strings.ReplaceAll(body, key, "KEY"))
	}
	if status, body := c.get("X-API-Key", "wrong"); status != 401 || body != bodies["unauthorized"] {
		t.Errorf("with a wrong key: %d %s, want 401", status, body)
	}
	for _, service := range []string{"seal", "plan", "account", "user"} {
		if err := c.once(service); err != nil {
			t.Errorf("a second `docker compose up`: %v", err)
		}
	}
	if err := c.once("key"); err == nil || !strings.Contains(c.outputs["key"], "exists already") {
		t.Errorf("a second `docker compose up` prints %q for key, want that there is one already", c.outputs["key"])
	}
}

// Nothing but Envoy can be reached from outside, and what runs for long is watched and hardened.
func TestComposeExposesOnlyEnvoy(t *testing.T) {
	project := loadComposition(t)
	for _, s := range project.Services {
		if (len(s.Ports) > 0) != (s.Name == "envoy") {
			t.Errorf("%s publishes %d ports", s.Name, len(s.Ports))
		}
		if s.NetworkMode != "" || s.Privileged {
			t.Errorf("%s leaves its own network or is privileged", s.Name)
		}
		if (s.Build != nil) != (s.Name == "keyporter") {
			t.Errorf("%s: the image must be built by the service keyporter alone", s.Name)
		}
		if s.Restart != "no" && s.HealthCheck == nil {
			t.Errorf("%s runs for long without a health check", s.Name)
		}
		if s.Name != "postgres" && (!s.ReadOnly || !slices.Contains(s.CapDrop, "ALL")) {
			t.Errorf("%s may write to its file system or keeps capabilities", s.Name)
		}
		for name, value := range s.Environment {
			if value != nil && strings.HasPrefix(*value, "tcp://") {
				t.Errorf("%s: %s=%s", s.Name, name, *value)
			}
		}
	}
	keyporter, err := project.GetService("keyporter")
	if err != nil {
		t.Fatal(err)
	}
	if grpc := keyporter.Environment["KEYPORTER_LISTEN_GRPC"]; grpc == nil || !strings.HasPrefix(*grpc, "unix://") {
		t.Errorf("the authorizer listens on %v, want a Unix socket that only Envoy has", grpc)
	}
}

func loadComposition(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{composeFile}, cli.WithName("keyporter"), cli.WithResolvedPaths(true))
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
	outputs   map[string]string // of the services that run once
}

func newComposition(t *testing.T) *composition {
	dir, err := os.MkdirTemp("", "kp") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &composition{
		t: t, project: loadComposition(t), dir: dir,
		addresses: map[string]string{}, started: map[string]bool{}, outputs: map[string]string{},
	}
	for i, name := range c.project.ServiceNames() {
		// Two runs on one machine must not meet.
		c.addresses[name] = fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()%128, os.Getpid()/128%256, i+1)
	}
	return c
}

// up starts every service when what it depends on is as it must be.
func (c *composition) up() {
	c.t.Helper()
	for len(c.started) < len(c.project.Services) {
		before := len(c.started)
		for _, name := range c.project.ServiceNames() {
			service, err := c.project.GetService(name)
			if err != nil {
				c.t.Fatal(err)
			}
			if c.started[name] || !c.mayStart(service) {
				continue
			}
			c.start(service)
			c.started[name] = true
		}
		if len(c.started) == before {
			c.t.Fatalf("the dependencies go round in a circle: only %v can start", c.started)
		}
	}
}

func (c *composition) mayStart(service types.ServiceConfig) bool {
	for name := range service.DependsOn {
		if !c.started[name] {
			return false
		}
	}
	return true
}

// start starts a service and waits until it is healthy or, where it runs once, has succeeded.
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
		if err := c.once(service.Name); err != nil {
			c.t.Fatal(err)
		}
		return
	default:
		c.run(service)
	}
	check := service.HealthCheck.Test
	eventually(c.t, 30*time.Second, service.Name+" is healthy", func() error {
		_, err := parts.Run(c.t.Context(), c.command(service, check[1:]))
		return err
	})
}

// startPostgres does what the image's entry point does.
func (c *composition) startPostgres(service types.ServiceConfig) {
	c.t.Helper()
	c.postgres = partstest.StartPostgres(c.t, parts.PostgresConfig{Major: 18})
	user, password, database := *service.Environment["POSTGRES_USER"], *service.Environment["POSTGRES_PASSWORD"], *service.Environment["POSTGRES_DB"]
	for _, statement := range []string{
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", user, password),
		fmt.Sprintf("CREATE DATABASE %s OWNER %s", database, user),
	} {
		if out, err := c.postgres.SQL(c.t.Context(), "postgres", statement); err != nil {
			c.t.Fatalf("%v: %s", err, out)
		}
	}
}

// startEcho stands for the echo image: it answers with what it was sent.
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
	c.t.Cleanup(func() {
		process.Stop()
		if c.t.Failed() {
			c.t.Logf("%s wrote:\n%s", service.Name, process.Output())
		}
	})
}

// once runs a service that ends by itself and keeps what it printed.
func (c *composition) once(name string) error {
	service, err := c.project.GetService(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	out, err := parts.Run(ctx, c.command(service, service.Command))
	c.outputs[name] = out
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// command maps a command line of a service to this machine.
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
		if args[0] == "keyporter" { // a health check names the program, a command is after the entry point
			command.Args = args[1:]
		}
		command.Env = append(command.Env, "KEYPORTER_LISTEN_OPS="+c.addresses["keyporter"]+":9090")
	default: // Envoy; another one may run on this machine
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
		if name == "postgres" && c.postgres != nil {
			text = strings.ReplaceAll(text, "postgres:5432", c.postgres.Addr())
		}
		text = regexp.MustCompile(`\b`+name+`:(\d)`).ReplaceAllString(text, address+":$1")
		text = strings.ReplaceAll(text, fmt.Sprintf("address: %q", name), fmt.Sprintf("address: %q", address))
	}
	return text
}

// volume is the folder of a named volume.
func (c *composition) volume(name string) string {
	c.t.Helper()
	dir := filepath.Join(c.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// copied is a copy of a mounted file with its addresses mapped. It is made once: a health check must not
// write it again while the service reads it.
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

// get sends the README's request to the port that is published.
func (c *composition) get(name, value string) (int, string) {
	c.t.Helper()
	envoy, err := c.project.GetService("envoy")
	if err != nil {
		c.t.Fatal(err)
	}
	url := fmt.Sprintf("http://%s:%d/api/v1/brands", c.addresses["envoy"], envoy.Ports[0].Target)
	request, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	request.Header.Set(name, value)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if _, err := io.Copy(&body, response.Body); err != nil {
		c.t.Fatal(err)
	}
	return response.StatusCode, body.String()
}
