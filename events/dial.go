package events

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// errAddress is returned for an address that must not be dialled.
var errAddress = errors.New("the address is private, and --webhook-allow does not name it")

// special are the addresses that are not of the public internet, beside those that netip knows.
// Some of them lead to private addresses of IPv4.
var special = prefixes("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "240.0.0.0/4", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "fec0::/10", "5f00::/16", "3fff::/20")

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// mayDial reports whether an address is public or allowed.
func mayDial(address netip.Addr, allowed []netip.Prefix) bool {
	address = address.Unmap().WithZone("")
	for _, prefix := range allowed {
		if prefix.Contains(address) {
			return true
		}
	}
	if !address.IsGlobalUnicast() || address.IsPrivate() {
		return false
	}
	for _, prefix := range special {
		if prefix.Contains(address) {
			return false
		}
	}
	return true
}

// newClient returns a client that dials permitted addresses only, uses no proxy and follows no
// redirect. It checks each address after it was resolved, just before it connects.
func newClient(allowed []netip.Prefix) *http.Client {
	dialer := &net.Dialer{Timeout: dialTime, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if !mayDial(at.Addr(), allowed) {
			return fmt.Errorf("%w: %s", errAddress, at.Addr())
		}
		return nil
	}}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTime, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxConnsPerHost: width, MaxIdleConnsPerHost: width, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// dialTime bounds connecting, and the TLS handshake.
const dialTime = 5 * time.Second
