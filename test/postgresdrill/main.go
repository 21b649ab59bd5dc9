package postgresdrill

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fournines/bench/result"
	"fournines/internal/process"
)

// Main runs the failover table. It returns the exit code: 0 when every goal was
// met, 1 when one was missed, 2 when nothing was measured.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ok, err := command(ctx, args, stdout, stderr)
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "postgresdrill:", err)
		return 2
	case !ok:
		return 1
	}
	return 0
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) (bool, error) {
	p := DefaultPlan()
	var o Options
	flags := flag.NewFlagSet("postgresdrill", flag.ContinueOnError)
	flags.SetOutput(stderr)
	binary := flags.String("binary", "bin/fournines", "the program under test")
	repeat := flags.Int("repeat", 20, "how often each fault is repeated")
	only := flags.String("only", "", "faults to run, separated by commas; empty for all")
	out := result.Outlet{Mark: "failover"}
	out.Flags(flags)
	flags.StringVar(&o.Splitting, "splitting", "", "pgproxy's splitting.mode; empty for its default")
	flags.BoolVar(&o.Keep, "keep", false, "keep configurations and logs")
	flags.Float64Var(&p.Rate, "rate", p.Rate, "writes per second")
	flags.DurationVar(&o.TTL, "ttl", 0, "Patroni's ttl; 0 for a stack's")
	flags.DurationVar(&o.LoopWait, "loop-wait", 0, "Patroni's loop_wait; 0 for a stack's")
	flags.DurationVar(&o.RetryTimeout, "retry-timeout", 0, "Patroni's retry_timeout; 0 for a stack's")
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
	if o.Binary, err = filepath.Abs(*binary); err != nil {
		return false, err
	}
	if os.Geteuid() == 0 {
		if o.Owner, err = process.LookupOwner("fournines"); err != nil {
			return false, fmt.Errorf("%w; run `make setup`", err)
		}
	}
	if err := out.Check(); err != nil {
		return false, err
	}
	begun := time.Now()
	results, err := Table(ctx, o, faults, p, *repeat, func(text string) {
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
