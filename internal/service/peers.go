package service

import (
	"log/slog"
	"net"
	"slices"
)

// knownUsers is a listener on a Unix socket that accepts only the processes of some users.
type knownUsers struct {
	net.Listener
	users []uint32
	log   *slog.Logger
}

// Accept implements [net.Listener]. It closes the connections of all other users.
func (l *knownUsers) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := userOf(conn)
		if err == nil && slices.Contains(l.users, uid) {
			return conn, nil
		}
		l.log.Warn("a connection to the gRPC socket was refused: its user is not among --grpc-socket-users", "user", uid, "error", err)
		conn.Close()
	}
}
