// Command keyporter is the service that Envoy asks about API keys, with the commands that operators
// use to manage plans, accounts, users and keys.
package main

import "os"

func main() {
	signals := catchSignals() // first, because an uncaught signal may end the process
	a := &app{stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ(), signals: signals}
	status := a.run(signals.ctx, os.Args[1:])
	signals.release()
	os.Exit(status)
}
