package envoy

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/keyporter/keyporter/authz"
)

// authzFilter is the namespace of our facts in an entry's metadata: the filter that asked us.
const authzFilter = "envoy.filters.http.ext_authz"

const (
	// Envoy keeps a stream of its access log for ever. A connection that has come of age waits for its
	// streams no longer than its grace, so they end before that, one by one, and none is cut off.
	streamLife = 20 * time.Second
	// How long a stream that is to end is still read: what was sent before is here by then. It ends after
	// the next message, since the one after that is not sent at once, or after as long again.
	lastEntries = 250 * time.Millisecond
	// The longest receipt, in characters. Ours are about a hundred.
	maxReceipt = 1 << 10
)

// accessLog is the access log service of a Server.
type accessLog struct {
	accesslogv3.UnimplementedAccessLogServiceServer
	server *Server
}

// StreamAccessLogs reads one worker's entries until Envoy ends the stream, the server stops or the
// stream has its age. Then Envoy opens another. Nothing is ever answered, as Envoy wants it.
func (a accessLog) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	s := a.server
	s.metrics.logStreams.Inc()
	defer s.metrics.logStreams.Dec()
	messages := s.receive(stream)
	age, stopping := time.After(streamLife), s.stopping.Done()
	var end <-chan time.Time
	lull := false // to end when nothing is on its way
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

// receive hands over the messages of a stream until it ends, which it does when its handler returns.
func (s *Server) receive(stream accesslogv3.AccessLogService_StreamAccessLogsServer) <-chan *accesslogv3.StreamAccessLogsMessage {
	messages := make(chan *accesslogv3.StreamAccessLogsMessage)
	s.readers.Go(func() {
		defer close(messages)
		for {
			m, err := stream.Recv()
			if err != nil {
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

// countUnread counts a message that is too long or that is none. Envoy sends the next ones on another
// stream.
func (s *Server) countUnread(err error) {
	switch status.Code(err) {
	case codes.ResourceExhausted, codes.Internal, codes.InvalidArgument:
		s.metrics.entries.WithLabelValues(entryMalformed).Inc()
	}
}

// readLog hands on how requests came to their end. Nothing of an entry is kept or logged but what
// an [authz.Ending] has: the query and the headers may hold a key.
func (s *Server) readLog(m *accesslogv3.StreamAccessLogsMessage) {
	for _, e := range m.GetHttpLogs().GetLogEntry() {
		s.metrics.entries.WithLabelValues(s.readEntry(e)).Inc()
	}
	for range m.GetTcpLogs().GetLogEntry() {
		s.metrics.entries.WithLabelValues(entryNotHTTP).Inc()
	}
}

// readEntry hands on how one request ended, and returns what became of its entry.
func (s *Server) readEntry(e *accesslogdata.HTTPAccessLogEntry) (result string) {
	defer func() {
		if p := recover(); p != nil {
			result = entryPanicked
			s.panicked("access log entry panicked, left out", p)
		}
	}()
	if !isEnd(e) {
		return entryNotTheEnd
	}
	own := ownFacts(e)
	receipt := own[metadataCharge].GetStringValue()
	if len(receipt) > maxReceipt {
		return entryMalformed
	}
	record := recordOf(e, own)
	if receipt == "" && record.KeyID == "" {
		return entryNoKey
	}
	failure := failureOf(e)
	s.config.Settle(authz.Ending{Receipt: receipt, Status: record.Status, Failure: failure, Record: record})
	if receipt == "" {
		return entryNoCharge
	}
	return failure.String()
}

// isEnd reports whether an entry is about the end of a request, rather than its beginning or a moment
// in between.
func isEnd(e *accesslogdata.HTTPAccessLogEntry) bool {
	switch p := e.GetCommonProperties(); p.GetAccessLogType() {
	case accesslogdata.AccessLogType_DownstreamEnd:
		return true
	case accesslogdata.AccessLogType_NotSet:
		//lint:ignore SA1019 all that an Envoy without the types has
		return !p.GetIntermediateLogEntry()
	}
	return false
}

// ownFacts returns what we told Envoy of the request when we decided it.
func ownFacts(e *accesslogdata.HTTPAccessLogEntry) map[string]*structpb.Value {
	facts := e.GetCommonProperties().GetMetadata().GetFilterMetadata()[authzFilter]
	return facts.GetFields()[MetadataKey].GetStructValue().GetFields()
}

// The longest text of a record, in bytes.
const maxRecordText = 256

// recordOf returns what the user is shown of a request. The query is left out, and what looks like a key
// in a path as well.
func recordOf(e *accesslogdata.HTTPAccessLogEntry, own map[string]*structpb.Value) authz.Record {
	request := e.GetRequest()
	path := request.GetPath()
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		path = strings.Clone(path[:min(end, maxRecordText+keyDigits+1)]) // the query must not stay in memory with it
	}
	return authz.Record{
		User: shown(own["user"].GetStringValue()), KeyID: shown(own["key_id"].GetStringValue()), Reason: shown(own["reason"].GetStringValue()),
		At:     e.GetCommonProperties().GetStartTime().AsTime(),
		Method: methodOf(request.GetRequestMethod()), Path: shown(path), Status: statusOf(e),
		Address: shown(addressOf(e.GetCommonProperties().GetDownstreamRemoteAddress())), Agent: shown(request.GetUserAgent()),
	}
}

// shown returns a text as it may be kept: without what may be a key, of bounded length and valid UTF-8. It is
// a copy where anything was left out, so that whoever keeps it does not keep the rest.
func shown(s string) string {
	seen := s[:min(len(s), maxRecordText+keyDigits)]
	text := withoutKeys(strings.ToValidUTF8(seen, "\uFFFD"))
	if len(text) <= maxRecordText && len(seen) == len(s) {
		if len(text) < len(s) {
			text = strings.Clone(text)
		}
		return text
	}
	// What is cut off may be the end of a key.
	text = strings.TrimRightFunc(text[:min(len(text), maxRecordText)], isHex)
	return strings.Clone(strings.ToValidUTF8(text, ""))
}

func methodOf(m corev3.RequestMethod) string {
	if m == corev3.RequestMethod_METHOD_UNSPECIFIED {
		return "?"
	}
	return m.String()
}

// addressOf returns the client's address, without a port.
func addressOf(a *corev3.Address) string {
	if socket := a.GetSocketAddress(); socket != nil {
		return socket.GetAddress()
	}
	return "unix"
}

// keyDigits is how many hexadecimal digits in a row may be a key.
const keyDigits = 48

// withoutKeys replaces what is as long as a key, and may be one.
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

// statusOf returns the status that the client got; 0: none.
func statusOf(e *accesslogdata.HTTPAccessLogEntry) int {
	return int(e.GetResponse().GetResponseCode().GetValue())
}
