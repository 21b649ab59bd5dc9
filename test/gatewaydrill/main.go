package gatewaydrill

import (
	"context"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"fournines/bench/result"
)

// Main runs one measurement: faults, zones or soak. It returns the exit code: 0
// when every goal was met, 1 when one was missed, 2 when nothing was measured.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) (bool, error){
		"faults": faultsCommand, "zones": zonesCommand, "soak": soakCommand,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprintln(stderr, "usage: gatewaydrill faults|zones|soak [flags]")
		return 2
	}
	ok, err := commands[args[0]](ctx, args[1:], stdout, stderr)
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "gatewaydrill:", err)
		return 2
	case !ok:
		return 1
	}
	return 0
}

func faultsCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (bool, error) {
	p := DefaultPlan()
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	flags.SetOutput(stderr)
	binary := flags.String("binary", "bin/fournines", "the program under test")
	repeat := flags.Int("repeat", 10, "how often each fault is repeated")
	only := flags.String("only", "", "faults to run, separated by commas; empty for all")
	out := result.Outlet{Mark: "faults"}
	out.Flags(flags)
	keep := flags.Bool("keep", false, "keep configurations and logs")
	flags.Float64Var(&p.Load.Rate, "rate", p.Load.Rate, "requests per second")
	flags.IntVar(&p.Load.Streams, "streams", p.Load.Streams, "event streams that are kept open")
	flags.DurationVar(&p.MaxOutage, "max-outage", p.MaxOutage, "goal for the longest outage")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	var names []string
	if *only != "" {
		names = strings.Split(*only, ",")
	}
	faults, err := FindFaults(names)
	if err != nil {
		return false, err
	}
	path, err := filepath.Abs(*binary)
	if err != nil {
		return false, err
	}
	if err := out.Check(); err != nil {
		return false, err
	}
	begun := time.Now()
	results, err := Table(ctx, Options{Binary: path}, faults, p, *repeat, *keep, func(text string) {
		fmt.Fprintf(stderr, "%7.1fs  %s\n", time.Since(begun).Seconds(), text)
	})
	if err != nil {
		return false, err
	}
	if _, err := io.WriteString(stdout, results.Markdown()); err != nil {
		return false, err
	}
	if err := out.Publish(results, results.Markdown()); err != nil {
		return false, err
	}
	return results.Pass(), nil
}
