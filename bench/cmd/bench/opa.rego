# What opa-envoy-plugin decides here: whether the key of a request is a known one. It knows no routes, plans, limits or
# credits, and adds no headers.
package bench

default allow := false

allow if data.known[input.attributes.request.http.headers.authorization]
