package parts_test

import (
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

func TestFreePortSkipsTakenOnes(t *testing.T) {
	first, err := parts.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(first+1))
	if err != nil {
		t.Skip("the next port is taken by someone else")
	}
	defer listener.Close()
	second, err := parts.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	if second <= first+1 {
		t.Errorf("port %d after %d, while %d is taken", second, first, first+1)
	}
}
