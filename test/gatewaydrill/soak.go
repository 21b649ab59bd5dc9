package gatewaydrill

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fournines/drill"
	"fournines/test/clock"
)

// SoakPlan says how long a cluster is broken again and again, and what may grow.
type SoakPlan struct {
	// For is the whole time. The levels of the second fifth are
	// compared with those of the last fifth.
	For  time.Duration
	Load drill.Load
	// Every is the time between two faults; each lasts a part of it.
	Every time.Duration
}

// level is one thing that must not grow: by a share of what it was, plus a floor
// for what a busy machine makes of it.
type level struct {
	metric string
	share  float64
	floor  float64
}

var levels = []level{
	{"go_goroutines", 0.2, 50},
	{"process_open_fds", 0.2, 50},
	{"go_memstats_heap_inuse_bytes", 0.3, 16 << 20},
	{"process_resident_memory_bytes", 0.3, 32 << 20},
}

// soakFaults leave the gateways' processes alone, whose growth is looked for.
var soakFaults = []string{"instance-kill", "instance-hang", "instance-slow", "instance-errors", "zone-cut", "instance-flap"}

// Growth is one level before and after.
type Growth struct {
	Process, Metric string
	Before, After   float64 // medians
	Limit           float64
}

func (g Growth) String() string {
	return fmt.Sprintf("%s %s: %.4g, at the end %.4g, limit %.4g", g.Process, g.Metric, g.Before, g.After, g.Limit)
}

// SoakResult is what a soak found.
type SoakResult struct {
	Requests drill.Requests
	Faults   int
	// Failed describes failed requests by the fault during which they fell due.
	Failed []string
	Growth []Growth // everything that was watched
	// Idle are the levels after the load ended, with those from before it.
	Idle []Growth
}

// Problems lists what is against the goals.
func (r *SoakResult) Problems() []string {
	var out []string
	for _, g := range append(slices.Clone(r.Growth), r.Idle...) {
		if g.After > g.Limit {
			out = append(out, "it grew: "+g.String())
		}
	}
	if n := r.Requests.ByClass[drill.Idempotent].Failed; n > 0 {
		out = append(out, fmt.Sprintf("%d idempotent requests failed", n))
	}
	if n := r.Requests.ByClass[drill.Stream].Ends[drill.StreamMalformed]; n > 0 {
		out = append(out, fmt.Sprintf("%d streams were malformed", n))
	}
	return out
}

// Soak keeps a cluster under load and breaks it again and again.
func Soak(ctx context.Context, c *Cluster, p SoakPlan, say func(string)) (*SoakResult, error) {
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	watched := append(slices.Clone(c.gateways), "loadbalancer")
	clock.Wait(ctx, 3*time.Second) // the checks of the start have ended
	idle, err := c.levels(ctx, watched)
	if err != nil {
		return nil, err
	}

	begun := time.Now()
	r := &SoakResult{}
	var seen []reading
	rec := c.record(ctx, p.Load, func(ctx context.Context) { seen = c.watch(ctx, watched, begun) })
	defer rec.end()

	faults, err := FindFaults(soakFaults)
	if err != nil {
		return nil, err
	}
	if ok, _ := c.Namespaces(); !ok {
		faults = slices.DeleteFunc(faults, func(f Fault) bool { return f.Network })
	}
	counted := 0 // samples that have been looked at
	for n := 0; time.Since(begun) < p.For && ctx.Err() == nil; n++ {
		f := faults[n%len(faults)]
		next := begun.Add(time.Duration(n+1) * p.Every)
		say(fmt.Sprintf("%4.0fs  %s", time.Since(begun).Seconds(), f.Name))
		err := f.strike(ctx, c, func() func() { return func() {} })
		clock.Wait(ctx, f.hold)
		if f.repair != nil {
			err = errors.Join(err, f.repair(ctx, c))
		}
		if err == nil {
			err = c.AwaitReady(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		r.Faults++
		clock.Wait(ctx, time.Until(next))
		fresh := rec.after(counted)
		if text := examples(fresh); text != "" {
			r.Failed = append(r.Failed, f.Name+": "+text)
		}
		counted += len(fresh)
	}
	end := rec.end()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	r.Requests, _, _ = p.Load.Measure(rec.after(0), time.Minute, begun.Add(p.Every), end)
	r.Growth = c.compare(seen, end.Sub(begun))

	// What is left when nobody asks any more is what leaked.
	say("waiting until nothing is left")
	limit := func(name string, l level) float64 { return idle[name][l.metric] + l.floor/2 }
	for give := time.Now().Add(patience); ; clock.Wait(ctx, 2*time.Second) {
		after, err := c.levels(ctx, watched)
		if err != nil {
			return nil, err
		}
		r.Idle, err = nil, nil
		high := false
		for _, name := range watched {
			for _, l := range levels[:2] { // memory is given back late
				g := Growth{name, l.metric + " (idle)", idle[name][l.metric], after[name][l.metric], limit(name, l)}
				r.Idle = append(r.Idle, g)
				high = high || g.After > g.Limit
			}
		}
		if !high || time.Now().After(give) || ctx.Err() != nil {
			return r, err
		}
	}
}

// reading is what the watched processes said at one time.
type reading struct {
	at     time.Duration
	levels map[string]map[string]float64 // by process and metric
}

// watch reads every few seconds until ctx ends.
func (c *Cluster) watch(ctx context.Context, names []string, begun time.Time) []reading {
	var out []reading
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return out
		case <-tick.C:
		}
		r := reading{time.Since(begun), map[string]map[string]float64{}}
		for _, name := range names {
			m, err := c.Metrics(ctx, name)
			if err != nil {
				continue // it is cut off
			}
			r.levels[name] = ofLevels(m)
		}
		out = append(out, r)
	}
}

func (c *Cluster) levels(ctx context.Context, names []string) (map[string]map[string]float64, error) {
	out := map[string]map[string]float64{}
	for _, name := range names {
		m, err := c.Metrics(ctx, name)
		if err != nil {
			return nil, err
		}
		out[name] = ofLevels(m)
	}
	return out, nil
}

func ofLevels(m Metrics) map[string]float64 {
	out := map[string]float64{}
	for _, l := range levels {
		out[l.metric] = m.Sum(l.metric)
	}
	return out
}

// compare takes the medians of the second fifth and of the last. All gateways
// count as one, because clients stay where they are: after a fault one gateway
// has the connections that another had before.
func (c *Cluster) compare(seen []reading, whole time.Duration) []Growth {
	var out []Growth
	kinds := map[string][]string{"gateways": c.gateways, "loadbalancer": {"loadbalancer"}}
	median := func(kind, metric string, from, to time.Duration) float64 {
		var v []float64
		for _, r := range seen {
			sum, all := 0.0, r.at >= from && r.at < to
			for _, name := range kinds[kind] {
				got, ok := r.levels[name]
				sum, all = sum+got[metric], all && ok
			}
			if all {
				v = append(v, sum)
			}
		}
		if len(v) == 0 {
			return 0
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	for _, kind := range []string{"gateways", "loadbalancer"} {
		for _, l := range levels {
			before := median(kind, l.metric, whole/5, 2*whole/5)
			after := median(kind, l.metric, 4*whole/5, whole+time.Minute)
			out = append(out, Growth{kind, l.metric, before, after, before*(1+l.share) + l.floor})
		}
	}
	return out
}

func soakCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (bool, error) {
	plan := DefaultPlan()
	p := SoakPlan{Load: plan.Load}
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.SetOutput(stderr)
	binary := flags.String("binary", "bin/fournines", "the program under test")
	flags.DurationVar(&p.For, "for", 10*time.Minute, "how long")
	flags.DurationVar(&p.Every, "every", 15*time.Second, "time between two faults")
	flags.Float64Var(&p.Load.Rate, "rate", p.Load.Rate, "requests per second")
	flags.IntVar(&p.Load.Streams, "streams", p.Load.Streams, "event streams that are kept open")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	path, err := filepath.Abs(*binary)
	if err != nil {
		return false, err
	}
	c, err := New(Options{Binary: path})
	if err != nil {
		return false, err
	}
	r, err := Soak(ctx, c, p, func(text string) { fmt.Fprintln(stderr, text) })
	if err := errors.Join(err, c.Close()); err != nil {
		return false, err
	}
	for _, g := range append(slices.Clone(r.Growth), r.Idle...) {
		fmt.Fprintln(stdout, g)
	}
	fmt.Fprintf(stdout, "%d faults, %d requests; failed: idempotent %d, post %d; streams: %v\n", r.Faults, r.Requests.Total,
		r.Requests.ByClass[drill.Idempotent].Failed, r.Requests.ByClass[drill.Post].Failed, r.Requests.ByClass[drill.Stream].Ends)
	fmt.Fprintln(stdout, strings.Join(r.Failed, "\n"))
	problems := r.Problems()
	if len(problems) > 0 {
		fmt.Fprintln(stdout, "FAIL: "+strings.Join(problems, "\nFAIL: "))
	}
	return len(problems) == 0, nil
}
