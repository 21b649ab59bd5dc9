// Command cache measures the gateway's cache of retrievals: how much of a Zipf
// workload and of a public trace it answers beside LRU and the best fixed set,
// what a hit costs, and what clients get from a gateway whose backend can do 50
// retrievals a second. bench/README.md says what each row is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"fournines/bench/result"
)

// Names of peers.
const (
	peerLRU     = "LRU"
	peerOptimal = "optimal static"
	peerWithout = "without cache"
)

// The goals.
const (
	leastHitRate     = 0.85
	leastOfOptimal   = 0.97
	leastHits        = 50_000
	mostP95          = 50 // milliseconds
	leastThroughput  = 20 // times that of the backend
	articleZipf      = 1.2
	articleQueries   = 10_000
	articleEntries   = 1000
	traceEntriesEach = 100 // one entry for so many objects of the trace
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cache:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("cache", flag.ContinueOnError)
	out := flags.String("o", "bench/results/cache.json", "where the results go; the table goes beside them")
	trace := flags.String("trace", "", "a trace of libCacheSim as CSV (time, object, size, ...), see bench/README.md")
	runs := flags.Int("runs", 3, "rounds of the rows of hit rates and hits")
	quick := flags.Bool("quick", false, "20 seconds instead of two minutes, and figures that say little")
	check := flags.Bool("check", false, "fail when a goal is missed")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	warm, measured, hitTime, load := 100_000, 400_000, 3*time.Second, 30*time.Second
	if *quick {
		warm, measured, hitTime, load, *runs = 20_000, 40_000, 500*time.Millisecond, 5*time.Second, 1
	}
	s := &result.Suite{Suite: "cache", Date: time.Now().UTC().Truncate(time.Second), Machine: result.ThisMachine(), Runs: *runs}
	var notes strings.Builder

	say("hit rates on Zipf workloads")
	var article rates
	fmt.Fprintf(&notes, "Hit rates with %d entries, %d distinct queries, %d requests after %d that are not counted; median of %d.\n\n| workload | ours | ours ÷ optimal static | LRU | optimal static |\n|---|---|---|---|---|\n",
		articleEntries, articleQueries, measured, warm, *runs)
	for _, exponent := range []float64{0.8, 1.0, articleZipf} {
		var r rates
		for i := range *runs {
			if err := r.measure(ctx, zipf(exponent, articleQueries, warm+measured, uint64(i)), warm, articleEntries); err != nil {
				return err
			}
		}
		if exponent == articleZipf {
			article = r
		}
		r.line(&notes, fmt.Sprintf("Zipf %.1f", exponent))
	}
	rateRows(s, "hit_rate_top1000", "hit_rate_vs_optimal_static", article, true)
	if *trace != "" {
		say("hit rates on %s", *trace)
		objects, distinct, err := readTrace(*trace)
		if err != nil {
			return err
		}
		var r rates
		if err := r.measure(ctx, objects, len(objects)/5, max(distinct/traceEntriesEach, articleEntries)); err != nil {
			return err
		}
		r.line(&notes, fmt.Sprintf("trace, %d objects, %d entries", distinct, max(distinct/traceEntriesEach, articleEntries)))
		rateRows(s, "hit_rate_trace", "hit_rate_trace_vs_optimal_static", r, false)
	}

	say("what a hit costs")
	var hits []float64
	for range *runs {
		n, err := hitsPerCoreSecond(ctx, hitTime)
		if err != nil {
			return err
		}
		hits = append(hits, n)
	}
	row := result.Row{Metric: "hits_per_core_second", Better: result.Higher, Ours: result.Of(hits)}
	row.Demand(leastHits)
	s.Rows = append(s.Rows, row)

	say("a backend with %d retrievals a second", backendRate)
	with, err := behindSlowBackend(ctx, true, load)
	if err != nil {
		return err
	}
	without, err := behindSlowBackend(ctx, false, load/3)
	if err != nil {
		return err
	}
	one := func(f float64) result.Stat { return result.Of([]float64{f}) }
	row = result.Row{Metric: "p95_ms_backend_50qps", Better: result.Lower, Ours: one(with.p95), Peers: map[string]result.Stat{peerWithout: one(without.p95)}}
	row.Compare()
	row.Demand(mostP95)
	s.Rows = append(s.Rows, row)
	row = result.Row{Metric: "good_per_second_backend_50qps", Better: result.Higher, Ours: one(with.good), Peers: map[string]result.Stat{peerWithout: one(without.good)}}
	row.Compare()
	row.Demand(float64(leastThroughput * backendRate))
	s.Rows = append(s.Rows, row)
	fmt.Fprintf(&notes, `
A gateway with default settings but cache.enabled, over loopback, before a backend of %d places that take %v each: %d retrievals a
second. Clients offer %d a second (open loop, Poisson), Zipf %.1f over %d queries of one key, for %v, after %d requests to a backend
without that limit. Latency counts from the due time; good is an answer with status 200 within a second. With the cache %d of %d
requests were good, the backend was asked %d times and p50 was %.1f ms; without it %d of %d in %v. All in one process; %d processors.
A hit (hits_per_core_second) is the normal form of a body of %d bytes, its key, the look-up with its checks and the count, on one
goroutine, by processor time.
`, backendPlaces, backendTime, backendRate, offered, articleZipf, articleQueries, load, warmRequests,
		with.goodCount, with.total, with.asked, with.p50, without.goodCount, without.total, load/3, runtime.NumCPU(), len(questionBody(1)))
	if err := s.Write(*out, notes.String()); err != nil {
		return err
	}
	fmt.Print(s.Markdown(), "\n", notes.String())
	if missed := s.Missed(); *check && len(missed) > 0 {
		return fmt.Errorf("goals missed: %s", strings.Join(missed, ", "))
	}
	return nil
}

// rateRows adds the rows of one workload.
func rateRows(s *result.Suite, rate, share string, r rates, goals bool) {
	row := result.Row{Metric: rate, Better: result.Higher, Ours: result.Of(r.ours), Peers: map[string]result.Stat{
		peerLRU: result.Of(r.lru), peerOptimal: result.Of(r.optimal),
	}}
	row.Compare()
	if goals {
		row.Demand(leastHitRate)
	}
	s.Rows = append(s.Rows, row)
	ours, lru := make([]float64, len(r.ours)), make([]float64, len(r.ours))
	for i := range r.ours {
		ours[i], lru[i] = r.ours[i]/r.optimal[i], r.lru[i]/r.optimal[i]
	}
	row = result.Row{Metric: share, Better: result.Higher, Ours: result.Of(ours), Peers: map[string]result.Stat{peerLRU: result.Of(lru)},
		Missing: map[string]string{peerOptimal: "it is the measure"}}
	row.Compare()
	if goals {
		row.Demand(leastOfOptimal)
	}
	s.Rows = append(s.Rows, row)
}
