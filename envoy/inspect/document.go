package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
)

// config is a parsed configuration, the input of the rules.
type config struct {
	raw raw

	version     string // of Envoy, such as 1.40.1; "": unknown
	versionPath Path

	names []string // of rules in the route table, or nil

	admin     *corev3.Address // where Envoy's admin interface listens, or nil
	adminPath Path

	listeners   []*listener
	tables      map[string]routeTable // name → routes from RDS
	extensions  map[string]extension  // name → filter from ECDS
	clusters    map[string]cluster    // name → cluster
	allClusters bool                  // there are no other clusters
	endpoints   map[string][]string   // name of a cluster → HOST:PORT of its endpoints from EDS

	unseen []place // parts that could not be inspected
}

// place is a part of the document, and its description.
type place struct {
	path Path
	what string
}

type cluster struct {
	path Path
	*clusterv3.Cluster
}

type routeTable struct {
	path Path
	*routev3.RouteConfiguration
}

type extension struct {
	path  Path
	typed *anypb.Any
}

// parse parses a bootstrap or a config_dump.
func parse(document []byte) (*config, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(document, &members); err != nil {
		return nil, fmt.Errorf("not an object: %w", err)
	}
	c := &config{
		raw:    raw{document, map[Path]json.RawMessage{}},
		tables: map[string]routeTable{}, extensions: map[string]extension{},
		clusters: map[string]cluster{}, endpoints: map[string][]string{},
	}
	if _, ok := members["configs"]; ok {
		var dump adminv3.ConfigDump
		if err := decode(document, &dump); err != nil {
			return nil, err
		}
		c.takeDump(&dump)
		return c, nil
	}
	for _, name := range []string{"static_resources", "staticResources", "dynamic_resources", "dynamicResources", "admin", "node"} {
		if _, ok := members[name]; ok {
			var bootstrap bootstrapv3.Bootstrap
			if err := decode(document, &bootstrap); err != nil {
				return nil, err
			}
			c.takeBootstrap(&bootstrap, "")
			c.takeStatic(&bootstrap, "")
			c.takeListeners()
			return c, nil
		}
	}
	return nil, errors.New("neither a bootstrap of Envoy (static_resources, dynamic_resources, admin) nor a config_dump of its admin interface (configs)")
}

// decode reads JSON as Envoy writes it, whatever its version and its extensions.
func decode(document []byte, into proto.Message) error {
	options := protojson.UnmarshalOptions{DiscardUnknown: true, AllowPartial: true, Resolver: resolver{protoregistry.GlobalTypes}}
	if err := options.Unmarshal(document, into); err != nil {
		return fmt.Errorf("not a configuration of Envoy: %w", err)
	}
	return nil
}

// resolver knows every type. It reads a type that is not linked in as a message without fields,
// under its own name, so that unpack fails for it.
type resolver struct{ *protoregistry.Types }

func (r resolver) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	if known, err := r.Types.FindMessageByURL(url); err == nil {
		return known, nil
	}
	return (&corev3.AggregatedConfigSource{}).ProtoReflect().Type(), nil
}

// unpack fills into and returns true if packed is of its type.
func unpack(packed *anypb.Any, into proto.Message) bool {
	return packed != nil && packed.UnmarshalTo(into) == nil
}

// takeBootstrap takes the parts that only a bootstrap has.
func (c *config) takeBootstrap(b *bootstrapv3.Bootstrap, at Path) {
	if address := b.GetAdmin().GetAddress(); address != nil {
		c.admin, c.adminPath = address, at.in("admin", "address")
	}
	if v := b.GetNode().GetUserAgentBuildVersion().GetVersion(); v != nil {
		c.version = fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
		c.versionPath = at.in("node", "user_agent_build_version", "version")
	}
}

// takeStatic takes the listeners and clusters of a bootstrap.
func (c *config) takeStatic(b *bootstrapv3.Bootstrap, at Path) {
	static := at.At("static_resources")
	for i, l := range b.GetStaticResources().GetListeners() {
		c.listeners = append(c.listeners, &listener{path: static.At("listeners").Item(i), Listener: l})
	}
	for i, k := range b.GetStaticResources().GetClusters() {
		c.clusters[k.GetName()] = cluster{static.At("clusters").Item(i), k}
	}
	dynamic := b.GetDynamicResources()
	c.allClusters = dynamic.GetCdsConfig() == nil
	if dynamic.GetLdsConfig() != nil {
		c.miss(at.in("dynamic_resources", "lds_config"), "the listeners come from LDS: inspect the running Envoy")
	}
}

// takeDump takes a dump of a running Envoy. Its listeners, clusters and routes are the active ones,
// including static ones. So those of the bootstrap in it are used only if the dump leaves them out.
func (c *config) takeDump(dump *adminv3.ConfigDump) {
	var hasListeners bool
	var left func()
	for i, packed := range dump.GetConfigs() {
		at := Path("configs").Item(i)
		message, err := packed.UnmarshalNew()
		if err != nil {
			continue
		}
		switch part := message.(type) {
		case *adminv3.BootstrapConfigDump:
			c.takeBootstrap(part.GetBootstrap(), at.At("bootstrap"))
			left = func() { c.takeStatic(part.GetBootstrap(), at.At("bootstrap")) }
		case *adminv3.ListenersConfigDump:
			hasListeners = true
			c.takeListenersDump(part, at)
		case *adminv3.ClustersConfigDump:
			c.allClusters = true
			c.takeClustersDump(part, at)
		case *adminv3.RoutesConfigDump:
			for j, dynamic := range part.GetDynamicRouteConfigs() {
				var table routev3.RouteConfiguration
				if unpack(dynamic.GetRouteConfig(), &table) {
					c.tables[table.GetName()] = routeTable{at.At("dynamic_route_configs").Item(j).At("route_config"), &table}
				}
			}
		case *adminv3.EndpointsConfigDump:
			c.takeEndpointsDump(part)
		case *adminv3.EcdsConfigDump:
			for j, filter := range part.GetEcdsFilters() {
				var named corev3.TypedExtensionConfig
				if unpack(filter.GetEcdsFilter(), &named) {
					c.extensions[named.GetName()] = extension{at.At("ecds_filters").Item(j).in("ecds_filter", "typed_config"), named.GetTypedConfig()}
				}
			}
		}
	}
	if !hasListeners && left != nil {
		left()
	}
	c.takeListeners()
}

func (c *config) takeListenersDump(dump *adminv3.ListenersConfigDump, at Path) {
	for i, static := range dump.GetStaticListeners() {
		c.takeListener(static.GetListener(), at.At("static_listeners").Item(i).At("listener"))
	}
	for i, dynamic := range dump.GetDynamicListeners() {
		// A warming listener replaces the active one as soon as it is ready.
		for _, state := range []struct {
			name string
			*adminv3.ListenersConfigDump_DynamicListenerState
		}{{"active_state", dynamic.GetActiveState()}, {"warming_state", dynamic.GetWarmingState()}} {
			c.takeListener(state.GetListener(), at.At("dynamic_listeners").Item(i).in(state.name, "listener"))
		}
	}
}

func (c *config) takeListener(packed *anypb.Any, at Path) {
	var l listenerv3.Listener
	if unpack(packed, &l) {
		c.listeners = append(c.listeners, &listener{path: at, Listener: &l})
	}
}

func (c *config) takeClustersDump(dump *adminv3.ClustersConfigDump, at Path) {
	take := func(packed *anypb.Any, at Path) {
		var k clusterv3.Cluster
		if unpack(packed, &k) {
			c.clusters[k.GetName()] = cluster{at, &k}
		}
	}
	for i, static := range dump.GetStaticClusters() {
		take(static.GetCluster(), at.At("static_clusters").Item(i).At("cluster"))
	}
	for i, warming := range dump.GetDynamicWarmingClusters() {
		take(warming.GetCluster(), at.At("dynamic_warming_clusters").Item(i).At("cluster"))
	}
	for i, active := range dump.GetDynamicActiveClusters() {
		take(active.GetCluster(), at.At("dynamic_active_clusters").Item(i).At("cluster"))
	}
}

func (c *config) takeEndpointsDump(dump *adminv3.EndpointsConfigDump) {
	take := func(packed *anypb.Any) {
		var assignment endpointv3.ClusterLoadAssignment
		if unpack(packed, &assignment) {
			c.endpoints[assignment.GetClusterName()] = addresses(&assignment)
		}
	}
	for _, static := range dump.GetStaticEndpointConfigs() {
		take(static.GetEndpointConfig())
	}
	for _, dynamic := range dump.GetDynamicEndpointConfigs() {
		take(dynamic.GetEndpointConfig())
	}
}

// takeListeners parses the listeners, after everything that they may refer to.
func (c *config) takeListeners() {
	for _, l := range c.listeners {
		l.takeApart(c)
	}
}

// miss records a part that could not be inspected.
func (c *config) miss(at Path, what string) { c.unseen = append(c.unseen, place{at, what}) }

// addressesOf returns the destinations of a cluster, as far as they are known.
func (c *config) addressesOf(name string) []string {
	k, ok := c.clusters[name]
	if !ok {
		return nil
	}
	if found := addresses(k.GetLoadAssignment()); len(found) > 0 {
		return found
	}
	if service := k.GetEdsClusterConfig().GetServiceName(); service != "" {
		name = service
	}
	return c.endpoints[name]
}

func addresses(assignment *endpointv3.ClusterLoadAssignment) []string {
	var all []string
	for _, locality := range assignment.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			if text := addressText(e.GetEndpoint().GetAddress()); text != "" {
				all = append(all, text)
			}
		}
	}
	return all
}

func addressText(a *corev3.Address) string {
	if pipe := a.GetPipe(); pipe != nil {
		return pipe.GetPath()
	}
	if socket := a.GetSocketAddress(); socket != nil {
		return net.JoinHostPort(socket.GetAddress(), strconv.Itoa(int(socket.GetPortValue())))
	}
	return ""
}
