package envoy

import (
	"context"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/mem"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/codec"
)

// ReadLog reads one message of the access log from the generated types.
func ReadLog(s *Server, in *accesslogv3.StreamAccessLogsMessage) {
	var m codec.LogMessage
	m.Decode(in)
	s.readLog(&m)
}

// StreamLife is the maximum age of a stream of the access log.
const StreamLife = streamLife

// AnswerOnce reads, decides and answers an encoded Check in place.
func AnswerOnce(s *Server, message mem.BufferSlice) {
	c := codec.NewGRPC(s.buffers)
	reply, err := s.checkInPlace(nil, context.Background(), func(v any) error { return c.Unmarshal(message, v) }, nil)
	if err != nil {
		panic(err)
	}
	written, err := c.Marshal(reply)
	if err != nil {
		panic(err)
	}
	written.Free()
}

// Guarded runs do under the guard of a Check, after a decision, and returns the reply if do panics.
func Guarded(s *Server, d *authz.Decision, do func()) (reply *authv3.CheckResponse) {
	defer s.guard(d, func(unavailable *codec.Answer) { reply = unavailable.Response() })
	do()
	return nil
}

const (
	MaxStrangers     = maxStrangers
	MaxStrangerCalls = maxStrangerCalls
)
