//go:build linux

// Command redis measures redisproxy side by side with Envoy's Redis filter and
// with a client that knows the cluster itself: the same nodes, the same
// redis-benchmark, one after another. `make bench-redis` runs it;
// bench/README.md says what it measures and what not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"fournines/bench/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := runCommand(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// runCommand is the command without the process around it.
func runCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	names := append([]string{direct}, rig.PeerNames(peers)...)
	o, err := rig.ParseOrder("redis", args, rig.Metrics(measurements(nil)), names, stderr)
	if err != nil {
		return err
	}
	suite, notes, err := run(ctx, o, stderr)
	if err != nil {
		return err
	}
	if err := suite.Write(o.Output, notes); err != nil {
		return err
	}
	fmt.Fprint(stdout, suite.Markdown(), "\n", notes)
	return nil
}
