package envoy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"
	"unicode"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/keyporter/keyporter/envoy/codec"
	"github.com/keyporter/keyporter/usage"
)

const (
	// streamLife is the maximum age of a stream of the access log. Envoy never ends one, and a
	// connection at its maximum age waits for its streams only for the grace period. So streams end
	// before that, one by one, and none is cut off.
	streamLife = 20 * time.Second
	// lastEntries is how long an ending stream is still read, so that entries already sent arrive.
	// Envoy is then asked to end it after the next message, because the one after that does not
	// follow at once, or after as long again.
	lastEntries = 250 * time.Millisecond
	// lastWord is how long Envoy may take to end a stream after it was asked. Then the server ends
	// it. With streamLife, it is shorter than the grace period of a connection.
	lastWord = 5 * time.Second
	// maxReceipt is the maximum length of a receipt, in characters. Ours are about a hundred.
	maxReceipt = 1 << 10
	// maxStatus is the highest HTTP status.
	maxStatus = 999
)

// logStream is a stream of one worker's entries.
type logStream interface {
	// next returns the next message. Those that came before the end of the stream come first; then
	// errors other than ctx's are its end. errUnread is the end after a message that is too long or
	// malformed: Envoy sends the next ones on another stream.
	next(ctx context.Context) (*codec.LogMessage, error)
	// end asks Envoy to end the stream. What Envoy has sent by then still arrives.
	end() error
}

var errUnread = errors.New("a message is too long or malformed")

// readStream reads entries until Envoy ends the stream, the server stops or the stream reaches its
// maximum age. Then Envoy opens another.
func (s *Server) readStream(stream logStream) {
	s.metrics.logStreams.Inc()
	defer s.metrics.logStreams.Dec()
	if open := s.readUntilLull(stream); !open || stream.end() != nil {
		return
	}
	s.readFor(context.Background(), lastWord, stream)
}

// readUntilLull reads messages until the stream must end and nothing is on its way. It reports
// whether the stream is still open.
func (s *Server) readUntilLull(stream logStream) (open bool) {
	if open := s.readFor(s.stopping, streamLife, stream) && s.readFor(context.Background(), lastEntries, stream); !open {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastEntries)
	defer cancel()
	return s.readOne(ctx, stream)
}

// readFor reads messages for a time, or until ctx ends. It reports whether the stream is still
// open.
func (s *Server) readFor(ctx context.Context, d time.Duration, stream logStream) (open bool) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for ctx.Err() == nil {
		if !s.readOne(ctx, stream) {
			return false
		}
	}
	return true
}

// readOne reads a message, if one comes before ctx ends. It reports whether the stream is still
// open.
func (s *Server) readOne(ctx context.Context, stream logStream) (open bool) {
	m, err := stream.next(ctx)
	switch {
	case err == nil:
		s.readLog(m)
		return true
	case errors.Is(err, errUnread):
		s.metrics.entries[entryMalformed].Inc()
	}
	return ctx.Err() != nil && errors.Is(err, ctx.Err())
}

// readLog reports the completions in a message. It neither keeps nor logs any other part of an
// entry than [usage.Completion] has: the query and the headers may hold a key.
func (s *Server) readLog(m *codec.LogMessage) {
	for i := range m.Entries {
		s.metrics.entries[s.readEntry(&m.Entries[i])].Inc()
	}
	s.metrics.entries[entryNotHTTP].Add(float64(m.TCP))
	m.Free()
}

// readEntry reports the completion of one request, and returns the result for the metrics.
func (s *Server) readEntry(e *codec.LogEntry) (result string) {
	defer func() {
		if p := recover(); p != nil {
			result = entryPanicked
			s.panicked("access log entry panicked, left out", p)
		}
	}()
	if !e.IsEnd() {
		return entryNotTheEnd
	}
	receipt := e.Facts.Charge
	s.unreported.reported(receipt != "")
	if len(receipt) > maxReceipt || e.Status > maxStatus || receipt == "" && !areNames(&e.Facts) {
		return entryMalformed
	}
	if receipt == "" && shown(e.Facts.KeyID) == "" {
		return entryNoKey
	}
	failure := failureOf(e)
	s.config.OnComplete(usage.Completion{Receipt: strings.Clone(receipt), Status: e.Status, Failure: failure, Record: s.recordOf(e)})
	if receipt == "" {
		return entryNoCharge
	}
	return failure.String()
}

// maxRecordText is the maximum length of a text in a record, in bytes.
const maxRecordText = 256

// areNames reports whether the facts can be ours: all of them consist of the characters of names.
func areNames(f *codec.Facts) bool { return isName(f.User) && isName(f.KeyID) && isName(f.Reason) }

func isName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', strings.IndexByte("._@+-", c) >= 0:
		default:
			return false
		}
	}
	return len(s) <= maxRecordText
}

// recordOf returns the part of an entry that the user may see. It leaves out the query, and
// anything in the path that looks like a key. It keeps nothing of the entry in memory. If a name in
// it cannot be ours, the record belongs to nobody.
func (s *Server) recordOf(e *codec.LogEntry) usage.Record {
	if !areNames(&e.Facts) {
		return usage.Record{}
	}
	path := e.Path
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		path = path[:end]
	}
	agent := e.Agent
	if s.config.Mask != nil {
		path, agent = s.config.Mask(path), s.config.Mask(agent)
	}
	texts := [...]string{shown(e.Facts.User), shown(e.Facts.KeyID), shown(e.Facts.Reason), shown(path), addressShown(e.Address), shown(agent)}
	own := strings.Join(texts[:], "")
	for i, text := range texts {
		texts[i], own = own[:len(text)], own[len(text):]
	}
	return usage.Record{
		User: texts[0], KeyID: texts[1], Reason: texts[2], At: e.Start, Method: methodOf(e.Method), Path: texts[3], Status: e.Status,
		Address: texts[4], Agent: texts[5],
	}
}

// addressShown returns an address as it may be kept. It replaces an invalid one.
func addressShown(s string) string {
	if s == codec.AddressUnix {
		return s
	}
	if address, err := netip.ParseAddr(s); err != nil || address.Zone() != "" && !isName(address.Zone()) {
		return addressUnknown
	}
	return s
}

// shown returns a text as it may be kept: without anything that may be a key, of bounded length,
// valid UTF-8, and without characters that move a terminal's cursor or reverse adjacent text.
func shown(s string) string {
	seen := s[:min(len(s), maxRecordText+keyDigits)]
	text := withoutKeys(strings.Map(visible, seen))
	if len(text) <= maxRecordText && len(seen) == len(s) {
		return text
	}
	// The cut-off part may continue a key.
	text = strings.TrimRightFunc(text[:min(len(text), maxRecordText)], isHex)
	return strings.ToValidUTF8(text, "")
}

// visible returns a character as it may be shown. Invalid UTF-8 arrives as U+FFFD.
func visible(c rune) rune {
	if c >= ' ' && c < 0x7f || unicode.IsGraphic(c) {
		return c
	}
	return unicode.ReplacementChar
}

func methodOf(m corev3.RequestMethod) string {
	if m == corev3.RequestMethod_METHOD_UNSPECIFIED {
		return "?"
	}
	return m.String()
}

// addressUnknown is the address of a client with an invalid one.
const addressUnknown = "unknown"

// keyDigits is the number of consecutive hexadecimal digits that may be a key.
const keyDigits = 48

// withoutKeys replaces runs of hexadecimal digits that are long enough for a key.
func withoutKeys(s string) string {
	run := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && isHex(rune(s[i])) {
			run++
			continue
		}
		if run >= keyDigits {
			return s[:i-run] + "…" + withoutKeys(s[i:])
		}
		run = 0
	}
	return s
}

func isHex(c rune) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }
