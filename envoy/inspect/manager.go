package inspect

import (
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// listener is a listener and its filter chains.
type listener struct {
	path Path
	*listenerv3.Listener
	managers []*manager // of the chains that speak HTTP
	others   []place    // the chains that do not
}

// manager is an HTTP connection manager, with everything that determines how it treats requests.
type manager struct {
	path Path
	*hcmv3.HttpConnectionManager
	filters []*filter
	guards  []*guard // the ext_authz filters
	routes  []*route
	tables  []routeTable // of routes
	known   bool         // routes is complete

	services []service // all services that the guards may ask
}

// filter is an HTTP filter. Its settings may be of an unknown type.
type filter struct {
	path, settings Path
	*hcmv3.HttpFilter
	typed *anypb.Any // nil: they come by ECDS, and are not in the document
}

// guard is a filter that asks Keyporter. Every ext_authz filter counts as one.
type guard struct {
	*filter
	authz *extauthzv3.ExtAuthz
}

// route is a route with its surroundings.
type route struct {
	path Path
	*routev3.Route
	hostPath Path
	host     *routev3.VirtualHost
	// scopes are the ways in which a request may take this route: one, or one for each of its
	// weighted clusters. Each lists the settings that apply to it, the most specific first.
	scopes []scope
}

type scope []level

// level is one place that overrides settings of filters and removes headers.
type level struct {
	path    Path
	filters map[string]*anypb.Any // name of a filter → its settings
	removed []string              // headers that do not reach the upstream
}

func (l *listener) takeApart(c *config) {
	chains := map[Path]*listenerv3.FilterChain{}
	var order []Path
	for i, chain := range l.GetFilterChains() {
		at := l.path.At("filter_chains").Item(i)
		chains[at], order = chain, append(order, at)
	}
	if chain := l.GetDefaultFilterChain(); chain != nil {
		at := l.path.At("default_filter_chain")
		chains[at], order = chain, append(order, at)
	}
	if l.GetFcdsConfig() != nil {
		c.miss(l.path.At("fcds_config"), "the filter chains come from FCDS")
	}
	for _, at := range order {
		l.takeChain(c, chains[at], at)
	}
}

func (l *listener) takeChain(c *config, chain *listenerv3.FilterChain, at Path) {
	for i, network := range chain.GetFilters() {
		place := at.At("filters").Item(i)
		var http hcmv3.HttpConnectionManager
		if unpack(network.GetTypedConfig(), &http) {
			l.managers = append(l.managers, newManager(c, &http, place.At("typed_config")))
			return
		}
		if network.GetConfigDiscovery() != nil {
			c.miss(place.At("config_discovery"), "the network filter comes from ECDS")
			return
		}
	}
	if len(chain.GetFilters()) > 0 {
		last := chain.GetFilters()[len(chain.GetFilters())-1]
		l.others = append(l.others, place{at, fmt.Sprintf("the filter %q forwards connections", last.GetName())})
	}
}

func newManager(c *config, http *hcmv3.HttpConnectionManager, at Path) *manager {
	m := &manager{path: at, HttpConnectionManager: http}
	for i, h := range http.GetHttpFilters() {
		place := at.At("http_filters").Item(i)
		f := &filter{path: place, settings: place.At("typed_config"), HttpFilter: h, typed: h.GetTypedConfig()}
		if h.GetConfigDiscovery() != nil {
			found := c.extensions[h.GetName()]
			if f.typed, f.settings = found.typed, found.path; f.typed == nil {
				f.settings = place.At("config_discovery")
				c.miss(f.settings, fmt.Sprintf("the filter %q comes from ECDS", h.GetName()))
			}
		}
		m.filters = append(m.filters, f)
		var authz extauthzv3.ExtAuthz
		if unpack(f.typed, &authz) {
			m.guards = append(m.guards, &guard{f, &authz})
		}
	}
	m.takeRoutes(c)
	m.takeServices()
	return m
}

// takeRoutes finds the routes, inline or by RDS or scoped.
func (m *manager) takeRoutes(c *config) {
	m.known = true
	byName := func(at Path, source *hcmv3.Rds) {
		table, ok := c.tables[source.GetRouteConfigName()]
		if !ok {
			m.known = false
			c.miss(at, fmt.Sprintf("the routes %q come from RDS: inspect the running Envoy", source.GetRouteConfigName()))
			return
		}
		m.takeTable(c, table.RouteConfiguration, table.path)
	}
	switch {
	case m.GetRouteConfig() != nil:
		m.takeTable(c, m.GetRouteConfig(), m.path.At("route_config"))
	case m.GetRds() != nil:
		byName(m.path.At("rds"), m.GetRds())
	case m.GetScopedRoutes() != nil:
		at := m.path.At("scoped_routes")
		list := m.GetScopedRoutes().GetScopedRouteConfigurationsList()
		if list == nil {
			m.known = false
			c.miss(at, "the scoped routes come from SRDS")
		}
		for i, scoped := range list.GetScopedRouteConfigurations() {
			place := at.in("scoped_route_configurations_list", "scoped_route_configurations").Item(i)
			if table := scoped.GetRouteConfiguration(); table != nil {
				m.takeTable(c, table, place.At("route_configuration"))
				continue
			}
			byName(place, &hcmv3.Rds{RouteConfigName: scoped.GetRouteConfigurationName()})
		}
	}
}

func (m *manager) takeTable(c *config, routes *routev3.RouteConfiguration, at Path) {
	m.tables = append(m.tables, routeTable{at, routes})
	if routes.GetVhds() != nil {
		m.known = false
		c.miss(at.At("vhds"), "the virtual hosts come from VHDS")
	}
	around := level{at, routes.GetTypedPerFilterConfig(), routes.GetRequestHeadersToRemove()}
	for i, host := range routes.GetVirtualHosts() {
		hostPath := at.At("virtual_hosts").Item(i)
		if host.GetMatcher() != nil {
			m.known = false
			c.miss(hostPath.At("matcher"), "the matcher of a virtual host has routes of its own")
		}
		hostLevel := level{hostPath, host.GetTypedPerFilterConfig(), host.GetRequestHeadersToRemove()}
		for j, r := range host.GetRoutes() {
			place := hostPath.At("routes").Item(j)
			own := level{place, r.GetTypedPerFilterConfig(), r.GetRequestHeadersToRemove()}
			found := &route{path: place, Route: r, hostPath: hostPath, host: host, scopes: []scope{{own, hostLevel, around}}}
			if weighted := r.GetRoute().GetWeightedClusters().GetClusters(); len(weighted) > 0 {
				found.scopes = nil
				for k, w := range weighted {
					part := level{place.in("route", "weighted_clusters", "clusters").Item(k), w.GetTypedPerFilterConfig(), w.GetRequestHeadersToRemove()}
					found.scopes = append(found.scopes, scope{part, own, hostLevel, around})
				}
			}
			m.routes = append(m.routes, found)
		}
	}
}

// forwards reports whether requests on a route reach an upstream, rather than an answer of Envoy.
func (r *route) forwards() bool { return r.GetRoute() != nil }

// clusters returns the names of the clusters that a route may lead to, except one named by a
// header.
func (r *route) clusters() []string {
	if name := r.GetRoute().GetCluster(); name != "" {
		return []string{name}
	}
	var names []string
	for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
		names = append(names, w.GetName())
	}
	return names
}

// words names a route for a reader.
func (r *route) words() string {
	match := r.GetMatch()
	for _, text := range []string{match.GetPath(), match.GetPrefix(), match.GetPathSeparatedPrefix(), match.GetSafeRegex().GetRegex(), r.GetName()} {
		if text != "" {
			return fmt.Sprintf("the route %q", text)
		}
	}
	return "a route"
}

// isOn reports whether a filter processes requests of a scope, and where that is set.
func (f *filter) isOn(s scope) (on bool, where Path) {
	for _, l := range s {
		if own, ok := l.filters[f.GetName()]; ok {
			return !switchesOff(own), l.path.At("typed_per_filter_config").At(f.GetName())
		}
	}
	return !f.GetDisabled(), f.path.At("disabled")
}

// switchesOff reports whether the settings of a filter for a route switch it off.
func switchesOff(own *anypb.Any) bool {
	var general routev3.FilterConfig
	if unpack(own, &general) {
		return general.GetDisabled() || switchesOff(general.GetConfig())
	}
	var authz extauthzv3.ExtAuthzPerRoute
	return unpack(own, &authz) && authz.GetDisabled()
}

// isGuarded reports whether an ext_authz filter processes all requests of a scope, and if not,
// where the last one is switched off.
func (m *manager) isGuarded(s scope) (guarded bool, where Path) {
	for _, g := range m.guards {
		on, at := g.isOn(s)
		if on {
			return true, ""
		}
		where = at
	}
	return false, where
}

// guardsSome reports whether Keyporter is asked about requests on a route.
func (m *manager) guardsSome(r *route) bool {
	return slices.ContainsFunc(r.scopes, func(s scope) bool {
		guarded, _ := m.isGuarded(s)
		return guarded
	})
}

// isUsed reports whether a filter processes requests on any guarded route.
func (m *manager) isUsed(f *filter) bool {
	if len(m.routes) == 0 {
		return !f.GetDisabled()
	}
	return slices.ContainsFunc(m.routes, func(r *route) bool {
		return slices.ContainsFunc(r.scopes, func(s scope) bool {
			on, _ := f.isOn(s)
			guarded, _ := m.isGuarded(s)
			return on && guarded
		})
	})
}

// service is the destination of a Check: that of a filter, or a route's override.
type service struct {
	path Path
	grpc *corev3.GrpcService
	http *extauthzv3.HttpService
}

func (m *manager) takeServices() {
	for _, g := range m.guards {
		m.services = append(m.services, newService(g.settings, g.authz.GetGrpcService(), g.authz.GetHttpService()))
		for _, own := range m.perRoute(g) {
			if settings := own.authz.GetCheckSettings(); settings.GetServiceOverride() != nil {
				m.services = append(m.services, newService(own.path.At("check_settings"), settings.GetGrpcService(), settings.GetHttpService()))
			}
		}
	}
}

func newService(at Path, grpc *corev3.GrpcService, http *extauthzv3.HttpService) service {
	if http != nil {
		return service{at.At("http_service"), nil, http}
	}
	return service{at.At("grpc_service"), grpc, nil}
}

// perRoute is the settings of a guard in a route or its surroundings.
type perRoute struct {
	path  Path
	authz *extauthzv3.ExtAuthzPerRoute
}

func (m *manager) perRoute(g *guard) []perRoute {
	var all []perRoute
	seen := map[Path]bool{}
	for _, r := range m.routes {
		for _, s := range r.scopes {
			for _, l := range s {
				own, ok := l.filters[g.GetName()]
				if !ok || seen[l.path] {
					continue
				}
				seen[l.path] = true
				at := l.path.At("typed_per_filter_config").At(g.GetName())
				var general routev3.FilterConfig
				if unpack(own, &general) {
					own, at = general.GetConfig(), at.At("config")
				}
				var authz extauthzv3.ExtAuthzPerRoute
				if unpack(own, &authz) {
					all = append(all, perRoute{at, &authz})
				}
			}
		}
	}
	return all
}
