package envoy

import (
	"net/netip"
	"strings"
	"time"
	"unicode"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/usage"
)

// authzFilter is the namespace of our facts in an entry's metadata: the filter that asks Keyporter.
const authzFilter = "envoy.filters.http.ext_authz"

const (
	// streamLife is the maximum age of a stream of the access log. Envoy never ends one, and a
	// connection at its maximum age waits for its streams only for the grace period. So streams end
	// before that, one by one, and none is cut off.
	streamLife = 20 * time.Second
	// lastEntries is how long an ending stream is still read, so that entries already sent arrive.
	// The stream then ends after the next message, because the one after that does not follow at
	// once, or after as long again.
	lastEntries = 250 * time.Millisecond
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
// stream reaches its maximum age. Then Envoy opens another. As Envoy requires, it never answers.
func (a accessLog) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	s := a.server
	s.metrics.logStreams.Inc()
	defer s.metrics.logStreams.Dec()
	messages := s.receive(stream)
	age, stopping := time.After(streamLife), s.stopping.Done()
	var end <-chan time.Time
	lull := false // the stream ends as soon as nothing is on its way
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return nil
			}
			if s.readLog(m); lull {
				return nil
			}
		case <-age:
			end = time.After(lastEntries)
		case <-stopping:
			end, stopping = time.After(lastEntries), nil
		case <-end:
			if lull {
				return nil
			}
			lull, end = true, time.After(lastEntries)
		}
	}
}

// receive delivers the messages of a stream until the stream ends, which it does when its handler
// returns.
func (s *Server) receive(stream accesslogv3.AccessLogService_StreamAccessLogsServer) <-chan *logMessage {
	messages := make(chan *logMessage)
	s.readers.Go(func() {
		defer close(messages)
		for {
			m := &logMessage{}
			if err := s.receiveOne(stream, m); err != nil {
				s.countUnread(err)
				return
			}
			select {
			case messages <- m:
			case <-stream.Context().Done():
				return
			}
		}
	})
	return messages
}

func (s *Server) receiveOne(stream accesslogv3.AccessLogService_StreamAccessLogsServer, m *logMessage) error {
	if s.config.Codec == CodecFast {
		return stream.RecvMsg(m)
	}
	in, err := stream.Recv()
	if err != nil {
		return err
	}
	if proto.Size(in) > maxMessageSize {
		return status.Error(codes.ResourceExhausted, errLongMessage.Error())
	}
	m.decode(in)
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

// logMessage is the decoded part of one message of the access log. Its receiver owns it.
type logMessage struct {
	entries []logEntry
	tcp     int        // entries of other protocols than HTTP
	buffer  mem.Buffer // aliased by the texts; nil: none
}

// readLog reports the completions in a message. It neither keeps nor logs any other part of an
// entry than [usage.Completion] has: the query and the headers may hold a key.
func (s *Server) readLog(m *logMessage) {
	for i := range m.entries {
		s.metrics.entries[s.readEntry(&m.entries[i])].Inc()
	}
	s.metrics.entries[entryNotHTTP].Add(float64(m.tcp))
	if m.buffer != nil {
		m.buffer.Free()
	}
}

// readEntry reports the completion of one request, and returns the result for the metrics.
func (s *Server) readEntry(e *logEntry) (result string) {
	defer func() {
		if p := recover(); p != nil {
			result = entryPanicked
			s.panicked("access log entry panicked, left out", p)
		}
	}()
	if !e.isEnd() {
		return entryNotTheEnd
	}
	receipt := e.facts.charge
	s.untold.told(receipt != "")
	if len(receipt) > maxReceipt || e.status > maxStatus || receipt == "" && !e.facts.areNames() {
		return entryMalformed
	}
	if receipt == "" && shown(e.facts.keyID) == "" {
		return entryNoKey
	}
	failure := e.failure()
	s.config.Settle(usage.Completion{Receipt: strings.Clone(receipt), Status: e.status, Failure: failure, Record: e.record()})
	if receipt == "" {
		return entryNoCharge
	}
	return failure.String()
}

// isEnd reports whether an entry marks the end of a request, rather than its beginning or a moment
// in between.
func (e *logEntry) isEnd() bool {
	switch e.kind {
	case accesslogdata.AccessLogType_DownstreamEnd:
		return true
	case accesslogdata.AccessLogType_NotSet:
		return !e.intermediate
	}
	return false
}

// maxRecordText is the maximum length of a text in a record, in bytes.
const maxRecordText = 256

// areNames reports whether the facts can be ours: all of them consist of the characters of names.
func (f *ownFacts) areNames() bool { return isName(f.user) && isName(f.keyID) && isName(f.reason) }

func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && (c < 'A' || c > 'Z') && strings.IndexByte("._@+-", c) < 0 {
			return false
		}
	}
	return len(s) <= maxRecordText
}

// record returns the part of an entry that the user may see. It leaves out the query, and anything
// in the path that looks like a key. It keeps nothing of the entry in memory. If a name in it
// cannot be ours, the record belongs to nobody.
func (e *logEntry) record() usage.Record {
	if !e.facts.areNames() {
		return usage.Record{}
	}
	path := e.path
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		path = path[:end]
	}
	texts := [...]string{shown(e.facts.user), shown(e.facts.keyID), shown(e.facts.reason), shown(path), addressShown(e.address), shown(e.agent)}
	own := strings.Join(texts[:], "")
	for i, text := range texts {
		texts[i], own = own[:len(text)], own[len(text):]
	}
	return usage.Record{
		User: texts[0], KeyID: texts[1], Reason: texts[2], At: e.start, Method: methodOf(e.method), Path: texts[3], Status: e.status,
		Address: texts[4], Agent: texts[5],
	}
}

// addressShown returns an address as it may be kept. It replaces an invalid one.
func addressShown(s string) string {
	if s == addressUnix {
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

// The addresses of clients without one, and with an invalid one.
const (
	addressUnix    = "unix"
	addressUnknown = "unknown"
)

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
