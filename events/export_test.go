package events

import "net/http"

// Over makes the Deliverer send by a transport of the test.
func (d *Deliverer) Over(transport http.RoundTripper) { d.client.Transport = transport }

// For tests of the package from outside.
var (
	Body     = body
	MayDial  = mayDial
	NextWait = nextWait
)
