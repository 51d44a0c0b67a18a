package inspect

import (
	"fmt"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
)

// The functions below turn a function that looks at one thing into a finder. They only look at
// connection managers that ask Keyporter: the others have one finding of their own.

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

// manages finds connection managers for which wrong is true, at one of their settings.
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

// sets finds ext_authz filters for which wrong is true, at one of their settings.
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

// eachCluster looks at the clusters that Checks are sent to. It skips unknown ones.
func eachCluster(look func(cluster, report)) finder {
	return eachService(func(c *config, _ *manager, s service, report report) {
		if k, ok := c.clusters[s.grpc.GetEnvoyGrpc().GetClusterName()]; ok {
			look(k, report)
		}
	})
}

// eachRoute looks at the routes that lead to an upstream and for which Keyporter is asked.
func eachRoute(look func(*manager, *route, report)) finder {
	return eachManager(func(_ *config, m *manager, report report) {
		for _, r := range m.routes {
			if r.forwards() && m.guardsSome(r) {
				look(m, r, report)
			}
		}
	})
}

// quoted makes a name from the document safe to print.
func quoted(name string) string { return fmt.Sprintf("%q", name) }
