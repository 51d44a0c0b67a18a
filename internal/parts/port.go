package parts

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
)

// Ports are allocated below 32768, where Linux and others begin the range of ephemeral ports: an
// outgoing connection could take a port between our check and the program's bind.
const (
	firstPort  = 12000
	portCount  = 20000
	portStride = 101 // spreads processes with neighbouring PIDs
)

var (
	portMu     sync.Mutex
	portNext   int              // guarded by portMu; number of ports checked
	portClaims []net.PacketConn // guarded by portMu; see FreePort
)

var errNoPort = errors.New("no free port")

// FreePort returns a TCP port without a listener. It never returns the same port twice in one
// process, and concurrent processes search different ranges. A process keeps the UDP port of the
// same number open as its claim, so no other process gets the TCP port, even before it is in use.
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
