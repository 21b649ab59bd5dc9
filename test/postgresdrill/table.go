package postgresdrill

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"fournines/bench/result"
	"fournines/drill"
)

// FaultResults is the failover table.
type FaultResults struct {
	result.Suite
	Plan   Plan          `json:"plan"`
	Faults []FaultResult `json:"faults"`
}

// FaultResult is one line of the table.
type FaultResult struct {
	Fault       string     `json:"fault"`
	About       string     `json:"about"`
	Repetitions []*Outcome `json:"repetitions"`
}

// maxFailures is how often a fault may fail to be measured.
const maxFailures = 3

// Table repeats each fault. The repetitions of a cluster follow one another in
// the same one, which so fails over, rewinds and fails over again.
func Table(ctx context.Context, o Options, faults []Fault, p Plan, repeat int, say func(string)) (*FaultResults, error) {
	r := &FaultResults{
		Suite: result.Suite{Suite: "postgres-failover", Date: time.Now().UTC().Truncate(time.Second), Machine: result.ThisMachine(), Runs: repeat, Missing: map[string]string{}},
		Plan:  p,
	}
	for _, small := range []bool{false, true} {
		o.SmallDisks = small
		of := slices.DeleteFunc(slices.Clone(faults), func(f Fault) bool { return f.SmallDisks != small })
		if len(of) == 0 {
			continue
		}
		if err := r.measure(ctx, o, of, p, repeat, say); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// measure repeats faults in clusters made with the same options.
func (r *FaultResults) measure(ctx context.Context, o Options, faults []Fault, p Plan, repeat int, say func(string)) (err error) {
	var c *Cluster
	defer func() {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	run := 0
	for _, f := range faults {
		line := FaultResult{Fault: f.Name, About: f.About}
		failures := 0
		for n := 1; n <= repeat; n++ {
			if c == nil {
				if c, err = New(o); err != nil {
					return err
				}
				run = 0
				if ok, why := c.Namespaces(); !ok && (f.Network || f.SmallDisks) {
					r.Missing[f.Name] = why
					say(f.Name + " skipped: " + why)
					err = c.Close()
					c = nil
					if err != nil {
						return err
					}
					break
				}
				if err := c.Start(ctx); err != nil {
					return err
				}
				say("cluster ready; logs are in " + c.Dir())
			} else if ok, why := c.Namespaces(); f.Network && !ok {
				r.Missing[f.Name] = why
				say(f.Name + " skipped: " + why)
				break
			}
			run++
			out, err := Run(ctx, c, f, p, run)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				// A new cluster: this one may be in any state.
				say(fmt.Sprintf("%s once more: nothing was measured: %v", f.Name, err))
				err = c.Close()
				c = nil
				if err != nil {
					return err
				}
				if failures++; failures >= maxFailures {
					r.Missing[f.Name] = "could not be measured"
					break
				}
				n--
				continue
			}
			line.Repetitions = append(line.Repetitions, out)
			say(fmt.Sprintf("%s %d of %d: %s", f.Name, n, repeat, out.summary()))
		}
		if len(line.Repetitions) > 0 {
			r.Faults = append(r.Faults, line)
			r.Rows = append(r.Rows, line.row())
		}
	}
	return nil
}

func (o *Outcome) summary() string {
	r := o.Report
	text := fmt.Sprintf("%s; %s to %s, write outage %d ms, longest write %d ms, longest read %d ms, unknown %v, refused %v, read errors %v, stall %d ms",
		r.Verdict, o.From, o.To, r.LongestOutageMs, o.LongestWaitMs, o.LongestReadMs, o.Unknown, o.Refused, o.ReadErrors, o.StallMs)
	if len(r.Why) > 0 {
		text += "\n          " + strings.Join(r.Why, "\n          ")
	}
	return text
}

func (l *FaultResult) values(f func(*Outcome) float64) []float64 {
	var out []float64
	for _, o := range l.Repetitions {
		out = append(out, f(o))
	}
	return out
}

func (l *FaultResult) sum(f func(*Outcome) int) int {
	n := 0
	for _, o := range l.Repetitions {
		n += f(o)
	}
	return n
}

func outageMs(o *Outcome) float64 { return float64(o.Report.LongestOutageMs) }

func (l *FaultResult) row() result.Row {
	return result.Row{Metric: l.Fault + "_write_outage_ms", Better: result.Lower, Ours: result.Of(l.values(outageMs)), Peers: map[string]result.Stat{}}
}

// checks counts the repetitions in which all these checks held.
func (l *FaultResult) checks(names ...string) int {
	return l.sum(func(o *Outcome) int {
		for _, c := range o.Report.Checks {
			if slices.Contains(names, c.Name) && !c.OK {
				return 0
			}
		}
		return 1
	})
}

// Pass tells whether every fault was measured and every goal met each time.
// Faults that this machine cannot make are no failure.
func (r *FaultResults) Pass() bool {
	for i := range r.Faults {
		l := &r.Faults[i]
		passed := l.sum(func(o *Outcome) int {
			if o.Report.Verdict == "pass" {
				return 1
			}
			return 0
		})
		if passed < r.Runs {
			return false
		}
	}
	return true
}

func total(counts map[string]int) int {
	n := 0
	for _, v := range counts {
		n += v
	}
	return n
}

// Markdown is the table of docs/postgres.md.
func (r *FaultResults) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%g writes/s over two pgproxies, each fault %d times. %s, %d CPUs, Linux %s.\n\n", r.Plan.Rate, r.Runs, r.Date.Format(time.DateOnly), r.Machine.CPUs, r.Machine.Kernel)
	b.WriteString("| fault | write outage, median / max | goal | writes acknowledged / lost | writes with an unknown end | writes refused | reads / with an error | idle clients / with an error | histories linearizable |\n")
	b.WriteString("|---|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	goals := map[string]time.Duration{}
	for _, f := range Faults() {
		goals[f.Name] = f.MaxOutage
	}
	for i := range r.Faults {
		l := &r.Faults[i]
		n := len(l.Repetitions)
		outage := result.Of(l.values(outageMs))
		count := func(class drill.Class) (all, failed int) {
			for _, o := range l.Repetitions {
				all += o.Report.Requests.ByClass[class].Total
				failed += o.Report.Requests.ByClass[class].Failed
			}
			return all, failed
		}
		reads, badReads := count(classRead)
		idle, badIdle := count(classIdle)
		fmt.Fprintf(&b, "| %s | %.1f / %.1f s | %.0f s | %d / %d | %d | %d | %d / %d | %d / %d | %d of %d |\n",
			l.About, outage.Median/1000, outage.Max/1000, goals[l.Fault].Seconds(),
			l.sum(func(o *Outcome) int { return o.Acknowledged }), l.sum(func(o *Outcome) int { return o.Lost }),
			l.sum(func(o *Outcome) int { return total(o.Unknown) }), l.sum(func(o *Outcome) int { return total(o.Refused) }),
			reads, badReads, idle, badIdle,
			l.checks("linearizable-registers", "append-lists"), n)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Missing)) {
		fmt.Fprintf(&b, "\nNot measured: %s (%s).\n", name, r.Missing[name])
	}
	return b.String()
}
