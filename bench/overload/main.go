// Command overload shows what the gateway's overload protection does: it offers
// chats at one to ten times what a few instances can do, with protection and
// without, and lets one app flood the instances while another one goes on as
// before. Gateways and load are real, over loopback; an instance is a stub with
// one virtual core, whose time is given out and not burnt, so that two real
// cores can carry many of them.
//
// It writes the results as JSON and Markdown, and a plot.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"fournines/bench/result"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "overload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("overload", flag.ContinueOnError)
	out := flags.String("o", "bench/results/overload.json", "where the results go; the table goes beside them")
	plot := flags.String("svg", "docs/images/overload.svg", "where the plot goes; empty is none")
	quick := flags.Bool("quick", false, "two minutes instead of seven, and figures that say little")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	x := experiment{
		instances: 4, gateways: 1, loads: []float64{1, 2, 3, 5, 10},
		warm: time.Minute, settle: 5 * time.Second, measure: 40 * time.Second,
		neighbour: 0.2, flood: 5, neighbourFor: 45 * time.Second,
	}
	if *quick {
		x.loads, x.warm, x.settle, x.measure, x.neighbourFor = []float64{1, 5}, 20*time.Second, 3*time.Second, 8*time.Second, 10*time.Second
	}
	lag := watchLag(ctx)
	ours, bare, err := x.ramps(ctx)
	if err != nil {
		return err
	}
	n, err := x.noise(ctx)
	if err != nil {
		return err
	}
	x.lag = lag()
	suite := x.suite(ours, bare, n)
	if err := suite.Write(*out, x.notes(ours, bare, n)); err != nil {
		return err
	}
	fmt.Print(suite.Markdown(), "\n", x.notes(ours, bare, n))
	if *plot == "" {
		return nil
	}
	return os.WriteFile(*plot, []byte(drawRamps(x.capacity(), ours, bare)), 0o644)
}

// withoutProtection is the peer's name in the results.
const withoutProtection = "without protection"

// suite puts the results into the form that all benchmarks share.
func (x *experiment) suite(ours, bare []level, n noise) *result.Suite {
	s := &result.Suite{Suite: "overload", Date: time.Now().UTC().Truncate(time.Second), Machine: result.ThisMachine(), Runs: 1}
	one := func(f float64) result.Stat { return result.Of([]float64{f}) }
	row := func(metric, better string, ours, bare float64) {
		r := result.Row{Metric: metric, Better: better, Ours: one(ours), Peers: map[string]result.Stat{withoutProtection: one(bare)}}
		r.Compare()
		s.Rows = append(s.Rows, r)
	}
	for i, l := range ours {
		row(fmt.Sprintf("goodput_per_second_at_%gx", l.load), result.Higher, l.goodput(), bare[i].goodput())
	}
	for i, l := range ours {
		row(fmt.Sprintf("first_content_p99_ms_at_%gx", l.load), result.Lower, l.content.ms(.99), bare[i].content.ms(.99))
	}
	row("least_goodput_share_of_peak", result.Higher, leastShare(ours), leastShare(bare))
	row("neighbour_first_content_p95_ratio", result.Lower, n.flooded.content.ms(.95)/n.alone.content.ms(.95), n.bare.content.ms(.95)/n.alone.content.ms(.95))
	row("neighbour_last_event_p95_ratio", result.Lower, n.flooded.end.ms(.95)/n.alone.end.ms(.95), n.bare.end.ms(.95)/n.alone.end.ms(.95))
	row("neighbour_failed_share", result.Lower, n.flooded.failedShare(), n.bare.failedShare())
	return s
}

// notes explains the table.
func (x *experiment) notes(ours, bare []level, n noise) string {
	t := fmt.Sprintf(`Offered: 1x is %.0f chats per second, what %d instances with one core can do at 100 ms of it per chat (40 ms before the first
content); the model thinks for 500 ms on average (log-normal, sigma 0.4) and streams 24 tokens at 40 per second. Open loop, Poisson;
a client gives up after %v. Good is a chat with its first content within %v of its due time and a complete stream. First content
counts from the due time, admitted requests only; a client that gave up counts with %v. One gateway, default settings;
"without protection" is overload.adaptive off and no bound on queue and requests in work.

| offered | good/s | refused | late or failed | content p50 | p99 | good/s, unprotected | late or failed | content p50 | p99 |
|---|---|---|---|---|---|---|---|---|---|
`, x.capacity(), x.instances, patience, inTime, patience)
	for i, l := range ours {
		b := bare[i]
		t += fmt.Sprintf("| %gx | %.1f | %d | %d | %.0f ms | %.0f ms | %.1f | %d | %.0f ms | %.0f ms |\n", l.load, l.goodput(), l.refused, l.late,
			l.content.ms(.5), l.content.ms(.99), b.goodput(), b.late, b.content.ms(.5), b.content.ms(.99))
	}
	t += fmt.Sprintf("\nNoisy neighbour: app B at %.0f chats per second, app A at %g times the capacity of all instances; \"bulkhead\" gives A a maxInFlight of %d per gateway.\n\n"+
		"| B | content p50 | content p95 | last event p95 | refused or failed |\n|---|---|---|---|---|\n", x.neighbour*x.capacity(), x.flood, bulkhead)
	for _, r := range []struct {
		name string
		l    level
	}{{"alone", n.alone}, {"A floods", n.flooded}, {"A floods, bulkhead", n.bulkhead}, {"A floods, without protection", n.bare}} {
		t += fmt.Sprintf("| %s | %.0f ms (%.2fx) | %.0f ms (%.2fx) | %.0f ms (%.2fx) | %d of %d |\n", r.name, r.l.content.ms(.5), r.l.content.ms(.5)/n.alone.content.ms(.5),
			r.l.content.ms(.95), r.l.content.ms(.95)/n.alone.content.ms(.95), r.l.end.ms(.95), r.l.end.ms(.95)/n.alone.end.ms(.95), r.l.refused+r.l.late, r.l.offered)
	}
	t += fmt.Sprintf("\nThe machine: timers of this process fired up to %.0f ms late (99%%), %.0f ms (99.9%%); the instances' time runs on timers,\nso a run with much more than 5 ms says little.\n", x.lag.ms(.99), x.lag.ms(.999))
	return t
}
