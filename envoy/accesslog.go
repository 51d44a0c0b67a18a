package envoy

import (
	"net/netip"
	"strings"
	"time"
	"unicode"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

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

// accessLog is the access log service of a Server.
type accessLog struct {
	accesslogv3.UnimplementedAccessLogServiceServer
	server *Server
}

// StreamAccessLogs reads one worker's entries until Envoy ends the stream, the server stops or the
// stream reaches its maximum age. Then Envoy opens another.
func (a accessLog) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	s := a.server
	s.metrics.logStreams.Inc()
	defer s.metrics.logStreams.Dec()
	ended := make(chan struct{})
	defer close(ended)
	messages := s.receive(stream, ended)
	if open := s.readUntilLull(messages); !open {
		return nil
	}
	if err := stream.SendMsg(unreadable()); err != nil {
		return err
	}
	s.readFor(lastWord, messages)
	return nil
}

// readUntilLull reads messages until the stream must end and nothing is on its way. It reports
// whether the stream is still open.
func (s *Server) readUntilLull(messages <-chan *codec.LogMessage) (open bool) {
	age, stopping := time.After(streamLife), s.stopping.Done()
	var end <-chan time.Time
	lull := false
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return false
			}
			if s.readLog(m); lull {
				return true
			}
		case <-age:
			end = time.After(lastEntries)
		case <-stopping:
			end, stopping = time.After(lastEntries), nil
		case <-end:
			if lull {
				return true
			}
			lull, end = true, time.After(lastEntries)
		}
	}
}

// unreadable returns an answer whose bytes are no message: field 0 of a type that there is not.
// Envoy expects no answer and takes no notice of a valid one, but it resets the stream for this
// one. All that it has sent by then arrives first; a stream that the server ends loses it.
func unreadable() *accesslogv3.StreamAccessLogsResponse {
	answer := &accesslogv3.StreamAccessLogsResponse{}
	answer.ProtoReflect().SetUnknown([]byte{0x07})
	return answer
}

// readFor reads messages until the stream ends, at most for d.
func (s *Server) readFor(d time.Duration, messages <-chan *codec.LogMessage) {
	for end := time.After(d); ; {
		select {
		case m, ok := <-messages:
			if !ok {
				return
			}
			s.readLog(m)
		case <-end:
			return
		}
	}
}

// receive delivers the messages of a stream until its caller or its handler ends it. A message that
// came before the caller's end is delivered.
func (s *Server) receive(stream accesslogv3.AccessLogService_StreamAccessLogsServer, ended <-chan struct{}) <-chan *codec.LogMessage {
	messages := make(chan *codec.LogMessage)
	s.readers.Go(func() {
		defer close(messages)
		for {
			m := &codec.LogMessage{}
			if err := s.receiveOne(stream, m); err != nil {
				s.countUnread(err)
				return
			}
			select {
			case messages <- m:
			case <-ended:
				return
			}
		}
	})
	return messages
}

func (s *Server) receiveOne(stream accesslogv3.AccessLogService_StreamAccessLogsServer, m *codec.LogMessage) error {
	if s.config.Codec == codec.Fast {
		return stream.RecvMsg(m)
	}
	in, err := stream.Recv()
	if err != nil {
		return err
	}
	if proto.Size(in) > codec.MaxMessageSize {
		return status.Error(codes.ResourceExhausted, codec.ErrLongMessage.Error())
	}
	m.Decode(in)
	return nil
}

// countUnread counts a message that is too long or malformed. Envoy sends the next ones on another
// stream.
func (s *Server) countUnread(err error) {
	switch status.Code(err) {
	case codes.ResourceExhausted, codes.Internal, codes.InvalidArgument:
		s.metrics.entries[entryMalformed].Inc()
	}
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
	s.config.OnComplete(usage.Completion{Receipt: strings.Clone(receipt), Status: e.Status, Failure: failure, Record: recordOf(e)})
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
func recordOf(e *codec.LogEntry) usage.Record {
	if !areNames(&e.Facts) {
		return usage.Record{}
	}
	path := e.Path
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		path = path[:end]
	}
	texts := [...]string{shown(e.Facts.User), shown(e.Facts.KeyID), shown(e.Facts.Reason), shown(path), addressShown(e.Address), shown(e.Agent)}
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
