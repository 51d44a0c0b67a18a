package transport_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
)

// outcome is what a caller gets for one call.
type outcome struct {
	data   string
	status string // of gRPC
	ended  bool
	reset  bool
}

// script is a sequence of frames that a caller sends.
type script []func(r *raw) error

// calls returns a script of some calls whose frames are mixed, a text that describes it, and the
// calls that are sent to their end.
func calls(random *rand.Rand) (s script, text string, complete map[uint32]bool) {
	complete = map[uint32]bool{}
	var lines []string
	add := func(line string, send func(r *raw) error) {
		lines = append(lines, line)
		s = append(s, send)
	}
	open := map[uint32][]byte{} // the rest of each call's data
	for next := uint32(1); len(s) < 40 && (next < 20 || len(open) > 0); {
		if len(open) == 0 || next < 20 && random.IntN(3) == 0 {
			id := next
			next += 2
			open[id] = message(random)
			path := []string{echoPath, echoPath, echoPath, "/test.Echo/Other", "/"}[random.IntN(5)]
			add(fmt.Sprintf("%d calls %s with %q", id, path, short(open[id])), func(r *raw) error {
				return r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: r.fields(":method", "POST", ":scheme", "http",
					":path", path, ":authority", "a", "content-type", "application/grpc", "te", "trailers")})
			})
			continue
		}
		ids := slices.Sorted(maps.Keys(open))
		id := ids[random.IntN(len(ids))]
		step(random, add, open, complete, id)
	}
	return s, strings.Join(lines, "\n"), complete
}

func step(random *rand.Rand, add func(string, func(*raw) error), open map[uint32][]byte, complete map[uint32]bool, id uint32) {
	rest := open[id]
	switch n := random.IntN(len(rest) + 1); random.IntN(8) {
	case 0:
		delete(open, id)
		add(fmt.Sprintf("%d is reset", id), func(r *raw) error { return r.WriteRSTStream(id, http2.ErrCodeCancel) })
	case 1: // no pings: grpc-go allows two
		add("a window", func(r *raw) error { return r.WriteWindowUpdate(0, 1000) })
	case 2:
		add("a setting", func(r *raw) error {
			return r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 60_000})
		})
	case 3, 4:
		open[id] = rest[n:]
		add(fmt.Sprintf("%d sends %d bytes", id, n), func(r *raw) error { return r.WriteData(id, false, rest[:n]) })
	default:
		delete(open, id)
		complete[id] = true
		add(fmt.Sprintf("%d sends %d bytes and ends", id, len(rest)), func(r *raw) error { return r.WriteData(id, true, rest) })
	}
}

// message returns the data of a call, which is mostly one message.
func message(random *rand.Rand) []byte {
	text := strings.Repeat("n", random.IntN(3)*random.IntN(200))
	if random.IntN(4) == 0 {
		text = "w" + text
	}
	data := append([]byte{0, 0, 0, byte(len(text) >> 8), byte(len(text))}, text...)
	switch random.IntN(12) {
	case 0:
		return data[:random.IntN(len(data))]
	case 1:
		return append(data, "more"...)
	case 2:
		data[random.IntN(5)] = byte(random.IntN(3))
	}
	return data
}

func short(b []byte) string { return string(b[:min(len(b), 12)]) }

// run sends a script and returns the outcome of each complete call.
func (s script) run(t *testing.T, address string, complete map[uint32]bool) map[uint32]outcome {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	r := newRaw(t, conn)
	r.greet()
	go func() {
		for _, send := range s {
			if send(r) != nil {
				return
			}
		}
	}()
	return outcomes(r, complete)
}

// outcomes reads until all complete calls have ended.
func outcomes(r *raw, complete map[uint32]bool) map[uint32]outcome {
	left := maps.Clone(complete)
	all := map[uint32]outcome{}
	decoder := hpack.NewDecoder(4<<10, nil)
	for len(left) > 0 {
		f, err := r.ReadFrame()
		if err != nil {
			break
		}
		id := f.Header().StreamID
		o := all[id]
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields, _ := decoder.DecodeFull(f.HeaderBlockFragment())
			for _, field := range fields {
				if field.Name == "grpc-status" {
					o.status = field.Value
				}
			}
			o.ended = o.ended || f.StreamEnded()
		case *http2.DataFrame:
			o.data += string(f.Data())
			o.ended = o.ended || f.StreamEnded()
		case *http2.RSTStreamFrame:
			o.reset = !o.ended
		default:
			continue
		}
		if all[id] = o; o.ended || o.reset {
			delete(left, id)
		}
	}
	return all
}

// theirs serves the same method by grpc-go.
func theirs(t *testing.T) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		return errors.New("unknown")
	}))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Echo", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Echo", Handler: grpcEcho,
	}}}, nil)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// Whatever calls a peer mixes, splits and breaks, those that it sends to their end get the answers
// that grpc-go gives: the same message, or none. KEYPORTER_SCRIPTS sets the number of scripts.
func TestAnswersAreThoseOfGRPC(t *testing.T) {
	address := serve(t, echoes())
	other := theirs(t)
	scripts := 100
	if wanted := os.Getenv("KEYPORTER_SCRIPTS"); wanted != "" {
		var err error
		if scripts, err = strconv.Atoi(wanted); err != nil {
			t.Fatal(err)
		}
	}
	answers := 0
	for range scripts {
		seed := rand.Uint64()
		sequence, text, complete := calls(rand.New(rand.NewPCG(seed, 0)))
		ours, theirs := sequence.run(t, address, complete), sequence.run(t, other, complete)
		for id := range complete {
			a, b := ours[id], theirs[id]
			if a.status == "0" {
				answers++
			}
			if (a.status == "0") != (b.status == "0") || a.data != b.data {
				t.Fatalf("seed %d, call %d: we answer %+v, grpc-go %+v\n%s", seed, id, a, b, text)
			}
		}
	}
	t.Logf("%d scripts, %d answers", scripts, answers)
}
