package gatewaydrill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"fournines/bench/result"
	"fournines/drill"
)

// FaultResults is the fault table.
type FaultResults struct {
	result.Suite
	Load   drill.ReportLoad `json:"load"`
	Faults []FaultResult    `json:"faults"`
}

// FaultResult is one line of the table.
type FaultResult struct {
	Fault       string     `json:"fault"`
	About       string     `json:"about"`
	Repetitions []*Outcome `json:"repetitions"`
	// Disturbed repetitions were thrown away, whatever they showed, because
	// something else took the machine's processors.
	Disturbed int `json:"disturbed,omitempty"`
}

// maxFailures is how often a fault may fail to be measured.
const maxFailures = 3

// maxStall is how long the clients may stand still for a repetition to count.
const maxStall = 250 * time.Millisecond

// Table repeats each fault on a fresh cluster. say is told what happens.
func Table(ctx context.Context, o Options, faults []Fault, p Plan, repeat int, keep bool, say func(string)) (*FaultResults, error) {
	c, err := New(o)
	if err != nil {
		return nil, err
	}
	if keep {
		defer func() { _ = errors.Join(c.Stop(), c.net.Delete(context.WithoutCancel(ctx))) }()
		say("configurations and logs: " + c.Dir())
	} else {
		defer func() { _ = c.Close() }()
	}
	r := &FaultResults{
		Suite: result.Suite{Suite: "gateway-faults", Date: time.Now().UTC().Truncate(time.Second), Machine: result.ThisMachine(), Runs: repeat, Missing: map[string]string{}},
		Load:  drill.ReportLoad{RPS: p.Load.Rate, Streams: p.Load.Streams},
	}
	for _, f := range faults {
		if ok, why := c.Namespaces(); f.Network && !ok {
			say(f.Name + " skipped: " + why)
			r.Missing[f.Name] = why
			continue
		}
		line := FaultResult{Fault: f.Name, About: f.About}
		failures := 0
		for n := 1; n <= repeat; n++ {
			out, err := Run(ctx, c, f, p, n)
			if stopped := c.Stop(); err == nil {
				err = stopped
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				if failures++; failures > maxFailures {
					r.Missing[f.Name] = err.Error()
					break
				}
				n--
				say(fmt.Sprintf("%s once more: nothing was measured: %v", f.Name, err))
				continue
			}
			if out.StallMs > maxStall.Milliseconds() && line.Disturbed < repeat {
				line.Disturbed++
				n--
				say(fmt.Sprintf("%s once more: the clients themselves stood still for %dms", f.Name, out.StallMs))
				continue
			}
			line.Repetitions = append(line.Repetitions, out)
			say(fmt.Sprintf("%s %d of %d: %s", f.Name, n, repeat, out.summary()))
		}
		r.Faults = append(r.Faults, line)
		r.Rows = append(r.Rows, line.rows()...)
	}
	return r, nil
}

func (o *Outcome) summary() string {
	r := o.Report
	text := fmt.Sprintf("%s; outage %dms, worst second %.0f%%, on what broke %+v, other %+v", r.Verdict, r.LongestOutageMs, 100*o.WorstSecond, o.OnVictim, o.Other)
	if len(r.Why) > 0 {
		text += "\n          " + strings.Join(r.Why, "\n          ")
	}
	return text
}

// values maps a figure over the repetitions.
func (l FaultResult) values(f func(*Outcome) float64) []float64 {
	var out []float64
	for _, o := range l.Repetitions {
		out = append(out, f(o))
	}
	return out
}

func (l FaultResult) sum(f func(*Outcome) int) int {
	n := 0
	for _, o := range l.Repetitions {
		n += f(o)
	}
	return n
}

func (l FaultResult) rows() []result.Row {
	row := func(metric, better string, f func(*Outcome) float64) result.Row {
		return result.Row{Metric: l.Fault + "_" + metric, Better: better, Ours: result.Of(l.values(f)), Peers: map[string]result.Stat{}}
	}
	return []result.Row{
		row("longest_outage_ms", result.Lower, func(o *Outcome) float64 { return float64(o.Report.LongestOutageMs) }),
		row("worst_second_share", result.Higher, func(o *Outcome) float64 { return o.WorstSecond }),
		row("idempotent_failed", result.Lower, func(o *Outcome) float64 { return float64(o.Report.Requests.ByClass[drill.Idempotent].Failed) }),
		row("idempotent_max_ms", result.Lower, func(o *Outcome) float64 { return o.Report.Requests.ByClass[drill.Idempotent].MaxMs }),
		row("post_failed_other", result.Lower, func(o *Outcome) float64 { return float64(o.Other.Post + o.Other.Refused) }),
	}
}

// Pass tells whether every fault was measured and every goal met each time.
// Faults that this machine cannot make are no failure.
func (r *FaultResults) Pass() bool {
	for _, l := range r.Faults {
		if l.passed() < r.Runs {
			return false
		}
	}
	return true
}

func (l FaultResult) passed() int {
	return l.sum(func(o *Outcome) int {
		if o.Report.Verdict == "pass" {
			return 1
		}
		return 0
	})
}

// Markdown is the table of docs/gateway.md.
func (r *FaultResults) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%g requests/s and %d open streams, each fault %d times; figures are sums over the repetitions unless they say otherwise. %s, %d CPUs, Linux %s.\n\n",
		r.Load.RPS, r.Load.Streams, r.Runs, r.Date.Format(time.DateOnly), r.Machine.CPUs, r.Machine.Kernel)
	b.WriteString("| fault | requests | idempotent failed (repeated by the client) | blocking posts failed: on what broke / other | streams ended by an error event: on what broke / other | streams refused | streams cut: on what broke / other | longest outage of new requests, median / max | worst second, median / min | longest wait of an idempotent request | goals met |\n")
	b.WriteString("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, l := range r.Faults {
		outage := result.Of(l.values(func(o *Outcome) float64 { return float64(o.Report.LongestOutageMs) }))
		worst := result.Of(l.values(func(o *Outcome) float64 { return 100 * o.WorstSecond }))
		wait := result.Of(l.values(func(o *Outcome) float64 { return o.Report.Requests.ByClass[drill.Idempotent].MaxMs }))
		fmt.Fprintf(&b, "| %s | %d | %d (%d) | %d / %d | %d / %d | %d | %d / %d | %.0f / %.0f ms | %.0f / %.0f%% | %.0f ms | %d of %d |\n",
			l.About, l.sum(func(o *Outcome) int { return o.Report.Requests.Total }),
			l.sum(func(o *Outcome) int { return o.Report.Requests.ByClass[drill.Idempotent].Failed }),
			l.sum(func(o *Outcome) int { return o.Report.Requests.ByClass[drill.Idempotent].FailedFirst }),
			l.sum(func(o *Outcome) int { return o.OnVictim.Post }), l.sum(func(o *Outcome) int { return o.Other.Post }),
			l.sum(func(o *Outcome) int { return o.OnVictim.ErrorEvent }), l.sum(func(o *Outcome) int { return o.Other.ErrorEvent }),
			l.sum(func(o *Outcome) int { return o.OnVictim.Refused + o.Other.Refused }),
			l.sum(func(o *Outcome) int { return o.OnVictim.Cut }), l.sum(func(o *Outcome) int { return o.Other.Cut + o.Other.Malformed }),
			outage.Median, outage.Max, worst.Median, worst.Min, wait.Max, l.passed(), len(l.Repetitions))
	}
	for name, why := range r.Missing {
		fmt.Fprintf(&b, "\nNot measured: %s (%s).\n", name, why)
	}
	return b.String()
}
