package codec

import (
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/keyporter/keyporter/envoy/wire"
)

// MaxMessageSize is the maximum size of a message, in bytes. A Check carries the request's headers,
// by default at most 60 KiB in Envoy, and the path once more; the rest is a few hundred bytes.
// Twice that leaves room. A longer Check is answered with 431, and a longer message of the access
// log is left out.
const MaxMessageSize = 256 << 10

// ReadCheck reads an encoded CheckRequest into c. Nothing in c aliases the message.
func (k Kind) ReadCheck(message []byte, c *Call) error {
	if c.TooLarge = len(message) > MaxMessageSize; c.TooLarge || k == Fast && c.Read(message) {
		return nil
	}
	var in authv3.CheckRequest
	if err := proto.Unmarshal(message, &in); err != nil {
		return err
	}
	c.Decode(&in)
	return nil
}

// ReadLog reads an encoded StreamAccessLogsMessage into m, whose texts may alias the message.
func (k Kind) ReadLog(message []byte, m *LogMessage) error {
	if len(message) > MaxMessageSize {
		return ErrLongMessage
	}
	if k == Fast && m.read(message) {
		return nil
	}
	var in accesslogv3.StreamAccessLogsMessage
	if err := proto.Unmarshal(message, &in); err != nil {
		return err
	}
	m.Decode(&in)
	return nil
}

// AppendAnswer appends an encoded CheckResponse to out.
func (k Kind) AppendAnswer(out []byte, a *Answer) ([]byte, error) {
	if k == Generated {
		return proto.MarshalOptions{}.MarshalAppend(out, a.Response())
	}
	size := a.Size()
	out = slices.Grow(out, size)
	w := wire.Write(out[len(out) : len(out)+size])
	a.Write(&w)
	return append(out, w.Message()...), nil
}

// GRPC reads and writes messages for gRPC: Checks and the access log by our own code, all others
// by the generated code.
type GRPC struct {
	encoding.CodecV2
	buffers mem.BufferPool
}

// NewGRPC returns a codec that takes memory from buffers.
func NewGRPC(buffers mem.BufferPool) GRPC {
	return GRPC{encoding.GetCodecV2(protocodec.Name), buffers}
}

// Unmarshal implements [encoding.CodecV2]. The caller owns data and frees it afterwards.
func (c GRPC) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Check:
		return c.readCheck(data, m)
	case *LogMessage:
		return c.readLog(data, m)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Marshal implements [encoding.CodecV2].
func (c GRPC) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*Check); ok {
		return m.reply, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c GRPC) readCheck(data mem.BufferSlice, m *Check) error {
	if m.Call.TooLarge = data.Len() > MaxMessageSize; m.Call.TooLarge {
		return nil
	}
	message := data.MaterializeToBuffer(c.buffers)
	defer message.Free()
	return Fast.ReadCheck(message.ReadOnlyData(), &m.Call)
}

// readLog reads a message. Its texts alias the data, which stays in memory until the message is
// freed.
func (c GRPC) readLog(data mem.BufferSlice, m *LogMessage) error {
	if data.Len() > MaxMessageSize {
		return ErrLongMessage
	}
	message := data.MaterializeToBuffer(c.buffers)
	if err := Fast.ReadLog(message.ReadOnlyData(), m); err != nil {
		message.Free()
		return err
	}
	m.buffer = message
	return nil
}

// Check is one Check in place of the generated types: [GRPC] reads its Call, and writes the reply
// that [Check.Answer] has made.
type Check struct {
	Call  Call
	reply mem.BufferSlice
	room  [1]mem.Buffer
}

// Answer makes the reply of a. gRPC then owns it, and frees it once it is sent.
func (k *Check) Answer(a *Answer, pool mem.BufferPool) {
	buffer := pool.Get(a.Size())
	w := wire.Write(*buffer)
	a.Write(&w)
	whole := mem.NewBuffer(buffer, pool)
	k.room[0] = whole.Slice(whole.Len()-w.Len(), whole.Len())
	k.reply = k.room[:]
	whole.Free()
}
