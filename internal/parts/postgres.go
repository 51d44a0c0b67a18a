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

// PostgresConfig says how to run a PostgreSQL server. The zero value does.
type PostgresConfig struct {
	Major    int               // 18 or 16; 0: 18
	Dir      string            // where it keeps its data, found again at the next start; root's must let nobody through; "": a folder that Stop removes
	Port     int               // 0: a free one
	Durable  bool              // true: fsync on, as in production; false: fast, and safe against all but a crash of the machine
	Settings map[string]string // more settings for postgresql.conf: name → value
}

// Postgres is a PostgreSQL server that trusts everyone on the loopback interface.
type Postgres struct {
	config  PostgresConfig
	bin     string // its programs, in a place its user can reach
	dir     string
	port    int
	user    *account
	cleanUp func()

	mu      sync.Mutex
	process *Process // guarded by mu; the latest start, perhaps ended
}

// StartPostgres makes a database cluster if there is none yet, starts a server on it and returns when
// it accepts connections. ctx bounds only that wait: the server then runs until Stop, Kill or the end
// of this process. When this process is root, the server runs as nobody.
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

// initialise makes the folders and the cluster, unless an earlier start has.
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

// start starts the server on the existing cluster. Only one goroutine may be in it.
func (s *Postgres) start(ctx context.Context) error {
	settings := map[string]string{
		"dynamic_shared_memory_type": "mmap", // in the data folder: a crash leaves nothing elsewhere
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
		Stop:  syscall.SIGINT,  // end now, but in order: do not wait for the clients to leave
		Death: syscall.SIGQUIT, // its processes end with it, which after a SIGKILL they would only in time
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

// accepts tells whether the server lets a client in.
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

// postgresEnv is this process's environment less what PostgreSQL's programs would read as options.
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

// URL returns the address of a database on this server for a client, as its superuser and without TLS.
func (s *Postgres) URL(database string) string {
	address := url.URL{
		Scheme: "postgres", User: url.User(superuser), Host: s.Addr(), Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return address.String()
}

// PID returns the operating system's number for its first process, which has started all others.
func (s *Postgres) PID() int { return s.current().PID() }

// Port returns the TCP port it listens on.
func (s *Postgres) Port() int { return s.port }

// Addr returns its host:port.
func (s *Postgres) Addr() string { return loopback(s.port) }

// SocketDir returns the folder of its Unix socket, for clients that name one as their host.
func (s *Postgres) SocketDir() string { return filepath.Join(s.dir, "socket") }

func (s *Postgres) dataDir() string { return filepath.Join(s.dir, "data") }

// Program returns the path of one of the programs that belong to this server, such as psql or pgbench.
func (s *Postgres) Program(name string) string { return filepath.Join(s.bin, name+exeSuffix) }

// Output returns the server's log since its latest start.
func (s *Postgres) Output() string { return s.current().Output() }

// Done is closed when the server has ended; after Restart there is another one.
func (s *Postgres) Done() <-chan struct{} { return s.current().Done() }

// Stop ends the server in order, disconnecting its clients, and removes its data unless
// PostgresConfig.Dir named the folder. The error says that it did not end well.
func (s *Postgres) Stop() error {
	err := s.current().Stop()
	s.cleanUp()
	return err
}

// Kill ends all processes of the server at once, as a crash would. The data stays for Restart.
func (s *Postgres) Kill() { s.current().Kill() }

// Pause stops all processes of the server where they are: connections stay open and nobody answers,
// as with a network that swallows everything. Resume lets them go on.
func (s *Postgres) Pause() { s.current().Pause() }

// Resume undoes Pause.
func (s *Postgres) Resume() { s.current().Resume() }

// Restart ends the server if it runs and starts it again with the same data on the same port.
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

// CreateDatabase makes an empty database.
func (s *Postgres) CreateDatabase(ctx context.Context, name string) error {
	return s.client(ctx, "createdb", "--template", "template0", name)
}

// CreateDatabaseFrom makes a copy of a database to which nobody is connected, which is much faster
// than filling a new one.
func (s *Postgres) CreateDatabaseFrom(ctx context.Context, name, template string) error {
	return s.client(ctx, "createdb", "--template", template, name)
}

// DropDatabase removes a database, if it is there, and throws out whoever is connected to it.
func (s *Postgres) DropDatabase(ctx context.Context, name string) error {
	return s.client(ctx, "dropdb", "--force", "--if-exists", name)
}

// SQL runs statements in a database through psql and returns the rows, one a line, with | between columns.
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
