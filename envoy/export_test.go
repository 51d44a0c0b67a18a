package envoy

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/keyporter/keyporter/authz"
)

// ReadLog reads one message of the access log with both codecs: the fast one must read it in place
// or refuse it.
func ReadLog(s *Server, in *accesslogv3.StreamAccessLogsMessage) {
	var m logMessage
	m.decode(in)
	s.readLog(&m)
}

// ReadLogEntries reads a message in place, or returns false if the generated code has to. Its
// result can be compared with that of DecodeLogEntries.
func ReadLogEntries(message []byte) (entries any, ok bool) {
	var m logMessage
	ok = m.read(message)
	return m, ok
}

// DecodeLogEntries reads a message from the generated types.
func DecodeLogEntries(in *accesslogv3.StreamAccessLogsMessage) any {
	var m logMessage
	m.decode(in)
	return m
}

// StreamLife is the maximum age of a stream of the access log.
const StreamLife = streamLife

// Call is the decoded part of a Check.
type Call struct {
	authz.Request
	GRPC     bool
	Imposing []string
}

func (c *call) exported() Call {
	return Call{Request: c.Request, GRPC: c.grpc, Imposing: c.imposing}
}

// ReadCheck reads a Check in place, or returns false if the generated code has to.
func ReadCheck(message []byte) (Call, bool) {
	var c call
	ok := c.readCheck(message)
	clear(message) // the result must not alias it
	return c.exported(), ok
}

// DecodeCheck reads a Check from the generated types.
func DecodeCheck(in *authv3.CheckRequest) Call {
	var c call
	c.decode(in)
	return c.exported()
}

// Answers returns the answer to a Check as both codecs write it.
func Answers(in *authv3.CheckRequest, d *authz.Decision) (*authv3.CheckResponse, []byte) {
	k := check{}
	k.call.decode(in)
	var a answer
	a.fill(&k.call, d)
	k.answer(&a, buffers)
	return a.response(), k.reply.Materialize()
}

var buffers = newBufferPool()

// ReadCheckOnce reads a Check in place and discards it.
func ReadCheckOnce(message []byte) bool { return (&call{}).readCheck(message) }

// ZeroAnswer returns an unfilled answer as both codecs write it.
func ZeroAnswer() (*authv3.CheckResponse, []byte) {
	var a answer
	k := check{}
	k.answer(&a, buffers)
	return a.response(), k.reply.Materialize()
}

// AnswerOnce reads a Check in place and writes its answer.
func AnswerOnce(message []byte, d *authz.Decision) {
	k := &check{}
	k.call.readCheck(message)
	var a answer
	a.fill(&k.call, d)
	k.answer(&a, buffers)
	k.reply.Free()
}

// WriteAnswer writes the answer to a Check.
func WriteAnswer(d *authz.Decision) {
	k := &check{}
	var a answer
	a.fill(&k.call, d)
	k.answer(&a, buffers)
	k.reply.Free()
}

// Concerns is concerns.
var Concerns = concerns

// Guarded runs do under the guard of a Check, after a decision, and returns the reply if do panics.
func Guarded(s *Server, d *authz.Decision, do func()) (reply *authv3.CheckResponse) {
	defer s.guard(d, func(unavailable *answer) { reply = unavailable.response() })
	do()
	return nil
}

const (
	MaxStrangers     = maxStrangers
	MaxStrangerCalls = maxStrangerCalls
)
