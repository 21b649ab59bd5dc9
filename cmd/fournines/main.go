// Command fournines runs a highly available Dify. See `fournines --help`.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"fournines/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: the first one restores the
	// default behaviour.
	context.AfterFunc(ctx, stop)
	code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
