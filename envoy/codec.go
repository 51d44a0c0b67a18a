package envoy

import (
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/keyporter/keyporter/envoy/wire"
)

// Codec selects how messages are read and written. All codecs read and write the same.
type Codec uint8

// The codecs.
const (
	CodecFast      Codec = iota // Checks and access logs in place, all else by the generated code
	CodecGenerated              // everything by the generated code
)

// String returns the name of c in the configuration.
func (c Codec) String() string {
	if c == CodecGenerated {
		return "generated"
	}
	return "fast"
}

// ParseCodec reads the name of a codec.
func ParseCodec(s string) (Codec, error) {
	for _, c := range []Codec{CodecFast, CodecGenerated} {
		if s == c.String() {
			return c, nil
		}
	}
	return CodecFast, fmt.Errorf("unknown codec %q: want fast or generated", s)
}

// errLongMessage ends a stream of the access log.
var errLongMessage = fmt.Errorf("a message of more than %d bytes", maxMessageSize)

// codec reads and writes messages for gRPC: Checks and the access log by our own code, all others
// by the generated code.
type codec struct {
	encoding.CodecV2
	buffers *bufferPool
}

func newCodec(buffers *bufferPool) codec { return codec{encoding.GetCodecV2(protocodec.Name), buffers} }

// Unmarshal implements [encoding.CodecV2]. The caller owns data and frees it afterwards.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *check:
		return c.readCheck(data, m)
	case *logMessage:
		return c.readLog(data, m)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*check); ok {
		return m.reply, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) readCheck(data mem.BufferSlice, m *check) error {
	if m.call.tooLarge = data.Len() > maxMessageSize; m.call.tooLarge {
		return nil
	}
	message := data.MaterializeToBuffer(c.buffers)
	defer message.Free()
	if m.call.readCheck(message.ReadOnlyData()) {
		return nil
	}
	var in authv3.CheckRequest
	if err := c.CodecV2.Unmarshal(data, &in); err != nil {
		return err
	}
	m.call.decode(&in)
	return nil
}

// readLog reads a message. Its texts alias the data, which stays in memory until the message is
// freed.
func (c codec) readLog(data mem.BufferSlice, m *logMessage) error {
	if data.Len() > maxMessageSize {
		return errLongMessage
	}
	message := data.MaterializeToBuffer(c.buffers)
	if m.read(message.ReadOnlyData()) {
		m.buffer = message
		return nil
	}
	message.Free()
	var in accesslogv3.StreamAccessLogsMessage
	if err := c.CodecV2.Unmarshal(data, &in); err != nil {
		return err
	}
	m.decode(&in)
	return nil
}

// check is one Check: the question and the reply.
type check struct {
	call  call
	bound bound
	reply mem.BufferSlice
	room  [1]mem.Buffer
}

// answer makes the reply. gRPC then owns it, and frees it once it is sent.
func (k *check) answer(a *answer, pool mem.BufferPool) {
	buffer := pool.Get(a.size())
	w := wire.Write(*buffer)
	a.write(&w)
	whole := mem.NewBuffer(buffer, pool)
	k.room[0] = whole.Slice(whole.Len()-w.Len(), whole.Len())
	k.reply = k.room[:]
	whole.Free()
}
