//go:build !unix

package main

import "os"

var moreEnding, harmless, terminalStops []os.Signal
