//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"fournines/bench/result"
)

// The rows.
const (
	metricRequests    = "requests_per_cpu_second"
	metricCPUPerEvent = "sse_cpu_us_per_event"
	metricAddedP99    = "sse_added_p99_ms"
	metricIdle        = "sse_idle_kib_per_stream"
	metricChurn       = "connection_churn_per_cpu_second"
)

// measurement makes the figures of one or more rows.
type measurement struct {
	name string
	rows []row
	run  func(context.Context, *bench, *contender) (*sample, error)
}

type row struct{ metric, better string }

var measurements = []measurement{
	{"requests", []row{{metricRequests, result.Higher}}, func(ctx context.Context, b *bench, c *contender) (*sample, error) {
		return b.requests(ctx, c, kindRequests, metricRequests, b.sizes.connections)
	}},
	{"events", []row{{metricCPUPerEvent, result.Lower}, {metricAddedP99, result.Lower}}, func(ctx context.Context, b *bench, c *contender) (*sample, error) {
		return b.events(ctx, c)
	}},
	{"idle streams", []row{{metricIdle, result.Lower}}, func(ctx context.Context, b *bench, c *contender) (*sample, error) {
		return b.idle(ctx, c)
	}},
	{"churn", []row{{metricChurn, result.Higher}}, func(ctx context.Context, b *bench, c *contender) (*sample, error) {
		return b.requests(ctx, c, kindChurn, metricChurn, b.sizes.churn)
	}},
}

func metrics() []string {
	var names []string
	for _, m := range measurements {
		for _, r := range m.rows {
			names = append(names, r.metric)
		}
	}
	return names
}

const (
	// tooBunched is the share of events that may come together with an earlier
	// one of their stream before the cost of an event means little.
	tooBunched = 0.02
	// tooBusy is the share of a processor that others may use before the machine
	// does not count as quiet.
	tooBusy = 0.1
)

// runner lets the contenders take turns.
type runner struct {
	runs       int
	sizes      sizes
	rows       []string
	contenders []*contender // ours first
	missing    map[string]string
	progress   io.Writer

	samples map[string]map[*contender][]*sample // by measurement
	failed  map[string]map[*contender]error
	direct  []float64 // p99 without a proxy, ms
}

// run measures everything and sums it up.
func (r *runner) run(ctx context.Context) (_ *result.Suite, notes string, err error) {
	began := time.Now()
	b, err := newBench(ctx, r.sizes)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r.samples, r.failed = map[string]map[*contender][]*sample{}, map[string]map[*contender]error{}
	todo := slices.DeleteFunc(slices.Clone(measurements), func(m measurement) bool {
		return !slices.ContainsFunc(m.rows, func(w row) bool { return slices.Contains(r.rows, w.metric) })
	})
	for _, m := range todo {
		r.samples[m.name], r.failed[m.name] = map[*contender][]*sample{}, map[*contender]error{}
	}
	for round := range r.runs {
		for _, m := range todo {
			if err := r.measure(ctx, b, &m, round); err != nil {
				return nil, "", err
			}
		}
	}
	suite := r.sum(todo)
	suite.Date = began.UTC().Truncate(time.Second)
	return suite, r.notes(b, todo, time.Since(began)), nil
}

// measure lets all contenders do one measurement once.
func (r *runner) measure(ctx context.Context, b *bench, m *measurement, round int) error {
	var direct float64
	if m.name == "events" {
		s, err := undisturbed(ctx, b, m, nil)
		if err != nil {
			return fmt.Errorf("%s without a proxy: %w", m.name, err)
		}
		direct = s.values[keyP99]
		r.direct = append(r.direct, direct)
		r.say(round, "direct", m, s)
	}
	for _, c := range r.contenders {
		if r.failed[m.name][c] != nil {
			continue
		}
		s, err := undisturbed(ctx, b, m, c)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && c == r.contenders[0]:
			return fmt.Errorf("%s: ours: %w", m.name, err)
		case err != nil:
			r.failed[m.name][c] = err
			fmt.Fprintf(r.progress, "%s, %s: %v\n", m.name, c.title, err)
			continue
		}
		if p99, ok := s.values[keyP99]; ok {
			s.values[metricAddedP99] = p99 - direct
		}
		r.samples[m.name][c] = append(r.samples[m.name][c], s)
		r.say(round, c.title, m, s)
	}
	return nil
}

// undisturbed measures, and again when somebody got in between: up to three
// times, of which the least disturbed counts.
func undisturbed(ctx context.Context, b *bench, m *measurement, c *contender) (*sample, error) {
	best, err := m.run(ctx, b, c)
	for range 2 {
		if err != nil || best.bunched <= tooBunched {
			return best, err
		}
		var next *sample
		if next, err = m.run(ctx, b, c); err == nil && next.bunched < best.bunched {
			best = next
		}
	}
	return best, err
}

func (r *runner) say(round int, who string, m *measurement, s *sample) {
	text := fmt.Sprintf("%d/%d  %-14s %-13s", round+1, r.runs, who, m.name)
	for _, w := range m.rows {
		if v, ok := s.values[w.metric]; ok && who != "direct" {
			text += fmt.Sprintf("  %s %.5g", w.metric, v)
		}
	}
	if p99, ok := s.values[keyP99]; ok {
		text += fmt.Sprintf("  p99 %.3g ms", p99)
	}
	if s.rate > 0 {
		text += fmt.Sprintf("  (%.0f/s, proxy %.0f%%, load %.0f%%, others %.0f%% of a processor)", s.rate, 100*s.busy, 100*s.loadBusy, 100*s.othersBusy)
	}
	if s.bunched > tooBunched {
		text += fmt.Sprintf("  %.0f%% of the events came late and in bunches, which makes them cheap: not comparable", 100*s.bunched)
	}
	fmt.Fprintln(r.progress, text)
}

// sum makes the result of the samples.
func (r *runner) sum(todo []measurement) *result.Suite {
	s := &result.Suite{Suite: "gateway", Machine: result.ThisMachine(), Runs: r.runs, Missing: map[string]string{}}
	for name, why := range r.missing {
		s.Missing[name] = why
	}
	for _, c := range r.contenders {
		var reasons []string
		for _, m := range todo {
			if err := r.failed[m.name][c]; err != nil {
				reasons = append(reasons, err.Error())
			}
		}
		if len(reasons) == len(todo) {
			s.Missing[c.title] = strings.Join(slices.Compact(reasons), "; ")
		}
	}
	for _, m := range todo {
		for _, w := range m.rows {
			if !slices.Contains(r.rows, w.metric) {
				continue
			}
			out := result.Row{Metric: w.metric, Better: w.better, Peers: map[string]result.Stat{}}
			for _, c := range r.contenders {
				if err := r.failed[m.name][c]; err != nil {
					// Also when some rounds went well: whoever fails once has no figure.
					if _, all := s.Missing[c.title]; !all {
						if out.Missing == nil {
							out.Missing = map[string]string{}
						}
						out.Missing[c.title] = err.Error()
					}
					continue
				}
				var values []float64
				for _, sample := range r.samples[m.name][c] {
					values = append(values, sample.values[w.metric])
				}
				if c == r.contenders[0] {
					out.Ours = result.Of(values)
				} else {
					out.Peers[c.title] = result.Of(values)
				}
			}
			out.Compare()
			s.Rows = append(s.Rows, out)
		}
	}
	return s
}

// notes tell how busy everybody was, from which one sees what a row measures:
// a throughput row its proxy only if that had all of its processor.
func (r *runner) notes(b *bench, todo []measurement, took time.Duration) string {
	var t strings.Builder
	where := "Nothing was pinned: there is one processor."
	if b.proxyCPU != nil {
		where = fmt.Sprintf("Proxies ran on processor %d, with one worker or thread each; client and backend on processor %d.", b.proxyCPU[0], b.loadCPU[0])
	}
	fmt.Fprintf(&t, "%s The run took %v.\n\n", where, took.Round(time.Second))
	t.WriteString("Medians of the rate, and of the share of a processor that proxy and load (client and backend) used:\n\n| contender |")
	busy := slices.DeleteFunc(slices.Clone(todo), func(m measurement) bool { return m.name == "idle streams" })
	if len(busy) == 0 {
		return where + "\n"
	}
	for _, m := range busy {
		fmt.Fprintf(&t, " %s |", m.name)
	}
	t.WriteString("\n|---|" + strings.Repeat("---|", len(busy)) + "\n")
	for _, c := range r.contenders {
		fmt.Fprintf(&t, "| %s |", c.title)
		for _, m := range busy {
			var rate, proxy, load []float64
			for _, s := range r.samples[m.name][c] {
				rate, proxy, load = append(rate, s.rate), append(proxy, 100*s.busy), append(load, 100*s.loadBusy)
			}
			if len(rate) == 0 {
				t.WriteString(" - |")
				continue
			}
			fmt.Fprintf(&t, " %.0f/s, proxy %.0f%%, load %.0f%% |", result.Of(rate).Median, result.Of(proxy).Median, result.Of(load).Median)
		}
		t.WriteString("\n")
	}
	var others []float64
	for _, m := range busy {
		for _, c := range r.contenders {
			var bunched []float64
			for _, s := range r.samples[m.name][c] {
				others, bunched = append(others, s.othersBusy), append(bunched, s.bunched)
			}
			if share := result.Of(bunched).Median; share > tooBunched {
				fmt.Fprintf(&t, "\n**%.0f%% of the events of %s came late and in bunches, which makes them cheap: not comparable.**\n", 100*share, c.title)
			}
		}
	}
	all := result.Of(others)
	fmt.Fprintf(&t, "\nEverything else on the machine used %.0f%% of a processor meanwhile (%.0f%% to %.0f%%).\n", 100*all.Median, 100*all.Min, 100*all.Max)
	if all.Median > tooBusy {
		t.WriteString("**The machine was not quiet; latencies and the cost of events say little.**\n")
	}
	if len(r.direct) > 0 {
		d := result.Of(r.direct)
		fmt.Fprintf(&t, "\nWithout a proxy, the p99 of an event is %g ms (%g to %g).\n", d.Median, d.Min, d.Max)
	}
	return t.String()
}
