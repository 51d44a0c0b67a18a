package inspect

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// The rules about a request beside the decision: how its path is read, how often it is sent, how
// long it lives.

func findRetries(c *config, m *manager, report report) {
	for _, r := range m.routes {
		if !r.forwards() || !m.guardsSome(r) {
			continue
		}
		if !findClusterRetries(c, r, report) {
			findRouteRetries(r, report)
		}
	}
}

// findClusterRetries looks at the retry policies of a route's clusters, which replace its own, and
// reports whether all clusters have one.
func findClusterRetries(c *config, r *route, report report) (all bool) {
	names := r.clusters()
	count := 0
	for _, name := range names {
		k := c.clusters[name]
		var options upstreamhttpv3.HttpProtocolOptions
		if unpack(k.GetTypedExtensionProtocolOptions()[upstreamHTTP], &options) && options.GetRetryPolicy() != nil {
			count++
			reportRetries(options.GetRetryPolicy(), k.path.At("typed_extension_protocol_options").At(upstreamHTTP).At("retry_policy"), report)
		}
	}
	return len(names) > 0 && count == len(names)
}

func findRouteRetries(r *route, report report) {
	action := r.path.At("route")
	if own := r.GetRoute().GetRetryPolicy(); own != nil {
		reportRetries(own, action.At("retry_policy"), report)
	} else {
		reportRetries(r.host.GetRetryPolicy(), r.hostPath.At("retry_policy"), report)
	}
	const hedged = "Envoy sends a slow request a second time"
	if own := r.GetRoute().GetHedgePolicy(); own.GetHedgeOnPerTryTimeout() {
		report(action.At("hedge_policy"), hedged)
	} else if own == nil && r.host.GetHedgePolicy().GetHedgeOnPerTryTimeout() {
		report(r.hostPath.At("hedge_policy"), hedged)
	}
}

// harmlessRetries are the reasons after which no upstream has begun to work.
var harmlessRetries = []string{"connect-failure", "refused-stream", "reset-before-request"}

func reportRetries(policy *routev3.RetryPolicy, at Path, report report) {
	for reason := range strings.SplitSeq(policy.GetRetryOn(), ",") {
		if reason = strings.TrimSpace(reason); reason != "" && !slices.Contains(harmlessRetries, reason) {
			report(at.At("retry_on"), fmt.Sprintf("Envoy sends a request again after %q", reason))
			return
		}
	}
}

func findInternalRedirect(_ *manager, r *route, report report) {
	if r.GetRoute().GetInternalRedirectPolicy() != nil {
		report(r.path.in("route", "internal_redirect_policy"), r.words()+" lets Envoy follow redirects")
	}
}

func findRewrittenQuery(_ *manager, r *route, report report) {
	action := r.GetRoute()
	for _, rewrite := range []struct{ field, text string }{
		{"prefix_rewrite", action.GetPrefixRewrite()},
		{"regex_rewrite", action.GetRegexRewrite().GetSubstitution()},
		{"path_rewrite", action.GetPathRewrite()},
	} {
		if strings.Contains(rewrite.text, "?") {
			report(r.path.in("route", rewrite.field), r.words()+" has a query in its rewrite")
		}
	}
}

func findRouteTimeout(_ *manager, r *route, report report) {
	if bound, ok := r.timeout(); ok && r.GetRoute().GetTimeout() == nil {
		report(r.path.At("route"), fmt.Sprintf("answers of %s end after %v", r.words(), bound))
	}
}

func findUpgrade(_ *config, m *manager, report report) {
	if m.GetCommonHttpProtocolOptions().GetMaxStreamDuration().AsDuration() > 0 {
		return
	}
	here := slices.ContainsFunc(m.GetUpgradeConfigs(), func(u *hcmv3.HttpConnectionManager_UpgradeConfig) bool {
		return u.GetEnabled() == nil || u.GetEnabled().GetValue()
	})
	for _, r := range m.routes {
		if !r.forwards() || !m.guardsSome(r) || r.GetRoute().GetMaxStreamDuration().GetMaxStreamDuration().AsDuration() > 0 {
			continue
		}
		if here {
			report(m.path.At("upgrade_configs"), "connections of "+r.words()+" may stay open for ever")
			return
		}
		if slices.ContainsFunc(r.GetRoute().GetUpgradeConfigs(), func(u *routev3.RouteAction_UpgradeConfig) bool {
			return u.GetEnabled() == nil || u.GetEnabled().GetValue()
		}) {
			report(r.path.in("route", "upgrade_configs"), "connections of "+r.words()+" may stay open for ever")
		}
	}
}

func keepsEscapedSlashes(m *manager) bool {
	return m.GetPathWithEscapedSlashesAction() != hcmv3.HttpConnectionManager_REJECT_REQUEST
}

func allowsUnderscores(m *manager) bool {
	return m.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() == corev3.HttpProtocolOptions_ALLOW
}

func trustsClients(m *manager) bool {
	return !m.GetUseRemoteAddress().GetValue() && len(m.GetOriginalIpDetectionExtensions()) == 0
}

// trustsNetworks reports whether addresses beyond this machine may send Envoy's internal headers.
func trustsNetworks(m *manager) bool {
	internal := m.GetInternalAddressConfig()
	if internal == nil {
		return false
	}
	return len(internal.GetCidrRanges()) == 0 || slices.ContainsFunc(internal.GetCidrRanges(), func(r *corev3.CidrRange) bool {
		return !isLoopback(r.GetAddressPrefix())
	})
}

func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// maxHeadersKB is the largest limit, in KB, at which Keyporter accepts every Check: the message
// holds the raw headers and repeats some of them.
const maxHeadersKB = 100

func takesLargeHeaders(m *manager) bool { return m.GetMaxRequestHeadersKb().GetValue() > maxHeadersKB }

func findOpenAdmin(c *config, report report) {
	socket := c.admin.GetSocketAddress()
	if socket == nil || isLoopback(socket.GetAddress()) {
		return
	}
	report(c.adminPath, "it listens on "+quoted(net.JoinHostPort(socket.GetAddress(), fmt.Sprint(socket.GetPortValue()))))
}

func findUnseen(c *config, report report) {
	for _, u := range c.unseen {
		report(u.path, u.what)
	}
}

func findUnknownAfter(_ *config, m *manager, report report) {
	for _, f := range m.after() {
		if f.typed != nil && kindOf(f.typed) == kindUnknown {
			report(f.path, fmt.Sprintf("the filter %q runs after ext_authz, with unknown effect", f.GetName()))
		}
	}
}
