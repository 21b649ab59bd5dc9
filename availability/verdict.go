package availability

import (
	"fmt"
	"strings"
)

// Verdict says whether the target is met.
type Verdict string

// The verdicts. Pass and Fail are the words of drills and audits.
const (
	Pass    Verdict = "pass"
	Fail    Verdict = "fail"
	Unknown Verdict = "not enough evidence"
)

// Rule is how the verdict is found, for reports and documentation.
const Rule = `The target holds when the lower end of the 95% interval of the availability meets it, even if every fault that a drill could measure and none did costs the upper end of what is assumed. It does not hold when the upper end of the interval misses it, even if those faults cost nothing. Everything between is not enough evidence.`

// Statement is the verdict as a sentence.
func (e *Estimate) Statement() string {
	switch e.Verdict {
	case Pass:
		return Percent(e.Target) + " holds"
	case Fail:
		return Percent(e.Target) + " does not hold"
	}
	return "not enough evidence whether " + Percent(e.Target) + " holds"
}

// judge applies Rule.
func (e *Estimate) judge() {
	a := e.Availability
	say := func(format string, args ...any) { e.Why = append(e.Why, fmt.Sprintf(format, args...)) }
	switch {
	case e.Pessimistic.Low >= e.Target:
		e.Verdict = Pass
		say("the lower end of the 95%% interval is %s", Percent(e.Pessimistic.Low))
	case e.Optimistic.High < e.Target:
		e.Verdict = Fail
		say("the upper end of the 95%% interval is %s", Percent(e.Optimistic.High))
	default:
		e.Verdict = Unknown
		if a.Low < e.Target && a.High >= e.Target {
			say("the 95%% interval goes from %s to %s, and the target is inside", Percent(a.Low), Percent(a.High))
		} else {
			say("what drills have not measured decides: if it costs nothing the 95%% interval reaches up to %s, if it costs the upper end of what is assumed down to %s", Percent(e.Optimistic.High), Percent(e.Pessimistic.Low))
		}
	}
	var unmeasured []string
	for _, c := range e.Faults {
		if c.Known == Unmeasured && !c.Outside {
			unmeasured = append(unmeasured, c.Fault)
		}
	}
	if len(unmeasured) > 0 {
		say("no drill measured %s", strings.Join(unmeasured, ", "))
	}
	if top := e.largest(3); len(top) > 0 {
		say("of the %.0f minutes a year the largest parts come from %s", e.Minutes.Mean, strings.Join(top, ", "))
	}
}

// largest names the faults that cost most.
func (e *Estimate) largest(n int) []string {
	var out []string
	for _, c := range e.Faults {
		if len(out) < n && !c.Outside && c.Minutes.Mean > 0 {
			out = append(out, fmt.Sprintf("%s (%.0f%%)", c.Fault, c.Share*100))
		}
	}
	return out
}
