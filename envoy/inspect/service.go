package inspect

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// The rules about asking Keyporter: the service, its timeout, its cluster.

// ownTimeout is the maximum time of a Keyporter decision, unless configured otherwise
// (--check-timeout). Envoy has to wait a third longer, so that a late answer still arrives.
const (
	ownTimeout   = 150 * time.Millisecond
	leastTimeout = ownTimeout * 4 / 3
)

// target returns the destination of Checks: the name of a cluster, if it is one, and its addresses.
func (s service) target(c *config) (cluster string, addresses []string) {
	if google := s.grpc.GetGoogleGrpc(); google != nil {
		return "", []string{google.GetTargetUri()}
	}
	cluster = s.grpc.GetEnvoyGrpc().GetClusterName()
	if s.http != nil {
		cluster = s.http.GetServerUri().GetCluster()
	}
	return cluster, c.addressesOf(cluster)
}

func findHTTPService(_ *config, _ *manager, s service, report report) {
	if s.http != nil {
		report(s.path, "ext_authz sends Checks over HTTP")
	}
}

func findGoogleGRPC(_ *config, _ *manager, s service, report report) {
	if s.grpc.GetGoogleGrpc() != nil {
		report(s.path.At("google_grpc"), "ext_authz sends Checks through google_grpc")
	}
}

// isOldAPI reports whether Envoy itself refuses a version today. An unset version means V3.
func isOldAPI(version corev3.ApiVersion) bool {
	//lint:ignore SA1019 it is what is looked for
	return version == corev3.ApiVersion_V2
}

func findTimeout(_ *config, _ *manager, s service, report report) {
	timeout := s.grpc.GetTimeout()
	switch {
	case s.grpc == nil:
	case timeout == nil:
		report(s.path, "no timeout is set: Envoy's default is 200 ms")
	case timeout.AsDuration() < leastTimeout:
		report(s.path.At("timeout"), fmt.Sprintf("%v is less than %v", timeout.AsDuration(), leastTimeout))
	}
}

// defaultRouteTimeout is the timeout of a route without one.
const defaultRouteTimeout = 15 * time.Second

// findLongTimeout compares the timeout with the shortest of the routes, or, if those have no bound,
// with their default.
func findLongTimeout(_ *config, m *manager, s service, report report) {
	bound := defaultRouteTimeout
	for _, r := range m.routes {
		if own, ok := r.timeout(); ok && m.guardsSome(r) {
			bound = min(bound, own)
		}
	}
	if timeout := s.grpc.GetTimeout().AsDuration(); timeout > bound {
		report(s.path.At("timeout"), fmt.Sprintf("%v is more than %v, the shortest timeout of a route", timeout, bound))
	}
}

// timeout returns the maximum total time of an upstream's answer, if it is bounded.
func (r *route) timeout() (bound time.Duration, ok bool) {
	action := r.GetRoute()
	if !r.forwards() || action.GetTimeout() == nil && action.GetMaxStreamDuration() != nil {
		return 0, false
	}
	if action.GetTimeout() == nil {
		return defaultRouteTimeout, true
	}
	bound = action.GetTimeout().AsDuration()
	return bound, bound > 0
}

func findNoCluster(c *config, _ *manager, s service, report report) {
	name := s.grpc.GetEnvoyGrpc().GetClusterName()
	_, known := c.clusters[name]
	if s.grpc.GetEnvoyGrpc() != nil && c.allClusters && !known {
		report(s.path.in("envoy_grpc", "cluster_name"), fmt.Sprintf("there is no cluster %q", name))
	}
}

func findHTTP1Cluster(k cluster, report report) {
	if !speaksHTTP2(k.Cluster) {
		report(k.path, fmt.Sprintf("the cluster %q speaks HTTP/1.1", k.GetName()))
	}
}

// findUnverifiedCluster looks for TLS that would accept anybody's certificate. Other transport
// sockets, such as those of a mesh, verify in ways of their own.
func findUnverifiedCluster(k cluster, report report) {
	var secure tlsv3.UpstreamTlsContext
	if !unpack(k.GetTransportSocket().GetTypedConfig(), &secure) {
		return
	}
	common := secure.GetCommonTlsContext()
	own := common.GetValidationContext()
	inSecret := common.GetValidationContextSdsSecretConfig() != nil // a control plane's, whose content is not known
	if combined := common.GetCombinedValidationContext(); combined != nil {
		own, inSecret = combined.GetDefaultValidationContext(), combined.GetValidationContextSdsSecretConfig() != nil
	}
	//lint:ignore SA1019 Envoy takes it still, and control planes write it
	named := len(own.GetMatchTypedSubjectAltNames())+len(own.GetMatchSubjectAltNames()) > 0 || secure.GetAutoSniSanValidation()
	pinned := len(own.GetVerifyCertificateHash())+len(own.GetVerifyCertificateSpki()) > 0 || own.GetCustomValidatorConfig() != nil
	switch {
	case pinned || inSecret && (named || own == nil):
	case own.GetTrustedCa() == nil && own.GetSystemRootCerts() == nil && !inSecret:
		report(k.path.At("transport_socket"), fmt.Sprintf("the cluster %q accepts every certificate", k.GetName()))
	case !named:
		report(k.path.At("transport_socket"), fmt.Sprintf("the cluster %q accepts a certificate for any name", k.GetName()))
	}
}

const upstreamHTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func speaksHTTP2(k *clusterv3.Cluster) bool {
	var options upstreamhttpv3.HttpProtocolOptions
	if !unpack(k.GetTypedExtensionProtocolOptions()[upstreamHTTP], &options) {
		//lint:ignore SA1019 Envoy takes it still, and control planes write it
		return k.GetHttp2ProtocolOptions() != nil
	}
	if options.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil {
		return true
	}
	// ALPN chooses HTTP/2, because Keyporter speaks nothing else. Without TLS there is no choice.
	return options.GetAutoConfig() != nil && (k.GetTransportSocket() != nil || len(k.GetTransportSocketMatches()) > 0)
}

func findNoHealthCheck(k cluster, report report) {
	if len(k.GetHealthChecks()) == 0 {
		report(k.path, fmt.Sprintf("the cluster %q has no health check", k.GetName()))
	}
}

// defaultBreaker is the maximum number of concurrent requests that Envoy sends to a cluster without
// settings.
const defaultBreaker = 1024

func findBreaker(k cluster, report report) {
	requests, _ := takes(k)
	if requests <= defaultBreaker {
		report(k.path.At("circuit_breakers"), fmt.Sprintf("the cluster %q allows %d concurrent Checks", k.GetName(), requests))
	}
}

func findBody(_ *config, m *manager, report report) {
	const what = "Envoy reads the body first"
	for _, g := range m.guards {
		if g.authz.GetWithRequestBody() != nil {
			report(g.settings.At("with_request_body"), what)
		}
		for _, own := range m.perRoute(g) {
			if own.authz.GetCheckSettings().GetWithRequestBody() != nil {
				report(own.path.in("check_settings", "with_request_body"), what)
			}
		}
	}
}

func hasOtherStatus(a *extauthzv3.ExtAuthz) bool { return a.GetStatusOnError().GetCode() != 503 }
