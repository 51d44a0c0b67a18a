package main

import (
	"testing"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy"
)

// Envoy's configuration has to follow a change that puts the same lines into other places.
func TestRoutesOfTwoHostsThatChangePlacesAreADifference(t *testing.T) {
	with := func(first, second authz.Destination) *config {
		table, err := authz.NewRouteTable([]authz.Rule{
			{Path: "/x", Kind: authz.KindPublic, Hosts: []string{"a.example"}, To: first},
			{Path: "/x", Kind: authz.KindPublic, Hosts: []string{"b.example"}, To: second},
		})
		if err != nil {
			t.Fatal(err)
		}
		return &config{Routes: table, Upstreams: map[string]envoy.Upstream{"one": {URL: "http://one"}, "two": {URL: "http://two"}}}
	}
	before := with("one", "two")
	if _, _, differs := before.bootstrapDifference(with("two", "one")); !differs {
		t.Error("two hosts have changed their upstreams, and nobody is told")
	}
	if _, _, differs := before.bootstrapDifference(with("one", "two")); differs {
		t.Error("a table differs from itself")
	}
}
