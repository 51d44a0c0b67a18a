package parts

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
)

// Ports are given out below 32768, where Linux and others begin to take the near ends of outgoing
// connections from: one of those could take a port between our look and the program's bind.
const (
	firstPort  = 12000
	portCount  = 20000
	portStride = 101 // so that processes with neighbouring PIDs begin well apart
)

var (
	portMu     sync.Mutex
	portNext   int              // guarded by portMu; how many ports were looked at
	portClaims []net.PacketConn // guarded by portMu; see FreePort
)

var errNoPort = errors.New("no free port")

// FreePort returns a TCP port that nobody listens on. One process never gets the same port twice, and
// processes that run side by side look in different places. None of them gets a port that another one
// was given, whether anybody listens there or not: the UDP port of that number is held as a sign.
func FreePort() (int, error) {
	portMu.Lock()
	defer portMu.Unlock()
	for portNext < portCount {
		port := firstPort + (os.Getpid()*portStride+portNext)%portCount
		portNext++
		claim, err := net.ListenPacket("udp4", loopback(port))
		if err != nil {
			continue
		}
		listener, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			claim.Close()
			continue
		}
		portClaims = append(portClaims, claim)
		if err := listener.Close(); err != nil {
			return 0, fmt.Errorf("finding a free port: %w", err)
		}
		return port, nil
	}
	return 0, errNoPort
}

// FreeAddr returns 127.0.0.1 with a FreePort.
func FreeAddr() (string, error) {
	port, err := FreePort()
	if err != nil {
		return "", err
	}
	return loopback(port), nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
