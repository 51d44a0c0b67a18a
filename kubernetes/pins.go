//go:build pins

// Package pins is never built. Its imports make go.mod pin the modules whose custom resource
// definitions the tests read; nothing of them is compiled.
package pins

import (
	_ "github.com/envoyproxy/gateway/api/v1alpha1"
	_ "github.com/projectcontour/contour/apis/projectcontour/v1"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
