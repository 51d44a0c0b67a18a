package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// RequestsConfig configures Requests. Addr, Requests and Status are required.
type RequestsConfig struct {
	Addr        string
	Connections int      // each with one request at a time; 0: 32
	Requests    [][]byte // complete HTTP/1.1 requests, sent in turn
	Status      int      // required status of every answer
	Body        string   // required part of every body
}

// Requests is a set of open connections to an HTTP/1.1 server.
type Requests struct {
	connections []*requestConn
}

const defaultRequestConnections = 32

// DialRequests opens the connections.
func DialRequests(ctx context.Context, config RequestsConfig) (*Requests, error) {
	if config.Connections == 0 {
		config.Connections = defaultRequestConnections
	}
	r := &Requests{}
	for i := range config.Connections {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", config.Addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connecting to %s: %w", config.Addr, err), r.Close())
		}
		r.connections = append(r.connections, &requestConn{
			Conn: conn, config: config, next: i % len(config.Requests), buffer: make([]byte, bufferSize),
		})
	}
	return r, nil
}

// Ask keeps all connections busy for the given duration. The first wrong answer is an error.
func (r *Requests) Ask(ctx context.Context, duration time.Duration) (Result, error) {
	return ask(ctx, r.connections, duration)
}

// Close closes the connections.
func (r *Requests) Close() error {
	var errs []error
	for _, conn := range r.connections {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// requestConn is one connection, owned by one goroutine.
type requestConn struct {
	net.Conn
	config RequestsConfig
	next   int    // index in config.Requests
	buffer []byte // the part of an answer read so far
}

func (c *requestConn) ask(stop time.Time, latencies []time.Duration) ([]time.Duration, error) {
	for now := time.Now(); now.Before(stop); {
		if _, err := c.Write(c.config.Requests[c.next]); err != nil {
			return nil, err
		}
		c.next = (c.next + 1) % len(c.config.Requests)
		if err := c.receive(); err != nil {
			return nil, err
		}
		end := time.Now()
		latencies = append(latencies, end.Sub(now))
		now = end
	}
	return latencies, nil
}

// receive reads one answer and verifies it.
func (c *requestConn) receive() error {
	size := 0
	for {
		n, err := c.Read(c.buffer[size:])
		if err != nil {
			return fmt.Errorf("reading an answer after %q: %w", c.buffer[:size], err)
		}
		size += n
		status, body, whole, err := parseResponse(c.buffer[:size])
		if err != nil {
			return fmt.Errorf("%w: %w: %q", errWrongAnswer, err, c.buffer[:size])
		}
		if !whole && size == len(c.buffer) {
			return fmt.Errorf("%w: it is longer than %d bytes", errWrongAnswer, size)
		}
		if !whole {
			continue
		}
		if status != c.config.Status || !bytes.Contains(body, []byte(c.config.Body)) {
			return fmt.Errorf("%w: expected %d with %q: %q", errWrongAnswer, c.config.Status, c.config.Body, c.buffer[:size])
		}
		return nil
	}
}

var (
	headEnd       = []byte("\r\n\r\n")
	statusLine    = []byte("HTTP/1.1 ")
	contentLength = []byte("\r\ncontent-length: ")

	errResponse = errors.New("not an HTTP/1.1 response with a content-length, as Envoy writes it")
)

// parseResponse parses a response in the form of Envoy: header names in lower case, with a content
// length. whole is true if the body is complete and nothing follows it.
func parseResponse(data []byte) (status int, body []byte, whole bool, err error) {
	end := bytes.Index(data, headEnd)
	if end < 0 {
		return 0, nil, false, nil
	}
	head, body := data[:end], data[end+len(headEnd):]
	if !bytes.HasPrefix(head, statusLine) || len(head) < len(statusLine)+3 {
		return 0, nil, false, errResponse
	}
	status, err = strconv.Atoi(string(head[len(statusLine) : len(statusLine)+3]))
	if err != nil {
		return 0, nil, false, errResponse
	}
	at := bytes.Index(head, contentLength)
	if at < 0 {
		return 0, nil, false, errResponse
	}
	digits, _, _ := bytes.Cut(head[at+len(contentLength):], []byte("\r\n"))
	length, err := strconv.Atoi(string(digits))
	if err != nil || length < len(body) {
		return 0, nil, false, errResponse
	}
	return status, body, length == len(body), nil
}
