package parts

// What only the tests of this package look at.
var (
	Descendants = descendants
	Running     = running
	Reachable   = func(bin string) (string, error) { return reachable(bin, unprivileged()) }
)
