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
	running    *errgroup.Group // its context ends when one of the listeners fails

	grpc *envoy.Server
	page *http.Server
	ops  *http.Server

	// pageListener is nil on a replica that only decides.
	grpcListener, pageListener, opsListener net.Listener
}

// run serves until ctx ends or a listener fails, then stops: first the health checks say so, then
// nothing new is taken, then what is under way ends.
func (s *service) run(ctx context.Context) error {
	s.running.Go(func() error { return s.grpc.Serve(s.grpcListener) })
	if s.pageListener != nil {
		s.running.Go(func() error { return serveHTTP(s.page, s.pageListener) })
	}
	s.running.Go(func() error {
		<-ctx.Done()
		return s.stop()
	})
	s.ready.ready.Store(true)
	page := "off"
	if s.pageListener != nil {
		page = s.pageListener.Addr().String()
	}
	s.log.Info("serving", "grpc", s.grpcListener.Addr().String(), "page", page, "ops", s.opsListener.Addr().String())
	return s.running.Wait()
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

// close ends what is left after an early return, so that no socket and no goroutine stays behind.
func (s *service) close() {
	if s.ops != nil {
		s.ops.Close()
	}
	for _, l := range []net.Listener{s.grpcListener, s.pageListener, s.opsListener} {
		if l != nil {
			l.Close()
		}
	}
	s.running.Wait() // the error is the one that run has returned, or comes from closing
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
