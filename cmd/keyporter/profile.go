//go:build profile

package main

import (
	"net/http"
	_ "net/http/pprof" // what this file is for
	"os"
)

// A binary that is built with the tag profile, as `make profile` does, serves profiles where
// PPROF_LISTEN says. Those that are shipped have no such door.
func init() {
	if addr := os.Getenv("PPROF_LISTEN"); addr != "" {
		go func() { panic(http.ListenAndServe(addr, nil)) }()
	}
}
