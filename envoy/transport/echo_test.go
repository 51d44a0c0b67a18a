package transport_test

import (
	"context"

	"github.com/keyporter/keyporter/envoy/transport"
)

type echo struct{}

func (echo) Try(c *transport.Call, out []byte) ([]byte, bool) {
	if c.TooLarge {
		return append(out, "too large"...), true
	}
	if len(c.Message) > 0 && c.Message[0] == 'w' {
		return nil, false
	}
	return append(out, c.Message...), true
}

func (echo) Wait(_ context.Context, c *transport.Call, out []byte) []byte {
	return append(out, c.Message...)
}
func (echo) Refuse(c *transport.Call, out []byte) []byte { return append(out, "refused"...) }
