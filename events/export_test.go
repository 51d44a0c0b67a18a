package events

import (
	"net/http"
	"time"
)

// Over makes the Deliverer send by a transport of the test.
func (d *Deliverer) Over(transport http.RoundTripper) { d.client.Transport = transport }

// Wait makes the Deliverer wait for answers for that long.
func (d *Deliverer) Wait(patience time.Duration) { d.patience = patience }

// For tests of the package from outside.
var (
	Body     = body
	MayDial  = mayDial
	NextWait = nextWait
)
