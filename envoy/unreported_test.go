package envoy_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	accesslogdata "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/envoy/codec/codectest"
	"github.com/keyporter/keyporter/usage"
)

// The server knows how long it has charged without an access log entry for a charge, and whether
// any entry has arrived.
func TestChargesOfWhichNobodyTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var decision authz.Decision
		s := makeServer(envoy.Config{DrainDelay: -1, Authorize: func(context.Context, *authz.Request) (authz.Decision, error) {
			return decision, nil
		}})
		defer s.Shutdown(t.Context())
		ask := func(id string, d authz.Decision) {
			decision = d
			in := codectest.Check("GET", "/a")
			in.Attributes.Request.Http.Id = id
			if _, err := s.Check(t.Context(), in); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(what string, since time.Duration, entries bool) {
			t.Helper()
			if gotSince, gotEntries := s.Unreported(); gotSince != since || gotEntries != entries {
				t.Errorf("%s: for %v, entries: %v; want %v, %v", what, gotSince, gotEntries, since, entries)
			}
		}
		charge := authz.Decision{Reason: authz.Allowed, Principal: somebody, Charge: usage.Charge{Receipt: "receipt"}}
		never := charge
		never.Rule = &authz.Rule{Refund: usage.RefundRule{Never: true}}
		time.Sleep(time.Hour)
		expect("at the start", 0, false)
		ask("1", authz.Decision{Reason: authz.NoRoute})
		ask("2", authz.Decision{Reason: authz.Allowed, Principal: somebody})
		ask("3", never)
		ask("", charge)
		time.Sleep(time.Minute)
		expect("after refusals, what is free, what never comes back, and a drill", 0, false)
		ask("4", charge)
		time.Sleep(time.Minute)
		ask("5", charge)
		expect("after charges", time.Minute, false)
		envoy.ReadLog(s, logOf(entry(func(e *accesslogdata.HTTPAccessLogEntry) { e.CommonProperties.Metadata = nil })))
		expect("after an entry that names none", time.Minute, true)
		envoy.ReadLog(s, logOf(entry()))
		expect("after an entry that names one", 0, false)
		time.Sleep(time.Minute)
		ask("6", charge)
		time.Sleep(time.Second)
		expect("after one more charge", time.Second, false)
	})
}
