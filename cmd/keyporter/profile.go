//go:build profile

package main

import (
	"net/http"
	_ "net/http/pprof" // registers the handlers
	"os"
)

// A binary built with the tag profile, as by `make profile`, serves profiles on PPROF_LISTEN.
// Shipped binaries do not contain this.
func init() {
	if addr := os.Getenv("PPROF_LISTEN"); addr != "" {
		go func() { panic(http.ListenAndServe(addr, nil)) }()
	}
}
