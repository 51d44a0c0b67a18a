// Command etcd is etcd. Its own command is in a module that the module proxy does not have.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
