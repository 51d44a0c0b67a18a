// Command keyporter is the service that Envoy asks about API keys, and the commands with which
// operators look after plans, accounts, users and keys.
package main

import "os"

func main() {
	signals := catchSignals() // before anything else: what is not caught may end the process
	a := &app{stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ(), signals: signals}
	status := a.run(signals.ctx, os.Args[1:])
	signals.release()
	os.Exit(status)
}
