package codec

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/authz"
)

// ReadLogEntries reads a message in place, or returns false if the generated code has to. Its
// result can be compared with that of DecodeLogEntries.
func ReadLogEntries(message []byte) (entries any, ok bool) {
	var m LogMessage
	ok = m.read(message)
	return m, ok
}

// DecodeLogEntries reads a message from the generated types.
func DecodeLogEntries(in *accesslogv3.StreamAccessLogsMessage) any {
	var m LogMessage
	m.Decode(in)
	return m
}

// Decoded is the decoded part of a Check.
type Decoded struct {
	authz.Request
	GRPC    bool
	Spoofed []string
}

func (c *Call) exported() Decoded {
	return Decoded{Request: c.Request, GRPC: c.grpc, Spoofed: c.spoofed}
}

// ReadCheck reads a Check in place, or returns false if the generated code has to.
func ReadCheck(message []byte) (Decoded, bool) {
	var c Call
	ok := c.Read(message)
	clear(message) // the result must not alias it
	return c.exported(), ok
}

// DecodeCheck reads a Check from the generated types.
func DecodeCheck(in *authv3.CheckRequest) Decoded {
	var c Call
	c.Decode(in)
	return c.exported()
}

// Answers returns the answer to a Check as both codecs write it.
func Answers(in *authv3.CheckRequest, d *authz.Decision, s Selection) (*authv3.CheckResponse, []byte) {
	k := Check{}
	k.Call.Decode(in)
	a := Answer{Selection: s}
	a.Fill(&k.Call, d)
	k.Answer(&a, buffers)
	return a.Response(), k.reply.Materialize()
}

var buffers = NewBufferPool()

// ReadCheckOnce reads a Check in place and discards it.
func ReadCheckOnce(message []byte) bool { return (&Call{}).Read(message) }

// ZeroAnswer returns an unfilled answer as both codecs write it.
func ZeroAnswer() (*authv3.CheckResponse, []byte) {
	var a Answer
	k := Check{}
	k.Answer(&a, buffers)
	return a.Response(), k.reply.Materialize()
}

// WriteAnswer writes the answer to a Check.
func WriteAnswer(d *authz.Decision) {
	k := &Check{}
	var a Answer
	a.Fill(&k.Call, d)
	k.Answer(&a, buffers)
	k.reply.Free()
}

// Concerns is concerns.
var Concerns = concerns
