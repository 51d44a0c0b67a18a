package service

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/keyporter/keyporter/internal/config"
)

// listeners are the open ports of a service.
type listeners struct {
	grpc, ops net.Listener
	page      net.Listener // nil on a replica that only decides
	settle    net.Listener // nil if no upstream settles
	admin     net.Listener // nil without the operators' API
}

// openListeners opens all listeners. After an error, those that are open already have to be closed.
func openListeners(c config.Config, log *slog.Logger) (l listeners, err error) {
	if l.grpc, err = listen("grpc", c.ListenGRPC, c.GRPCSocketMode); err != nil {
		return l, err
	}
	if c.GRPCSocketUsers != nil {
		l.grpc = &knownUsers{l.grpc, c.GRPCSocketUsers, log}
	}
	if l.ops, err = listen("ops", c.ListenOps, 0); err != nil {
		return l, err
	}
	if c.ListenHTTP != "off" {
		if l.page, err = listen("http", c.ListenHTTP, 0); err != nil {
			return l, err
		}
	}
	if c.Settles() {
		if l.settle, err = listen("settle", c.ListenSettle, 0); err != nil {
			return l, err
		}
	}
	if c.ServesAdmin() {
		l.admin, err = listen("admin", c.ListenAdmin, 0)
	}
	return l, err
}

// secure puts TLS over the listeners of ports that have it.
func (l *listeners) secure(over func(name string, l net.Listener) net.Listener) {
	l.grpc, l.page, l.ops = over("grpc", l.grpc), over("http", l.page), over("ops", l.ops)
	l.settle, l.admin = over("settle", l.settle), over("admin", l.admin)
}

// close closes those that are open.
func (l *listeners) close() {
	for _, one := range []net.Listener{l.grpc, l.page, l.settle, l.admin, l.ops} {
		if one != nil {
			one.Close()
		}
	}
}

// listen opens a listener. It removes a Unix socket left by a killed process, but not one that is
// being served. A new socket gets the permissions of mode.
func listen(name, address string, mode fs.FileMode) (net.Listener, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, address = "unix", path
		if err := removeStaleSocket(path); err != nil {
			return nil, fmt.Errorf("--listen-%s: %w", name, err)
		}
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("--listen-%s: %w: choose another address, or end the program that has it", name, err)
	}
	if network == "unix" {
		// The folder controls access to the socket; Envoy may run as another user in its group.
		if err := os.Chmod(address, mode); err != nil {
			l.Close()
			return nil, fmt.Errorf("--listen-%s: %w", name, err)
		}
	}
	return l, nil
}

func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil // nothing to remove, or net.Listen reports the problem
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return fmt.Errorf("another process serves %s", path)
	}
	return os.Remove(path)
}

// addrOf returns the address of l, or "off" if it is nil.
func addrOf(l net.Listener) string {
	if l == nil {
		return "off"
	}
	return l.Addr().String()
}

// newHTTPServer bounds the resources of slow or hostile clients. A regeneration can take as long as
// the lease of a silent replica. Messages of the server itself are logged as warnings.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
}

// newGuestServer is newHTTPServer for a listener that has other clients than Envoy.
func newGuestServer(h http.Handler, g *guests, log *slog.Logger) *http.Server {
	server := newHTTPServer(h, log)
	server.ConnState, server.ConnContext = g.note, g.introduce
	return server
}

func serveHTTP(server *http.Server, l net.Listener) error {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
