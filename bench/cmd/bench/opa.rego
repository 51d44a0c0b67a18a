# What opa-envoy-plugin decides here: whether the key of a request is a known one. It knows no routes, plans, limits or
# credits, and adds no headers.
package bench

default allow := false

allow if {
	some header in input.attributes.request.http.headerMap.headers
	header.key == "x-api-key"
	data.keys[base64.decode(header.rawValue)]
}
