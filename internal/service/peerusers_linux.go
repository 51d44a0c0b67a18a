package service

import (
	"errors"
	"net"
	"syscall"
)

var errNoUser = errors.New("the system does not name the user of the connection")

// userOf returns the user of the process that has connected to a Unix socket.
func userOf(conn net.Conn) (uid uint32, err error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return 0, errNoUser
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		credentials, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil || failed != nil {
		return 0, errNoUser
	}
	return credentials.Uid, nil
}
