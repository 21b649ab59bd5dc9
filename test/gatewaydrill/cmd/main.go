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

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return gatewaydrill.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
