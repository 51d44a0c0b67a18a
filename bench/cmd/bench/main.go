package main

import (
	_ "github.com/keyporter/keyporter/internal/parts"
	_ "golang.org/x/net/http2"
)

func main() {}
