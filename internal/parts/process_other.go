//go:build !unix

package parts

import (
	"io/fs"
	"syscall"
)

// Envoy, PostgreSQL and Valkey do not run on this system; this file only lets the rest of Keyporter
// build.
const (
	sigStop = syscall.SIGTERM
	sigCont = syscall.SIGTERM
)

func sysProcAttr(syscall.Signal, *account) *syscall.SysProcAttr { return nil }
func parents() map[int][]int                                    { return nil }
func signalPID(int, syscall.Signal)                             {}
func running(int) bool                                          { return false }
func alive(int) bool                                            { return true }
func unprivileged() *account                                    { return nil }
func ownedByUs(fs.FileInfo) bool                                { return true }
func pidSpace() string                                          { return "0" }
