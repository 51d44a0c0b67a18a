package parts_test

import (
	"io"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/keyporter/keyporter/internal/parts"
)

func TestFreePortIsNeverGivenTwice(t *testing.T) {
	var mu sync.Mutex
	seen := map[int]bool{} // port → given
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			port, err := parts.FreePort()
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[port] {
				t.Errorf("port %d given twice", port)
			}
			seen[port] = true
		})
	}
	group.Wait()
}

// FreePort skips a port that has a listener, or that another process was given and may listen on
// later.
func TestFreePortSkipsTakenOnes(t *testing.T) {
	for how, take := range map[string]func(address string) (io.Closer, error){
		"somebody listens":         func(address string) (io.Closer, error) { return net.Listen("tcp", address) },
		"given to another process": func(address string) (io.Closer, error) { return net.ListenPacket("udp4", address) },
	} {
		first, err := parts.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		taken, err := take("127.0.0.1:" + strconv.Itoa(first+1))
		if err != nil {
			t.Skip("the next port is taken by someone else")
		}
		defer taken.Close()
		second, err := parts.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if second <= first+1 {
			t.Errorf("%s: port %d after %d", how, second, first)
		}
	}
}
