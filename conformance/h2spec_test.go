// Package conformance runs the test suites of others against Keyporter's transport. It is a module
// of its own, so that what they need is not among the requirements of Keyporter.
package conformance

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/log"
	"github.com/summerwind/h2spec/reporter"
	"github.com/summerwind/h2spec/spec"

	"github.com/keyporter/keyporter/envoy/transport"
)

// all is the number of h2spec's tests: of HTTP/2 in general, of RFC 7540 and of RFC 7541.
const all = 145

// The transport is an HTTP/2 server by every test of h2spec, plain and over TLS.
func TestH2Spec(t *testing.T) {
	for name, secure := range map[string]*tls.Config{"plain": nil, "TLS": {Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2"}}} {
		t.Run(name, func(t *testing.T) {
			c := &config.Config{Host: "127.0.0.1", Port: port(t, serve(t, transport.Config{}, secure)), Path: "/", Timeout: 5 * time.Second, MaxHeaderLen: 4000, TLS: secure != nil, Insecure: true}
			suites := []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()}
			passed, skipped, failed := 0, 0, 0
			for _, s := range suites {
				s.Test(c)
				passed, skipped, failed = passed+s.PassedCount, skipped+s.SkippedCount, failed+s.FailedCount
			}
			log.SetIndentLevel(0)
			reporter.FailedTests(suites)
			if passed != all || skipped > 0 || failed > 0 {
				t.Errorf("%d passed, %d skipped, %d failed, want all %d passed", passed, skipped, failed, all)
			}
		})
	}
}

// serve serves until the test ends.
func serve(t *testing.T, c transport.Config, secure *tls.Config) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	c.Log = slog.New(slog.DiscardHandler)
	s := transport.NewServer(c)
	go s.Serve(l)
	t.Cleanup(func() {
		l.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx)
	})
	return address
}

func port(t *testing.T, address string) int {
	t.Helper()
	all, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return int(all.Port())
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
