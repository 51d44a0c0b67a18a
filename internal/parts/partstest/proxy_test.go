package partstest_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// echo starts a server that sends lines back, with its name before them.
func echo(t *testing.T, name string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					io.WriteString(conn, name+lines.Text()+"\n")
				}
			}()
		}
	}()
	return listener.Addr().String()
}

// line is a client's connection.
type line struct {
	net.Conn
	in *bufio.Reader
}

// answers reports whether a new connection gets an answer. It may be broken at once.
func answers(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	_, err = (&line{conn, bufio.NewReader(conn)}).ask("b", soon)
	return err == nil
}

func dial(t *testing.T, address string) *line {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &line{conn, bufio.NewReader(conn)}
}

// ask sends a line and returns the answer, or an error after some time.
func (l *line) ask(text string, within time.Duration) (string, error) {
	if _, err := io.WriteString(l, text+"\n"); err != nil {
		return "", err
	}
	l.SetReadDeadline(time.Now().Add(within))
	answer, err := l.in.ReadString('\n')
	return strings.TrimSpace(answer), err
}

const (
	soon = time.Minute
	late = 50 * time.Millisecond
)

// A fault lasts until it is ended, and has the effect that a real network would have.
func TestTheFaultsOfAProxy(t *testing.T) {
	one, two := echo(t, "one "), echo(t, "two ")
	for name, test := range map[string]func(t *testing.T, p *partstest.Proxy, open *line){
		"what is held back arrives late": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Down.Hold.Store(true)
			if answer, err := open.ask("b", late); err == nil {
				t.Errorf("held back, and %q came", answer)
			}
			p.Heal()
			open.SetReadDeadline(time.Now().Add(soon))
			if answer, err := open.in.ReadString('\n'); answer != "one b\n" {
				t.Errorf("late came %q, %v", answer, err)
			}
		},
		"a connection that lost data stays silent": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Up.Drop.Store(true)
			if answer, err := open.ask("b", late); err == nil {
				t.Errorf("dropped, and %q came", answer)
			}
			p.Up.Drop.Store(false)
			if answer, err := open.ask("c", late); err == nil {
				t.Errorf("after lost data came %q", answer)
			}
			if answer, err := dial(t, p.Addr()).ask("d", soon); answer != "one d" {
				t.Errorf("on a new connection came %q, %v", answer, err)
			}
		},
		"healing breaks connections that may have lost data": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Down.Drop.Store(true)
			p.Heal()
			if _, err := open.ask("b", soon); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("%v, want a reset", err)
			}
		},
		"a delay delays": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Up.Delay.Store(int64(late))
			began := time.Now()
			if _, err := open.ask("b", soon); err != nil || time.Since(began) < late {
				t.Errorf("answered after %v, %v", time.Since(began), err)
			}
		},
		"a new connection takes long": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Connect.Store(int64(late))
			began := time.Now()
			if _, err := dial(t, p.Addr()).ask("b", soon); err != nil || time.Since(began) < late {
				t.Errorf("answered after %v, %v", time.Since(began), err)
			}
		},
		"it refuses new connections only": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Refuse.Store(true)
			if answers(p.Addr()) {
				t.Error("it refuses, and an answer came")
			}
			if answer, err := open.ask("c", soon); answer != "one c" {
				t.Errorf("on the open connection came %q, %v", answer, err)
			}
		},
		"it leads new connections to another server": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Redirect(two)
			if answer, err := dial(t, p.Addr()).ask("b", soon); answer != "two b" {
				t.Errorf("on a new connection came %q, %v", answer, err)
			}
			if answer, err := open.ask("c", soon); answer != "one c" {
				t.Errorf("on the open connection came %q, %v", answer, err)
			}
			if n := p.Connections(); n != 2 {
				t.Errorf("it counts %d connections", n)
			}
		},
		"moving breaks connections": func(t *testing.T, p *partstest.Proxy, open *line) {
			p.Move("")
			if _, err := open.ask("b", soon); err == nil {
				t.Error("the open connection stays")
			}
			if answers(p.Addr()) {
				t.Error("nobody is there, but answers")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := partstest.StartProxy(t, partstest.ProxyConfig{To: one})
			open := dial(t, p.Addr())
			if answer, err := open.ask("a", soon); answer != "one a" {
				t.Fatalf("without a fault came %q, %v", answer, err)
			}
			test(t, p, open)
		})
	}
}

// Only notifications get lost, whole, whatever pieces the data comes in.
func TestNotificationsGetLost(t *testing.T) {
	message := func(kind byte, text string) string { return string([]byte{kind, 0, 0, 0, byte(4 + len(text))}) + text }
	sent := message('Z', "I") + message('A', "gone") + message('D', "A row") + message('A', "gone too") + message('C', "")
	want := strings.NewReplacer(message('A', "gone"), "", message('A', "gone too"), "").Replace(sent)
	for size := 1; size < len(sent); size++ {
		from := io.MultiReader(strings.NewReader(sent[:size]), strings.NewReader(sent[size:]))
		got, err := io.ReadAll(partstest.WithoutNotifications(from, func() bool { return true }))
		if err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("in pieces of %d bytes: %q, %v; want %q", size, got, err, want)
		}
	}
	got, err := io.ReadAll(partstest.WithoutNotifications(strings.NewReader(sent), func() bool { return false }))
	if err != nil || string(got) != sent {
		t.Errorf("without a loss: %q, %v", got, err)
	}
}
