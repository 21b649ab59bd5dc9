// Command cmd runs the failover table of package postgresdrill and writes its
// results; the Makefile has its uses.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"fournines/test/postgresdrill"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return postgresdrill.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
