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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
	flags := flag.NewFlagSet("bench-gateway", flag.ContinueOnError)
	flags.SetOutput(stderr)
	runs := flags.Int("runs", 0, "rounds, in each of which all contenders take turns (default 5, with -quick 1)")
	rows := flags.String("rows", "all", "rows to measure, by comma: "+strings.Join(metrics(), ", "))
	names := flags.String("peers", "all", `peers to compare with, by comma: `+strings.Join(peerNames(), ", ")+`; or "none"`)
	quick := flags.Bool("quick", false, "small loads and short times: shows that it works, its figures say little")
	output := flags.String("o", "bench/results/gateway.json", "file of the result; the table goes beside it as .md")
	program := flags.String("ours", "bin/fournines", "our program")
	tools := flags.String("tools", ".tools", "directory with the peers that setup-bench has built")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	r := &runner{runs: *runs, sizes: fullSizes, rows: metrics(), missing: map[string]string{}, progress: stderr}
	if *quick {
		r.sizes = quickSizes
	}
	if r.runs == 0 {
		r.runs = 5
		if *quick {
			r.runs = 1
		}
	}
	if r.runs < 1 {
		return fmt.Errorf("-runs: %d is less than 1", r.runs)
	}
	if *rows != "all" {
		r.rows = strings.Split(*rows, ",")
		for _, name := range r.rows {
			if !slices.Contains(metrics(), name) {
				return fmt.Errorf("-rows: %q is not one of %s", name, strings.Join(metrics(), ", "))
			}
		}
	}
	path, err := filepath.Abs(*program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("-ours: %w; build it with make build", err)
	}
	r.contenders = []*contender{ours(path)}
	toolsDir, err := filepath.Abs(*tools)
	if err != nil {
		return err
	}
	wanted := peerNames()
	switch *names {
	case "all":
	case "none", "":
		wanted = nil
	default:
		wanted = strings.Split(*names, ",")
	}
	for _, name := range wanted {
		if !slices.Contains(peerNames(), name) {
			return fmt.Errorf("-peers: %q is not one of %s", name, strings.Join(peerNames(), ", "))
		}
		c, err := findPeer(ctx, name, toolsDir)
		if err != nil {
			r.missing[name] = err.Error()
			fmt.Fprintf(stderr, "%s takes no part: %v\n", name, err)
			continue
		}
		r.contenders = append(r.contenders, c)
	}
	suite, notes, err := r.run(ctx)
	if err != nil {
		return err
	}
	if err := suite.Write(*output, notes); err != nil {
		return err
	}
	fmt.Fprint(stdout, suite.Markdown(), "\n", notes)
	return nil
}
