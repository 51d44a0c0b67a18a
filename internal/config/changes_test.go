package config

import (
	"testing"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/envoy/bootstrap"
)

// Envoy's configuration has to follow a change that only moves lines to other places.
func TestRoutesOfTwoHostsThatChangePlacesAreADifference(t *testing.T) {
	with := func(first, second authz.Destination) *Config {
		table, err := authz.NewRouteTable([]authz.Rule{
			{Path: "/x", Kind: authz.KindPublic, Hosts: []string{"a.example"}, To: first},
			{Path: "/x", Kind: authz.KindPublic, Hosts: []string{"b.example"}, To: second},
		})
		if err != nil {
			t.Fatal(err)
		}
		return &Config{Routes: table, Upstreams: map[string]bootstrap.Upstream{"one": {URL: "http://one"}, "two": {URL: "http://two"}}}
	}
	before := with("one", "two")
	if _, _, differs := before.BootstrapDifference(with("two", "one")); !differs {
		t.Error("two hosts swapped their upstreams, and no difference is reported")
	}
	if _, _, differs := before.BootstrapDifference(with("one", "two")); differs {
		t.Error("a table differs from itself")
	}
}
