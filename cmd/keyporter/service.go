package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keyporter/keyporter/envoy"
)

// stopTime bounds a stop after the drain delay: what is still under way then is cut off.
const stopTime = 10 * time.Second

// service is three listeners and what serves them.
type service struct {
	log        *slog.Logger
	drainDelay time.Duration
	ready      readiness

	grpc *envoy.Server
	page *http.Server
	ops  *http.Server

	// pageListener is nil on a replica that only decides.
	grpcListener, pageListener, opsListener net.Listener
}

// run serves until ctx ends or a listener fails, then stops: first the health checks say so, then
// nothing new is taken, then what is under way ends.
func (s *service) run(ctx context.Context) error {
	running, ctx := errgroup.WithContext(ctx)
	running.Go(func() error { return s.grpc.Serve(s.grpcListener) })
	running.Go(func() error { return serveHTTP(s.ops, s.opsListener) })
	if s.pageListener != nil {
		running.Go(func() error { return serveHTTP(s.page, s.pageListener) })
	}
	running.Go(func() error {
		<-ctx.Done()
		return s.stop()
	})
	s.ready.ready.Store(true)
	s.log.Info("serving", "grpc", s.grpcListener.Addr().String(), "ops", s.opsListener.Addr().String())
	return running.Wait()
}

func (s *service) stop() error {
	s.ready.ready.Store(false)
	s.log.Info("stopping")
	ctx, cancel := context.WithTimeout(context.Background(), s.drainDelay+stopTime)
	defer cancel()
	err := s.grpc.Shutdown(ctx)
	if s.pageListener != nil {
		err = errors.Join(err, s.page.Shutdown(ctx))
	}
	if err = errors.Join(err, s.ops.Shutdown(ctx)); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

func (s *service) listen(c config) (err error) {
	if s.grpcListener, err = listen("grpc", c.ListenGRPC); err != nil {
		return err
	}
	if s.opsListener, err = listen("ops", c.ListenOps); err != nil {
		return err
	}
	if c.ListenHTTP == "off" {
		return nil
	}
	s.pageListener, err = listen("http", c.ListenHTTP)
	return err
}

// closeListeners closes what is not closed yet, so that an early return leaves no socket behind.
func (s *service) closeListeners() {
	for _, l := range []net.Listener{s.grpcListener, s.pageListener, s.opsListener} {
		if l != nil {
			l.Close()
		}
	}
}

// listen opens a listener. A Unix socket that a killed process left behind is removed; one that
// somebody serves is not.
func listen(name, address string) (net.Listener, error) {
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
		// The folder decides who may reach the socket; Envoy may run as another user of its group.
		if err := os.Chmod(address, 0o660); err != nil {
			l.Close()
			return nil, fmt.Errorf("--listen-%s: %w", name, err)
		}
	}
	return l, nil
}

func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil // nothing there, or net.Listen tells what is wrong
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

// newHTTPServer bounds what a slow or hostile client can hold. A regeneration takes over a second.
func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
}

func serveHTTP(server *http.Server, l net.Listener) error {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
