//go:build linux

// Command gateway measures the gateway side by side with other proxies: the same
// backend, the same load, one after another on the same processor. `make
// bench-gateway` runs it; bench/README.md says what it measures and what not.
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
	if err := realMain(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func realMain() error {
	if isRole, err := runRole(os.Args[1:]); isRole {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := runCommand(ctx, os.Args[1:], os.Stdout, os.Stderr); !errors.Is(err, flag.ErrHelp) {
		return err
	}
	return nil
}

// runCommand is the command without the process around it.
func runCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := rig.ParseOrder("gateway", args, rig.Metrics(measurements(nil)), rig.PeerNames(peers), stderr)
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
