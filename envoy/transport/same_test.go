package transport_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
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

// bytes returns the frames that a script sends.
func (s script) bytes() []byte {
	return sentBy(func(r *raw) {
		for _, send := range s {
			_ = send(r)
		}
	})
}

func short(b []byte) string { return string(b[:min(len(b), 12)]) }

// answers are the outcomes of calls.
type answers map[uint32]outcome

// take adds a frame and reports whether its call has ended.
func (a answers) take(f http2.Frame, decoder *hpack.Decoder) bool {
	id := f.Header().StreamID
	o := a[id]
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
		return false
	}
	a[id] = o
	return o.ended || o.reset
}

// Whatever calls a peer mixes, splits and breaks, those that it sends to their end get the answers
// that grpc-go gives: the same message, or none. KEYPORTER_SCRIPTS sets the number of scripts.
func TestAnswersAreThoseOfGRPC(t *testing.T) {
	scripts := 200
	if wanted := os.Getenv("KEYPORTER_SCRIPTS"); wanted != "" {
		var err error
		if scripts, err = strconv.Atoi(wanted); err != nil {
			t.Fatal(err)
		}
	}
	answered := 0
	for range scripts {
		seed := rand.Uint64()
		sequence, text, complete := calls(rand.New(rand.NewPCG(seed, 0)))
		var ours, theirs answers
		synctest.Test(t, func(t *testing.T) {
			sent := sequence.bytes()
			ours, theirs = askOurs(t, sent, byte(seed)&^leaves), askTheirs(sent).answers
		})
		for id := range complete {
			a, b := ours[id], theirs[id]
			if a.status == "0" {
				answered++
			}
			if (a.status == "0") != (b.status == "0") || a.data != b.data {
				t.Fatalf("seed %d, call %d: we answer %+v, grpc-go %+v\n%s", seed, id, a, b, text)
			}
		}
	}
	t.Logf("%d scripts, %d answers", scripts, answered)
}
