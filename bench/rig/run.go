//go:build linux

package rig

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"fournines/bench/result"
)

// Measurement makes the figures of one or more rows.
type Measurement struct {
	Name string
	Rows []Row
	// Run measures a contender once. A nil contender asks for the same without
	// a proxy; that happens only with AddedP99.
	Run func(ctx context.Context, c *Contender) (*Sample, error)
	// AddedP99 is the row whose figure is the p99 of a contender less that
	// without a proxy, measured in the same round; empty is none.
	AddedP99 string
	// Only chooses the contenders that it is about; nil is all.
	Only func(c *Contender) bool
}

// Row is a metric and which direction of it is good.
type Row struct{ Metric, Better string }

// Sample is what one measurement of one contender gave.
type Sample struct {
	Values map[string]float64 // by metric
	P99    float64            // in ms; 0 where it is not measured
	Rate   float64            // answers, events, transactions ... a second
	// Busy and LoadBusy are the shares of one processor that contender and load
	// used, OthersBusy what everything else on the machine used meanwhile.
	Busy, LoadBusy, OthersBusy float64
	// Bunched is the share of events that came together with an earlier one.
	Bunched float64
}

// Metrics are the names of the rows of measurements.
func Metrics(all []Measurement) []string {
	var names []string
	for _, m := range all {
		for _, r := range m.Rows {
			names = append(names, r.Metric)
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

// Runner lets contenders take turns. Create it with NewRunner.
type Runner struct {
	suite      string
	runs       int
	rows       []string
	contenders []*Contender // ours first
	missing    map[string]string
	progress   io.Writer

	todo    []Measurement
	samples map[string]map[*Contender][]*Sample // by measurement
	failed  map[string]map[*Contender]error
	direct  []float64 // p99 without a proxy, ms
	took    time.Duration
}

// NewRunner looks for the contenders that an order asks for, and says on
// progress who takes no part.
func NewRunner(ctx context.Context, suite string, o *Order, ours *Contender, peers []Peer, progress io.Writer) (*Runner, error) {
	all, missing, err := o.contenders(ctx, ours, peers, progress)
	if err != nil {
		return nil, err
	}
	return &Runner{
		suite: suite, runs: o.Runs, rows: o.Rows, contenders: all, missing: missing, progress: progress,
		samples: map[string]map[*Contender][]*Sample{}, failed: map[string]map[*Contender]error{},
	}, nil
}

// Contenders are those that take part, ours first.
func (r *Runner) Contenders() []*Contender { return r.contenders }

// Enter lets another contender take part.
func (r *Runner) Enter(c *Contender) { r.contenders = append(r.contenders, c) }

// Run measures what the order asks for, and sums it up. It is called once.
func (r *Runner) Run(ctx context.Context, all []Measurement) (*result.Suite, error) {
	began := time.Now()
	r.todo = slices.DeleteFunc(slices.Clone(all), func(m Measurement) bool {
		return !slices.ContainsFunc(m.Rows, func(w Row) bool { return slices.Contains(r.rows, w.Metric) })
	})
	for _, m := range r.todo {
		r.samples[m.Name], r.failed[m.Name] = map[*Contender][]*Sample{}, map[*Contender]error{}
	}
	for round := range r.runs {
		for i := range r.todo {
			if err := r.measure(ctx, &r.todo[i], round); err != nil {
				return nil, err
			}
		}
	}
	r.took = time.Since(began)
	suite := r.sum()
	suite.Date = began.UTC().Truncate(time.Second)
	return suite, nil
}

// measure lets all contenders do one measurement once.
func (r *Runner) measure(ctx context.Context, m *Measurement, round int) error {
	var direct float64
	if m.AddedP99 != "" {
		s, err := undisturbed(ctx, m, nil)
		if err != nil {
			return fmt.Errorf("%s without a proxy: %w", m.Name, err)
		}
		direct = s.P99
		r.direct = append(r.direct, direct)
		r.say(round, "direct", m, s)
	}
	for _, c := range r.contenders {
		if r.failed[m.Name][c] != nil || m.Only != nil && !m.Only(c) {
			continue
		}
		s, err := undisturbed(ctx, m, c)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && c == r.contenders[0]:
			return fmt.Errorf("%s: ours: %w", m.Name, err)
		case err != nil:
			r.failed[m.Name][c] = err
			fmt.Fprintf(r.progress, "%s, %s: %v\n", m.Name, c.Title, err)
			continue
		}
		if m.AddedP99 != "" {
			s.Values[m.AddedP99] = s.P99 - direct
		}
		r.samples[m.Name][c] = append(r.samples[m.Name][c], s)
		r.say(round, c.Title, m, s)
	}
	return nil
}

// undisturbed measures, and again when somebody got in between: up to three
// times, of which the least disturbed counts.
func undisturbed(ctx context.Context, m *Measurement, c *Contender) (*Sample, error) {
	best, err := m.Run(ctx, c)
	for range 2 {
		if err != nil || best.Bunched <= tooBunched {
			return best, err
		}
		var next *Sample
		if next, err = m.Run(ctx, c); err == nil && next.Bunched < best.Bunched {
			best = next
		}
	}
	return best, err
}

func (r *Runner) say(round int, who string, m *Measurement, s *Sample) {
	text := fmt.Sprintf("%d/%d  %-16s %-13s", round+1, r.runs, who, m.Name)
	for _, w := range m.Rows {
		if v, ok := s.Values[w.Metric]; ok {
			text += fmt.Sprintf("  %s %.5g", w.Metric, v)
		}
	}
	if s.P99 > 0 {
		text += fmt.Sprintf("  p99 %.3g ms", s.P99)
	}
	if s.Rate > 0 {
		text += fmt.Sprintf("  (%.0f/s, proxy %.0f%%, load %.0f%%, others %.0f%% of a processor)", s.Rate, 100*s.Busy, 100*s.LoadBusy, 100*s.OthersBusy)
	}
	if s.Bunched > tooBunched {
		text += fmt.Sprintf("  %.0f%% of the events came late and in bunches, which makes them cheap: not comparable", 100*s.Bunched)
	}
	fmt.Fprintln(r.progress, text)
}

// sum makes the result of the samples.
func (r *Runner) sum() *result.Suite {
	s := &result.Suite{Suite: r.suite, Machine: result.ThisMachine(), Runs: r.runs, Missing: map[string]string{}}
	for name, why := range r.missing {
		s.Missing[name] = why
	}
	for _, c := range r.contenders {
		var reasons []string
		concerned := 0
		for _, m := range r.todo {
			if m.Only != nil && !m.Only(c) {
				continue
			}
			concerned++
			if err := r.failed[m.Name][c]; err != nil {
				reasons = append(reasons, err.Error())
			}
		}
		if concerned > 0 && len(reasons) == concerned {
			s.Missing[c.Title] = strings.Join(slices.Compact(reasons), "; ")
		}
	}
	for _, m := range r.todo {
		for _, w := range m.Rows {
			if !slices.Contains(r.rows, w.Metric) {
				continue
			}
			out := result.Row{Metric: w.Metric, Better: w.Better, Peers: map[string]result.Stat{}}
			for _, c := range r.contenders {
				if m.Only != nil && !m.Only(c) {
					continue
				}
				if err := r.failed[m.Name][c]; err != nil {
					// Also when some rounds went well: whoever fails once has no figure.
					if _, all := s.Missing[c.Title]; !all {
						if out.Missing == nil {
							out.Missing = map[string]string{}
						}
						out.Missing[c.Title] = err.Error()
					}
					continue
				}
				var values []float64
				for _, sample := range r.samples[m.Name][c] {
					values = append(values, sample.Values[w.Metric])
				}
				if c == r.contenders[0] {
					out.Ours = result.Of(values)
				} else {
					out.Peers[c.Title] = result.Of(values)
				}
			}
			out.Compare()
			s.Rows = append(s.Rows, out)
		}
	}
	return s
}

// Notes tell how busy everybody was, from which one sees what a row measures: a
// throughput row its proxy only if that was what it waited for. The first words
// say where who ran, and what the load is.
func (r *Runner) Notes(where, load string) string {
	var t strings.Builder
	fmt.Fprintf(&t, "%s The run took %v.\n", where, r.took.Round(time.Second))
	busy := slices.DeleteFunc(slices.Clone(r.todo), func(m Measurement) bool {
		return !slices.ContainsFunc(r.samples[m.Name][r.contenders[0]], func(s *Sample) bool { return s.Rate > 0 })
	})
	if len(busy) == 0 {
		return t.String()
	}
	fmt.Fprintf(&t, "\nMedians of the rate, and of the share of a processor that proxy and load (%s) used:\n\n| contender |", load)
	for _, m := range busy {
		fmt.Fprintf(&t, " %s |", m.Name)
	}
	t.WriteString("\n|---|" + strings.Repeat("---|", len(busy)) + "\n")
	for _, c := range r.contenders {
		fmt.Fprintf(&t, "| %s |", c.Title)
		for _, m := range busy {
			var rate, proxy, load []float64
			for _, s := range r.samples[m.Name][c] {
				rate, proxy, load = append(rate, s.Rate), append(proxy, 100*s.Busy), append(load, 100*s.LoadBusy)
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
			for _, s := range r.samples[m.Name][c] {
				others, bunched = append(others, s.OthersBusy), append(bunched, s.Bunched)
			}
			if share := result.Of(bunched).Median; share > tooBunched {
				fmt.Fprintf(&t, "\n**%.0f%% of the events of %s came late and in bunches, which makes them cheap: not comparable.**\n", 100*share, c.Title)
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
		fmt.Fprintf(&t, "\nWithout a proxy, the p99 is %g ms (%g to %g).\n", d.Median, d.Min, d.Max)
	}
	return t.String()
}
