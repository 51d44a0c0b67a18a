package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"runtime"
	"strconv"
	"strings"
)

// socketMode is the default of --grpc-socket-mode.
const socketMode fs.FileMode = 0o660

// setSocketMode reads the permissions of the gRPC port's Unix socket.
func (c *Config) setSocketMode(s string) error {
	mode, err := strconv.ParseUint(s, 8, 32)
	if err != nil || mode > 0o777 || mode&0o600 != 0o600 {
		return fmt.Errorf("%q is not a mode such as 660, 600 or 666", s)
	}
	c.GRPCSocketMode = fs.FileMode(mode)
	return nil
}

// setSocketUsers reads the users who may connect to it. The number 0 is root.
func (c *Config) setSocketUsers(s string) error {
	c.GRPCSocketUsers = nil
	for _, name := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		number := name
		if known, err := user.Lookup(name); err == nil {
			number = known.Uid
		}
		uid, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return fmt.Errorf("%.80q is no user of this system, and no number of one", name)
		}
		c.GRPCSocketUsers = append(c.GRPCSocketUsers, uint32(uid))
	}
	return nil
}

// checkSocket rejects settings of a Unix socket where there is none.
func (c *Config) checkSocket() error {
	switch isSocket := strings.HasPrefix(c.ListenGRPC, "unix:"); {
	case !isSocket && c.GRPCSocketMode != socketMode:
		return errors.New("--grpc-socket-mode: --listen-grpc is no Unix socket (unix:///PATH)")
	case !isSocket && len(c.GRPCSocketUsers) > 0:
		return errors.New("--grpc-socket-users: --listen-grpc is no Unix socket (unix:///PATH)")
	case len(c.GRPCSocketUsers) > 0 && runtime.GOOS != "linux":
		return errors.New("--grpc-socket-users: only Linux names the user of a connection")
	}
	return nil
}
