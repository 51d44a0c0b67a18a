package service

import (
	"context"
	"net/http"
	"net/http/pprof"
)

// withPprof adds profiles below /debug/pprof/ to the handler of the operators' listener. It leaves
// out the command line, which may hold a password of the database. A profile ends with stopping, so
// that a stop does not wait for it.
func withPprof(stopping context.Context, ops http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", ops)
	for path, profile := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/profile": pprof.Profile, "/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(stopping, cancel)()
			profile(w, r.WithContext(ctx))
		})
	}
	return mux
}
