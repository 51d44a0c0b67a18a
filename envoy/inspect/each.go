package inspect

import (
	"fmt"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
)

// What follows makes a finder of a function that looks at one thing. Only connection managers that
// ask Keyporter are looked at so: of the others it is said once that they do not.

func eachManager(look func(*config, *manager, report)) finder {
	return func(c *config, report report) {
		for _, l := range c.listeners {
			for _, m := range l.managers {
				if len(m.guards) > 0 {
					look(c, m, report)
				}
			}
		}
	}
}

// manages finds connection managers of which something is true, at one of their settings.
func manages(field, what string, wrong func(*manager) bool) finder {
	return eachManager(func(_ *config, m *manager, report report) {
		if wrong(m) {
			report(m.path.At(field), what)
		}
	})
}

func eachGuard(look func(*guard, report)) finder {
	return eachManager(func(_ *config, m *manager, report report) {
		for _, g := range m.guards {
			look(g, report)
		}
	})
}

// sets finds ext_authz filters of which something is true, at one of their settings.
func sets(field, what string, wrong func(*extauthzv3.ExtAuthz) bool) finder {
	return eachGuard(func(g *guard, report report) {
		if wrong(g.authz) {
			report(g.settings.At(field), what)
		}
	})
}

func eachService(look func(*config, *manager, service, report)) finder {
	return eachManager(func(c *config, m *manager, report report) {
		for _, s := range m.services {
			look(c, m, s, report)
		}
	})
}

// eachCluster looks at the clusters that Checks are sent to. What is not known is looked at by
// nobody.
func eachCluster(look func(cluster, report)) finder {
	return eachService(func(c *config, _ *manager, s service, report report) {
		if k, ok := c.clusters[s.grpc.GetEnvoyGrpc().GetClusterName()]; ok {
			look(k, report)
		}
	})
}

// eachRoute looks at the routes that lead to an upstream, where Keyporter is asked.
func eachRoute(look func(*manager, *route, report)) finder {
	return eachManager(func(_ *config, m *manager, report report) {
		for _, r := range m.routes {
			if r.forwards() && m.guardsSome(r) {
				look(m, r, report)
			}
		}
	})
}

// quoted makes a name out of the document fit for a terminal.
func quoted(name string) string { return fmt.Sprintf("%q", name) }
