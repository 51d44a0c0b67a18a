package parts

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Upstream is a running web application built on a third-party framework.
type Upstream struct {
	*Process
	addr string
}

// Addr returns the application's host:port.
func (u *Upstream) Addr() string { return u.addr }

// StartExpress runs a Node.js program that can require("express"), and returns once it listens. The
// arguments of the program are a port of 127.0.0.1 to listen on, and args. ctx bounds only that
// wait.
func StartExpress(ctx context.Context, program string, args ...string) (*Upstream, error) {
	modules, err := FindExpress()
	if err != nil {
		return nil, err
	}
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, &MissingError{Part: "Node.js"}
	}
	return startUpstream(ctx, Command{Path: node, Env: append(os.Environ(), "NODE_PATH="+modules)}, program, args)
}

// StartDjango runs a Python program that can import django and rest_framework, and returns once it
// listens. The arguments of the program are a port of 127.0.0.1 to listen on, and args. ctx bounds
// only that wait.
func StartDjango(ctx context.Context, program string, args ...string) (*Upstream, error) {
	python, err := FindDjango()
	if err != nil {
		return nil, err
	}
	return startUpstream(ctx, Command{Path: python}, program, args)
}

func startUpstream(ctx context.Context, command Command, program string, args []string) (*Upstream, error) {
	addr, err := FreeAddr()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	command.Args = append([]string{program, port}, args...)
	process, err := Start(command)
	if err != nil {
		return nil, err
	}
	if err := awaitReady(ctx, process, func(ctx context.Context) bool { return listens(ctx, addr) }); err != nil {
		process.Kill()
		return nil, err
	}
	return &Upstream{process, addr}, nil
}

// listens reports whether a program accepts connections at addr.
func listens(ctx context.Context, addr string) bool {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// FindExpress returns the folder of Node.js modules that contains Express: $EXPRESS, else the one
// "make tools" filled. A *MissingError means there is none.
func FindExpress() (string, error) {
	const inside = "express/package.json"
	if dir := os.Getenv("EXPRESS"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, inside)); err != nil {
			return "", fmt.Errorf("EXPRESS=%s has no %s", dir, inside)
		}
		return filepath.Abs(dir)
	}
	if dir := tool("express/node_modules"); dir != "" {
		return dir, nil
	}
	return "", &MissingError{Part: "Express", Env: "EXPRESS"}
}

// FindDjango returns a Python with the Django REST framework: $DJANGO_PYTHON, else that of "make
// tools". A *MissingError means there is none.
func FindDjango() (string, error) {
	return findPython("Django REST framework", "DJANGO_PYTHON", "rest_framework/__init__.py")
}

// FindPythonGRPC returns a Python with gRPC and the generated messages of Envoy: $GRPC_PYTHON, else
// that of "make tools". A *MissingError means there is none.
func FindPythonGRPC() (string, error) {
	return findPython("gRPC for Python", "GRPC_PYTHON", "envoy/service/auth/v3/external_auth_pb2_grpc.py")
}

// FindPythonWebhooks returns a Python with the library of Standard Webhooks: $WEBHOOKS_PYTHON, else
// that of "make tools". A *MissingError means there is none.
func FindPythonWebhooks() (string, error) {
	return findPython("Standard Webhooks for Python", "WEBHOOKS_PYTHON", "standardwebhooks/__init__.py")
}

// findPython returns the Python that a variable names, else that of "make tools" if a file of the
// part is installed there.
func findPython(part, env, inside string) (string, error) {
	if path := os.Getenv(env); path != "" {
		if !isProgram(path) {
			return "", fmt.Errorf("%s=%s is not a program", env, path)
		}
		return path, nil
	}
	if python := tool("bin/python"); python != "" && installed(inside) != "" {
		return python, nil
	}
	return "", &MissingError{Part: part, Env: env}
}
