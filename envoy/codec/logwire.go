package codec

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"

	"github.com/keyporter/keyporter/envoy/wire"
)

// The fields of a StreamAccessLogsMessage that lead to the values in use, named after the messages.
const (
	logsHTTP = 2<<3 | wire.Bytes
	logsTCP  = 3<<3 | wire.Bytes

	entriesEntry = 1<<3 | wire.Bytes

	entryCommon   = 1<<3 | wire.Bytes
	entryRequest  = 3<<3 | wire.Bytes
	entryResponse = 4<<3 | wire.Bytes

	commonRemoteAddress = 2<<3 | wire.Bytes
	commonStart         = 5<<3 | wire.Bytes
	commonUpstreamTx    = 7<<3 | wire.Bytes
	commonUpstreamRx    = 9<<3 | wire.Bytes
	commonFlags         = 16<<3 | wire.Bytes
	commonMetadata      = 17<<3 | wire.Bytes
	commonIntermediate  = 27<<3 | wire.Varint
	commonKind          = 33<<3 | wire.Varint

	propertiesMethod = 1<<3 | wire.Varint
	propertiesPath   = 5<<3 | wire.Bytes
	propertiesAgent  = 6<<3 | wire.Bytes

	responseCode     = 1<<3 | wire.Bytes
	responseBody     = 3<<3 | wire.Varint
	responseHeaders  = 4<<3 | wire.Bytes
	responseTrailers = 5<<3 | wire.Bytes
	responseDetails  = 6<<3 | wire.Bytes

	wrapperValue = 1<<3 | wire.Varint

	timestampSeconds = 1<<3 | wire.Varint
	timestampNanos   = 2<<3 | wire.Varint

	addressSocket = 1<<3 | wire.Bytes
	socketAddress = 2<<3 | wire.Bytes

	metadataFilters = 1<<3 | wire.Bytes
)

// The messages on the way there.
var (
	logSchema      = wire.NewSchema((&accesslogv3.StreamAccessLogsMessage{}).ProtoReflect().Descriptor())
	entriesSchema  = logSchema.Field(2)
	entrySchema    = entriesSchema.Field(1)
	commonSchema   = entrySchema.Field(1)
	requestLog     = entrySchema.Field(3)
	responseLog    = entrySchema.Field(4)
	addressSchema  = commonSchema.Field(2)
	socketSchema   = addressSchema.Field(1)
	flagsSchema    = commonSchema.Field(16)
	metadataSchema = commonSchema.Field(17)
	structSchema   = metadataSchema.Field(1).Field(2)
	valueSchema    = structSchema.Field(1).Field(2)
)

// read reads an encoded StreamAccessLogsMessage like [LogMessage.Decode]. It returns false if the
// message is unusual or invalid: the generated code then has to decode it, and m's content is
// unusable. The texts in m alias the message.
func (m *LogMessage) read(message []byte) (ok bool) {
	defer func() {
		if recover() != nil { // nothing above would catch it
			ok = false
		}
	}()
	*m = LogMessage{}
	var logs, tcp bool
	r := wire.Read(message)
	for r.Next() {
		good := true
		switch r.Tag {
		case logsHTTP:
			good = once(&logs) && m.readEntries(r.Value)
		case logsTCP:
			good = once(&tcp) && m.countTCP(r.Value)
		default:
			good = logSchema.AcceptsField(&r)
		}
		if !good {
			return false
		}
	}
	return r.Done() && !(logs && tcp)
}

func (m *LogMessage) readEntries(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != entriesEntry {
			return false
		}
		m.Entries = append(m.Entries, LogEntry{Start: time.Unix(0, 0).UTC(), Address: AddressUnix})
		if !m.Entries[len(m.Entries)-1].read(r.Value) {
			return false
		}
	}
	return r.Done()
}

func (m *LogMessage) countTCP(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != entriesEntry {
			return false
		}
		m.TCP++
	}
	return r.Done() && logSchema.Field(3).Accepts(message)
}

func (e *LogEntry) read(message []byte) bool {
	var common, request, response bool
	r := wire.Read(message)
	for r.Next() {
		good := true
		switch r.Tag {
		case entryCommon:
			good = once(&common) && e.readCommon(r.Value)
		case entryRequest:
			good = once(&request) && e.readRequest(r.Value)
		case entryResponse:
			good = once(&response) && e.readResponse(r.Value)
		default:
			good = entrySchema.AcceptsField(&r)
		}
		if !good {
			return false
		}
	}
	return r.Done()
}

func (e *LogEntry) readCommon(message []byte) bool {
	var address, start, flags, metadata bool
	r := wire.Read(message)
	for r.Next() {
		good := true
		switch r.Tag {
		case commonRemoteAddress:
			good = once(&address) && e.readAddress(r.Value)
		case commonStart:
			good = once(&start) && e.readStart(r.Value)
		case commonUpstreamTx:
			e.Sent, good = true, commonSchema.AcceptsField(&r)
		case commonUpstreamRx:
			e.Began, good = true, commonSchema.AcceptsField(&r)
		case commonFlags:
			good = once(&flags) && e.readFlags(r.Value)
		case commonMetadata:
			good = once(&metadata) && e.readMetadata(r.Value)
		case commonIntermediate:
			e.intermediate = r.Number != 0
		case commonKind:
			e.kind = accesslogdata.AccessLogType(r.Number)
		default:
			good = commonSchema.AcceptsField(&r)
		}
		if !good {
			return false
		}
	}
	return r.Done()
}

func (e *LogEntry) readAddress(message []byte) bool {
	fields := 0 // only one counts, the last
	r := wire.Read(message)
	for r.Next() {
		if fields++; fields > 1 {
			return false
		}
		if r.Tag != addressSocket {
			if !addressSchema.AcceptsField(&r) {
				return false
			}
			continue
		}
		e.Address = ""
		socket := wire.Read(r.Value)
		for socket.Next() {
			good := true
			if socket.Tag == socketAddress {
				e.Address, good = alias(socket.Value)
			} else {
				good = socketSchema.AcceptsField(&socket)
			}
			if !good {
				return false
			}
		}
		if !socket.Done() {
			return false
		}
	}
	return r.Done()
}

func (e *LogEntry) readStart(message []byte) bool {
	var seconds int64
	var nanos int32
	r := wire.Read(message)
	for r.Next() {
		switch r.Tag {
		case timestampSeconds:
			seconds = int64(r.Number)
		case timestampNanos:
			nanos = int32(r.Number)
		default:
			return false
		}
	}
	e.Start = time.Unix(seconds, int64(nanos)).UTC()
	return r.Done()
}

func (e *LogEntry) readFlags(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if !flagsSchema.AcceptsField(&r) {
			return false
		}
		if flag := r.Tag >> 3; r.Tag&7 == wire.Varint {
			e.Flags &^= 1 << flag
			if r.Number != 0 {
				e.Flags |= 1 << flag
			}
		}
	}
	e.Flags &= knownFlags
	return r.Done()
}

// knownFlags are the flags in use.
const knownFlags = 1<<NoHealthyUpstream | 1<<UpstreamRequestTimeout | 1<<LocalReset | 1<<UpstreamRemoteReset |
	1<<UpstreamConnectionFailure | 1<<UpstreamConnectionTermination | 1<<UpstreamOverflow | 1<<NoRouteFound |
	1<<DownstreamTermination | 1<<UpstreamRetryLimitExceeded | 1<<StreamIdleTimeout | 1<<UpstreamProtocolError |
	1<<NoClusterFound | 1<<DNSResolutionFailure | 1<<DownstreamRemoteReset

func (e *LogEntry) readRequest(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		good := true
		switch r.Tag {
		case propertiesMethod:
			e.Method = corev3.RequestMethod(r.Number)
		case propertiesPath:
			e.Path, good = alias(r.Value)
		case propertiesAgent:
			e.Agent, good = alias(r.Value)
		default:
			good = requestLog.AcceptsField(&r)
		}
		if !good {
			return false
		}
	}
	return r.Done()
}

func (e *LogEntry) readResponse(message []byte) bool {
	var code, headers, trailers bool
	r := wire.Read(message)
	for r.Next() {
		good := true
		switch r.Tag {
		case responseCode:
			good = once(&code) && e.readStatus(r.Value)
		case responseBody:
			e.Size = r.Number
		case responseHeaders:
			good = readGRPCStatus(r.Value, &e.GRPCHeader, &headers)
		case responseTrailers:
			good = readGRPCStatus(r.Value, &e.GRPCTrailer, &trailers)
		case responseDetails:
			e.Details, good = alias(r.Value)
		default:
			good = responseLog.AcceptsField(&r)
		}
		if !good {
			return false
		}
	}
	return r.Done()
}

func (e *LogEntry) readStatus(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != wrapperValue {
			return false
		}
		e.Status = int(uint32(r.Number))
	}
	return r.Done()
}

// readGRPCStatus reads an entry of a map of headers. It accepts the status only once.
func readGRPCStatus(message []byte, status *string, seen *bool) bool {
	name, value, ok := readTexts(message)
	if ok && name == headerGRPCStatus {
		*status = value
		return once(seen)
	}
	return ok
}

// readTexts reads an entry of a map of texts.
func readTexts(message []byte) (name, value string, good bool) {
	r := wire.Read(message)
	for r.Next() {
		switch r.Tag {
		case entryKey:
			name, good = alias(r.Value)
		case entryValue:
			value, good = alias(r.Value)
		default:
			good = false
		}
		if !good {
			return "", "", false
		}
	}
	return name, value, r.Done()
}

// readMetadata looks for our own facts among those of all filters.
func (e *LogEntry) readMetadata(message []byte) bool {
	var seen bool
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != metadataFilters {
			if !metadataSchema.AcceptsField(&r) {
				return false
			}
			continue
		}
		filter, value, ok := mapEntry(r.Value)
		if !ok {
			return false
		}
		if filter != authzFilter {
			if !structSchema.Accepts(value) {
				return false
			}
			continue
		}
		if !once(&seen) || !e.readFilter(value) {
			return false
		}
	}
	return r.Done()
}

// mapEntry splits an entry of a map of messages. It does not read the message.
func mapEntry(message []byte) (name string, value []byte, ok bool) {
	var key, val, good bool
	r := wire.Read(message)
	for r.Next() {
		switch r.Tag {
		case entryKey:
			name, good = alias(r.Value)
			good = good && once(&key)
		case entryValue:
			value, good = r.Value, once(&val)
		default:
			good = false
		}
		if !good {
			return "", nil, false
		}
	}
	return name, value, r.Done()
}

// readFilter reads the Struct of our filter, with our facts in one of its fields.
func (e *LogEntry) readFilter(message []byte) bool {
	var seen bool
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != structFields {
			return false
		}
		name, value, ok := mapEntry(r.Value)
		if !ok {
			return false
		}
		if name != MetadataKey {
			if !valueSchema.Accepts(value) {
				return false
			}
			continue
		}
		own, ok := only(value, valueStruct)
		if !ok || !once(&seen) || !e.Facts.read(own) {
			return false
		}
	}
	return r.Done()
}

// only returns the value of a message's only field.
func only(message []byte, tag wire.Tag) ([]byte, bool) {
	r := wire.Read(message)
	if !r.Next() || r.Tag != tag {
		return nil, false
	}
	return r.Value, r.Done()
}

func (f *Facts) read(message []byte) bool {
	r := wire.Read(message)
	for r.Next() {
		if r.Tag != structFields {
			return false
		}
		name, value, ok := mapEntry(r.Value)
		if !ok {
			return false
		}
		raw, ok := only(value, valueString)
		if !ok {
			return false
		}
		text, ok := alias(raw)
		if !ok || !f.take(name, text) {
			return false
		}
	}
	return r.Done()
}

// take stores one of our facts, and reports whether it was not set before.
func (f *Facts) take(name, value string) bool {
	var fact *string
	switch name {
	case metadataCharge:
		fact = &f.Charge
	case "key_id":
		fact = &f.KeyID
	case "reason":
		fact = &f.Reason
	case "user":
		fact = &f.User
	default:
		return true
	}
	first := *fact == ""
	*fact = value
	return first
}
