package parts

// Internals that only the tests of this package use.
var (
	Descendants = descendants
	Running     = running
	Reachable   = func(bin string) (string, error) { return reachable(bin, unprivileged()) }
)
