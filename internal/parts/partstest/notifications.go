package partstest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
)

// WithoutNotifications returns what a PostgreSQL server sends, without the notifications that lost
// chooses. It serves as a [ProxyConfig.Filter] for unencrypted connections.
func WithoutNotifications(from io.Reader, lost func() bool) io.Reader {
	return &notifications{in: bufio.NewReaderSize(from, 32<<10), lost: lost}
}

type notifications struct {
	in   *bufio.Reader
	lost func() bool
	out  bytes.Buffer // whole messages
}

// Read implements [io.Reader]. What the server has sent in one piece stays one.
func (n *notifications) Read(p []byte) (int, error) {
	for n.out.Len() == 0 || n.in.Buffered() > 0 {
		if err := n.next(); err != nil {
			if n.out.Len() > 0 {
				break
			}
			return 0, err
		}
	}
	return n.out.Read(p)
}

// next reads a message of PostgreSQL's protocol: a type, a length that counts itself, and the rest.
func (n *notifications) next() error {
	const notificationResponse, header = 'A', 5
	message := make([]byte, header)
	if _, err := io.ReadFull(n.in, message); err != nil {
		return err
	}
	message = append(message, make([]byte, binary.BigEndian.Uint32(message[1:])+1-header)...)
	if _, err := io.ReadFull(n.in, message[header:]); err != nil {
		return err
	}
	if message[0] != notificationResponse || !n.lost() {
		n.out.Write(message)
	}
	return nil
}
