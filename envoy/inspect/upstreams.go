package inspect

import (
	"fmt"
	"slices"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	mutatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
)

// upstreams are the known clusters to which a manager forwards decided requests, each once.
func (m *manager) upstreams(c *config) (all []cluster) {
	var names []string
	for _, r := range m.routes {
		if !r.forwards() || !m.guardsSome(r) {
			continue
		}
		for _, name := range r.clusters() {
			if k, ok := c.clusters[name]; ok && !slices.Contains(names, name) {
				names, all = append(names, name), append(all, k)
			}
		}
	}
	return all
}

func findUpstreamBreaker(c *config, m *manager, report report) {
	for _, k := range m.upstreams(c) {
		least, connections := takes(k)
		if !speaksHTTP2(k.Cluster) { // each request needs a connection
			least = min(least, connections)
		}
		if least <= defaultBreaker {
			report(k.path.At("circuit_breakers"), fmt.Sprintf("the cluster %q allows %d concurrent requests", k.GetName(), least))
		}
	}
}

// takes returns how many concurrent requests Envoy sends to a cluster, including those that wait
// for a connection, and how many connections it opens.
func takes(k cluster) (requests, connections uint32) {
	requests, connections = defaultBreaker, defaultBreaker
	pending := uint32(defaultBreaker)
	for _, t := range k.GetCircuitBreakers().GetThresholds() {
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue
		}
		if t.GetMaxRequests() != nil {
			requests = t.GetMaxRequests().GetValue()
		}
		if t.GetMaxPendingRequests() != nil {
			pending = t.GetMaxPendingRequests().GetValue()
		}
		if t.GetMaxConnections() != nil {
			connections = t.GetMaxConnections().GetValue()
		}
	}
	return min(requests, pending), connections
}

// findTrailers looks for ways in which a client's trailers, sent after Keyporter has been asked,
// reach an upstream that speaks HTTP/2: Envoy passes no trailers to others.
func findTrailers(c *config, m *manager, report report) {
	for _, k := range m.upstreams(c) {
		if !speaksHTTP2(k.Cluster) {
			continue
		}
		if !m.dropsTrailers() {
			report(m.path.At("http_filters"), fmt.Sprintf("a client's trailers reach the cluster %q", k.GetName()))
		}
		if !m.removesEarly("trailer") {
			report(m.path.At("early_header_mutation_extensions"), fmt.Sprintf("a client announces trailers to the cluster %q", k.GetName()))
		}
		return
	}
}

// dropsTrailers reports whether a filter removes an identity header from trailers.
func (m *manager) dropsTrailers() bool {
	return slices.ContainsFunc(m.filters, func(f *filter) bool {
		var mutation mutatev3.HeaderMutation
		return m.isUsed(f) && unpack(f.typed, &mutation) &&
			slices.ContainsFunc(mutation.GetMutations().GetRequestTrailersMutations(), func(step *mutationv3.HeaderMutation) bool {
				return strings.EqualFold(step.GetRemove(), identityHeaders[0]) || matches(step.GetRemoveOnMatch().GetKeyMatcher(), identityHeaders[0])
			})
	})
}
