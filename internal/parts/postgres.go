package parts

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	defaultMajor = 18
	superuser    = "postgres"
	stopGrace    = 30 * time.Second
)

// PostgresConfig configures a PostgreSQL server. The zero value is valid.
type PostgresConfig struct {
	Major int // 18 or 16; 0: 18
	// data folder, kept for the next start; a folder used by root must let other users through; "":
	// a folder that Stop removes
	Dir  string
	Port int // 0: a free one
	// true: fsync on, as in production; false: fast, safe unless the machine crashes
	Durable  bool
	Settings map[string]string // more settings for postgresql.conf: name → value
}

// Postgres is a PostgreSQL server that trusts everyone on the loopback interface.
type Postgres struct {
	config  PostgresConfig
	bin     string // its programs, in a folder that its user can reach
	dir     string
	port    int
	user    *account
	cleanUp func()

	mu      sync.Mutex
	process *Process // guarded by mu; the latest start, which may have ended
}

// StartPostgres creates a database cluster if there is none yet, starts a server on it and returns
// once it accepts connections. ctx bounds only that wait: the server then runs until Stop, Kill or
// the end of this process. If this process is root, the server runs as nobody.
func StartPostgres(ctx context.Context, config PostgresConfig) (*Postgres, error) {
	if config.Major == 0 {
		config.Major = defaultMajor
	}
	bin, err := FindPostgres(config.Major)
	if err != nil {
		return nil, err
	}
	server := &Postgres{config: config, user: unprivileged(), port: config.Port}
	if server.bin, err = reachable(bin, server.user); err != nil {
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	if server.port == 0 {
		if server.port, err = FreePort(); err != nil {
			return nil, fmt.Errorf("starting PostgreSQL: %w", err)
		}
	}
	if server.dir, server.cleanUp, err = partDir(config.Dir); err != nil {
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	if err := server.initialise(ctx); err != nil {
		server.cleanUp()
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	if err := server.start(ctx); err != nil {
		server.cleanUp()
		return nil, err
	}
	return server, nil
}

// initialise creates the folders and the cluster unless an earlier start has.
func (s *Postgres) initialise(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(s.dataDir(), "PG_VERSION")); err == nil {
		return nil
	}
	if s.user != nil && !openToAll(s.dir) {
		return fmt.Errorf("%s or a folder above it is closed to the user that PostgreSQL runs as", s.dir)
	}
	for _, dir := range []string{s.dataDir(), s.SocketDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if s.user == nil {
			continue
		}
		if err := os.Chown(dir, s.user.uid, s.user.gid); err != nil {
			return err
		}
	}
	_, err := Run(ctx, Command{
		Path: s.Program("initdb"),
		Args: []string{
			"--pgdata", s.dataDir(), "--username", superuser, "--auth", "trust",
			"--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions",
		},
		Env: postgresEnv(), Dir: s.dir, user: s.user,
	})
	return err
}

// start starts the server on the existing cluster. It must not be called concurrently.
func (s *Postgres) start(ctx context.Context) error {
	settings := map[string]string{
		// in the data folder: a crash leaves nothing behind elsewhere
		"dynamic_shared_memory_type": "mmap",
		"listen_addresses":           "127.0.0.1",
		"port":                       strconv.Itoa(s.port),
		"unix_socket_directories":    s.SocketDir(),
		"max_connections":            "300",
		"fsync":                      "off",
		"log_timezone":               "UTC",
		"timezone":                   "UTC",
	}
	if s.config.Durable {
		settings["fsync"] = "on"
	}
	for name, value := range s.config.Settings {
		settings[name] = value
	}
	args := []string{"-D", s.dataDir()}
	for name, value := range settings {
		args = append(args, "--"+name+"="+value)
	}
	slices.Sort(args[2:])
	process, err := Start(Command{
		Path: s.Program("postgres"), Args: args, Env: postgresEnv(), Dir: s.dir, user: s.user,
		Stop: syscall.SIGINT, // fast shutdown: disconnect the clients
		// takes its child processes along at once; after a SIGKILL they would linger
		Death: syscall.SIGQUIT,
		Wait:  stopGrace,
	})
	if err != nil {
		return err
	}
	if err := awaitReady(ctx, process, s.accepts); err != nil {
		process.Kill()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = process
	return nil
}

// accepts reports whether the server accepts a client.
func (s *Postgres) accepts(ctx context.Context) bool {
	_, err := Run(ctx, Command{
		Path: s.Program("pg_isready"), Env: postgresEnv(), Dir: s.dir,
		Args: []string{
			"--host", "127.0.0.1", "--port", strconv.Itoa(s.port),
			"--username", superuser, "--dbname", "postgres", "--timeout", "2",
		},
	})
	return err == nil
}

// postgresEnv returns the environment of this process without the variables that PostgreSQL's
// programs read as options.
func postgresEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "PG") || strings.HasPrefix(entry, "LC_") || strings.HasPrefix(entry, "LANG")
	})
	return append(env, "LC_ALL=C", "PGCONNECT_TIMEOUT=10")
}

func (s *Postgres) current() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// URL returns the URL of a database on this server, for its superuser and without TLS.
func (s *Postgres) URL(database string) string {
	address := url.URL{
		Scheme: "postgres", User: url.User(superuser), Host: s.Addr(), Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return address.String()
}

// PID returns the process ID of the server's first process, the parent of all others.
func (s *Postgres) PID() int { return s.current().PID() }

// Port returns the server's TCP port.
func (s *Postgres) Port() int { return s.port }

// Addr returns the server's host:port.
func (s *Postgres) Addr() string { return loopback(s.port) }

// SocketDir returns the folder of the server's Unix socket, for clients that take it as a host.
func (s *Postgres) SocketDir() string { return filepath.Join(s.dir, "socket") }

func (s *Postgres) dataDir() string { return filepath.Join(s.dir, "data") }

// Program returns the path of a program of this installation, such as psql or pgbench.
func (s *Postgres) Program(name string) string { return filepath.Join(s.bin, name+exeSuffix) }

// Output returns the server's log since its latest start.
func (s *Postgres) Output() string { return s.current().Output() }

// Done is closed once the server has ended. Restart makes a new channel.
func (s *Postgres) Done() <-chan struct{} { return s.current().Done() }

// Stop shuts the server down, disconnects its clients, and removes its data unless
// PostgresConfig.Dir is set. It returns an error if the server did not end in good order.
func (s *Postgres) Stop() error {
	err := s.current().Stop()
	s.cleanUp()
	return err
}

// Kill ends all processes of the server at once, like a crash. The data stays for Restart.
func (s *Postgres) Kill() { s.current().Kill() }

// Pause stops all processes of the server: connections stay open without an answer, as on a network
// that drops every packet. Resume continues them.
func (s *Postgres) Pause() { s.current().Pause() }

// Resume undoes Pause.
func (s *Postgres) Resume() { s.current().Resume() }

// Restart stops the server if it is running, and starts it again with the same data and port.
func (s *Postgres) Restart(ctx context.Context) error {
	process := s.current()
	select {
	case <-process.Done():
	default:
		if err := process.Stop(); err != nil {
			return fmt.Errorf("restarting PostgreSQL: %w", err)
		}
	}
	return s.start(ctx)
}

// CreateDatabase creates an empty database.
func (s *Postgres) CreateDatabase(ctx context.Context, name string) error {
	return s.client(ctx, "createdb", "--template", "template0", name)
}

// CreateDatabaseFrom copies a database without connections, which is much faster than filling a new
// one.
func (s *Postgres) CreateDatabaseFrom(ctx context.Context, name, template string) error {
	return s.client(ctx, "createdb", "--template", template, name)
}

// DropDatabase drops a database if it exists, and disconnects its clients.
func (s *Postgres) DropDatabase(ctx context.Context, name string) error {
	return s.client(ctx, "dropdb", "--force", "--if-exists", name)
}

// SQL runs statements in a database through psql and returns the rows, one per line, with | between
// columns.
func (s *Postgres) SQL(ctx context.Context, database, statements string) (string, error) {
	return s.run(ctx, "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1",
		"--dbname", database, "--command", statements)
}

func (s *Postgres) client(ctx context.Context, program string, args ...string) error {
	_, err := s.run(ctx, program, args...)
	return err
}

func (s *Postgres) run(ctx context.Context, program string, args ...string) (string, error) {
	connection := []string{"--host", "127.0.0.1", "--port", strconv.Itoa(s.port), "--username", superuser, "--no-password"}
	return Run(ctx, Command{Path: s.Program(program), Args: append(connection, args...), Env: postgresEnv(), Dir: s.dir})
}
