package parts

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"time"
)

// ValkeyConfig configures a Valkey. The zero value is valid.
type ValkeyConfig struct {
	Port int      // 0: a free one
	Args []string // more arguments, for example --maxmemory 1mb
	Path string   // the binary; "": the result of FindValkey
}

// Valkey is a running Valkey without persistence.
type Valkey struct {
	*Process
	port int
}

// StartValkey starts a Valkey and returns once it answers. ctx bounds only that wait: Valkey then
// runs until Stop, Kill or the end of this process.
func StartValkey(ctx context.Context, config ValkeyConfig) (*Valkey, error) {
	path, port := config.Path, config.Port
	var err error
	if path == "" {
		if path, err = FindValkey(); err != nil {
			return nil, err
		}
	}
	if port == 0 {
		if port, err = FreePort(); err != nil {
			return nil, fmt.Errorf("starting Valkey: %w", err)
		}
	}
	dir, cleanUp, err := partDir("")
	if err != nil {
		return nil, fmt.Errorf("starting Valkey: %w", err)
	}
	args := []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no"}
	process, err := Start(Command{Path: path, Args: append(args, config.Args...), Dir: dir, ended: cleanUp})
	if err != nil {
		cleanUp()
		return nil, err
	}
	valkey := &Valkey{Process: process, port: port}
	if err := awaitReady(ctx, process, valkey.ready); err != nil {
		process.Kill()
		return nil, err
	}
	return valkey, nil
}

func (v *Valkey) ready(ctx context.Context) bool {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", v.Addr())
	if err != nil {
		return false
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && line == "+PONG\r\n"
}

// Port returns the server's TCP port.
func (v *Valkey) Port() int { return v.port }

// Addr returns the server's host:port.
func (v *Valkey) Addr() string { return loopback(v.port) }
