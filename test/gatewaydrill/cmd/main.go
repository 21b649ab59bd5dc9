// Command cmd runs the measurements of package gatewaydrill and writes their
// results; the Makefile has its uses.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"fournines/test/gatewaydrill"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := gatewaydrill.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
