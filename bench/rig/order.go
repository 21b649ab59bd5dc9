//go:build linux

package rig

import (
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// Order is what the command line of a benchmark asks for.
type Order struct {
	// Runs is the number of rounds; in each, all contenders take turns.
	Runs int
	// Rows and Peers are the names of those that are wanted.
	Rows, Peers []string
	// Quick asks for small loads and short times.
	Quick bool
	// Output is the file of the result.
	Output string
	// Program is ours, Tools the directory of peers that setup-bench has built;
	// both are absolute.
	Program, Tools string
}

// ParseOrder reads the command line of the benchmark of a suite that has these
// rows and peers.
func ParseOrder(suite string, args, rows, peers []string, stderr io.Writer) (*Order, error) {
	flags := flag.NewFlagSet("bench-"+suite, flag.ContinueOnError)
	flags.SetOutput(stderr)
	o := &Order{}
	flags.IntVar(&o.Runs, "runs", 0, "rounds, in each of which all contenders take turns (default 5, with -quick 1)")
	wantedRows := flags.String("rows", "all", "rows to measure, by comma: "+strings.Join(rows, ", "))
	wantedPeers := flags.String("peers", "all", `peers to compare with, by comma: `+strings.Join(peers, ", ")+`; or "none"`)
	flags.BoolVar(&o.Quick, "quick", false, "small loads and short times: shows that it works, its figures say little")
	recorded, quick := "bench/results/"+suite+".json", "bin/bench-"+suite+"-quick.json"
	flags.StringVar(&o.Output, "o", "", "file of the result; the table goes beside it as .md (default "+recorded+", with -quick "+quick+")")
	flags.StringVar(&o.Program, "ours", "bin/fournines", "our program")
	flags.StringVar(&o.Tools, "tools", ".tools", "directory with the peers that setup-bench has built")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if o.Runs == 0 {
		o.Runs = 5
		if o.Quick {
			o.Runs = 1
		}
	}
	if o.Output == "" {
		o.Output = recorded
		if o.Quick {
			o.Output = quick
		}
	}
	if o.Runs < 1 {
		return nil, fmt.Errorf("-runs: %d is less than 1", o.Runs)
	}
	var err error
	if o.Rows, err = chosen("-rows", *wantedRows, rows); err != nil {
		return nil, err
	}
	if *wantedPeers != "none" && *wantedPeers != "" {
		if o.Peers, err = chosen("-peers", *wantedPeers, peers); err != nil {
			return nil, err
		}
	}
	for _, path := range []*string{&o.Program, &o.Tools} {
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// chosen reads the value of a flag that lists some of what there is.
func chosen(flag, value string, all []string) ([]string, error) {
	if value == "all" {
		return all, nil
	}
	names := strings.Split(value, ",")
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("%s: %q is not one of %s", flag, name, strings.Join(all, ", "))
		}
	}
	return names, nil
}
