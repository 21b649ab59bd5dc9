package gatewaydrill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"fournines/drill"
	"fournines/test/clock"
)

// Plan says how faults are measured.
type Plan struct {
	// Load is what clients ask; URL is filled in.
	Load drill.Load
	// Warmup is how long everything must go well before the fault; it begins
	// when the streams are open.
	Warmup time.Duration
	// Settle is how long the load goes on after the repair.
	Settle time.Duration
	// Slow is how much longer than before the fault a good answer may take.
	Slow time.Duration
	// Hold, when not 0, is the longest that a fault lasts.
	Hold time.Duration
	// Slack is added to the time in which a request may still meet what broke; a
	// busy machine needs some.
	Slack time.Duration
	// MaxOutage is the goal for the longest outage of new requests.
	MaxOutage time.Duration
}

// DefaultPlan is the plan of the fault table.
func DefaultPlan() Plan {
	return Plan{
		Load: drill.Load{
			AppKey: "app-drill-0000000000000000", Rate: 200, Timeout: 30 * time.Second,
			Streams: 500, Ramp: 2 * time.Second, ChatTokens: 2, StreamTokens: 12,
		},
		Warmup: 1500 * time.Millisecond, Settle: 2500 * time.Millisecond, Slow: time.Second, MaxOutage: time.Second,
	}
}

// Outcome is what clients got in one repetition of a fault.
type Outcome struct {
	// Report has the form of every drill's report.
	Report *drill.Report `json:"report"`
	// WorstSecond is the least share of requests served well within a second.
	WorstSecond float64 `json:"worstSecond"`
	// OnVictim counts what failed and had been in flight on what broke, Other
	// what failed without that reason.
	OnVictim Failures `json:"onVictim"`
	Other    Failures `json:"other"`
	// StallMs is the longest that this process itself got no processor: clients
	// that stood still measure themselves.
	StallMs int64 `json:"stallMs"`
}

// Failures counts failed requests by what they were.
type Failures struct {
	Idempotent int `json:"idempotent"`
	Post       int `json:"post"`
	// Refused streams never began.
	Refused int `json:"refusedStreams"`
	// ErrorEvent streams ended with an error event, Cut ones without a word,
	// Malformed ones against the protocol.
	ErrorEvent int `json:"errorEventStreams"`
	Cut        int `json:"cutStreams"`
	Malformed  int `json:"malformedStreams"`
}

// Run breaks a fresh cluster once. An error means that nothing was measured.
func Run(ctx context.Context, c *Cluster, f Fault, p Plan, repetition int) (*Outcome, error) {
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	load := p.Load
	var stall time.Duration
	rec := c.record(ctx, load, func(ctx context.Context) { stall = clock.LongestStall(ctx) })
	defer rec.end()
	r := &drill.Report{
		Version: 1, Drill: f.Name, Target: victim, Repetition: repetition,
		Load: drill.ReportLoad{RPS: load.Rate, Streams: load.Streams}, Checks: []drill.Check{}, Alerts: []drill.Alert{},
	}
	r.Window.Start = time.Now()
	clock.Wait(ctx, load.Ramp+p.Warmup)
	for _, s := range rec.after(0) {
		if s.Err != "" {
			return nil, fmt.Errorf("a %s request failed before the fault: %s %s", s.Class, s.Err, s.Code)
		}
	}

	var blows []blow
	r.Window.Fault = time.Now()
	err := f.strike(ctx, c, func() func() {
		now, n := time.Now(), len(blows)
		blows = append(blows, blow{now, now})
		return func() { blows[n].to = time.Now() }
	})
	if err == nil {
		hold := f.hold
		if p.Hold > 0 {
			hold = min(hold, p.Hold)
		}
		clock.Wait(ctx, hold)
	}
	if f.repair != nil {
		err = errors.Join(err, f.repair(ctx, c))
	}
	r.Window.Restored = time.Now()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	err = c.AwaitReady(ctx)
	clock.Wait(ctx, p.Settle)
	r.Window.End = rec.end()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	r.SteadyStateRestored = err == nil

	samples := rec.after(0)
	requests, longest, recovered := load.Measure(samples, p.Slow, r.Window.Fault, r.Window.End)
	r.Requests, r.LongestOutageMs, r.RecoveryMs = requests, longest.Milliseconds(), recovered.Milliseconds()
	o := &Outcome{Report: r, StallMs: stall.Milliseconds(), WorstSecond: load.WorstSecond(samples, p.Slow, r.Window.Fault, r.Window.End)}
	for _, s := range samples {
		if s.Err == "" {
			continue
		}
		if f.hits.explains(s, blows, p.Slack) {
			o.OnVictim.count(s)
		} else {
			o.Other.count(s)
		}
	}
	o.judge(p, samples)
	return o, nil
}

// blow is the time in which something was taken away: a process that is killed
// takes its time to go.
type blow struct{ from, to time.Time }

// explains tells whether a failed request had been in flight on what the blows hit.
func (h hit) explains(s drill.Sample, blows []blow, slack time.Duration) bool {
	if h.instance != "" && s.Instance == h.instance {
		return true
	}
	there := false
	for _, b := range blows {
		there = there || !s.Due.After(b.to.Add(h.until+slack+50*time.Millisecond)) && s.Done.After(b.from)
	}
	if !there {
		return false
	}
	switch s.Code {
	case "bad_gateway", "upstream_lost", "upstream_silent", "gateway_timeout":
		return h.instances // the gateway says so
	case "":
		return h.gateways // nobody said anything
	}
	return false
}

func (f *Failures) count(s drill.Sample) {
	switch {
	case s.Class == drill.Idempotent:
		f.Idempotent++
	case s.Class == drill.Post:
		f.Post++
	case s.End == drill.StreamRefused:
		f.Refused++
	case s.End == drill.StreamErrorEvent:
		f.ErrorEvent++
	case s.End == drill.StreamMalformed:
		f.Malformed++
	default:
		f.Cut++
	}
}

// judge fills in checks and the verdict: the goals of the gateway.
func (o *Outcome) judge(p Plan, samples []drill.Sample) {
	r := o.Report
	check := func(name string, ok bool, format string, args ...any) {
		c := drill.Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)}
		r.Checks = append(r.Checks, c)
		if !ok {
			r.Why = append(r.Why, c.Name+": "+c.Detail)
		}
	}
	idempotent := r.Requests.ByClass[drill.Idempotent]
	check("idempotent", idempotent.Failed == 0, "%d of %d failed, %d had to be repeated by the client", idempotent.Failed, idempotent.Total, idempotent.FailedFirst)
	other := o.Other
	check("posts", other.Post+other.Refused+other.ErrorEvent == 0,
		"%d posts and %d streams failed that were not in flight on what broke", other.Post, other.Refused+other.ErrorEvent)
	check("streams", other.Cut+other.Malformed+o.OnVictim.Malformed == 0, "%d cut for no reason, %d malformed", other.Cut, other.Malformed+o.OnVictim.Malformed)
	longest := time.Duration(r.LongestOutageMs) * time.Millisecond
	check("outage", longest < p.MaxOutage, "%v, goal under %v", longest, p.MaxOutage)
	if r.Drill == "gateway-restart" {
		all := r.Requests.Failed + r.Requests.FailedFirst
		check("restart", all == 0, "%d requests failed, %d had to be repeated", r.Requests.Failed, r.Requests.FailedFirst)
	}
	check("recovered", r.SteadyStateRestored, "every process sees every other again")
	r.Verdict = "pass"
	if len(r.Why) > 0 {
		r.Verdict = "fail"
		r.Why = append(r.Why, examples(samples))
	}
}

// examples describes some failed requests, for whoever looks for the cause.
func examples(samples []drill.Sample) string {
	counts := map[string]int{}
	var order []string
	for _, s := range samples {
		if s.Err == "" {
			continue
		}
		key := strings.Join(strings.Fields(fmt.Sprintf("%s: %s %s (gateway %s, instance %s)", s.Class, s.Err, s.Code, s.Gateway, s.Instance)), " ")
		if counts[key] == 0 {
			order = append(order, key)
		}
		counts[key]++
	}
	if len(order) == 0 {
		return ""
	}
	var out []string
	for _, key := range order[:min(len(order), 12)] {
		out = append(out, fmt.Sprintf("%d × %s", counts[key], key))
	}
	return "failures: " + strings.Join(out, "; ")
}
