package drill

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is the outcome of one drill. Its JSON form is read by other programs:
// fields are added, never renamed or removed.
type Report struct {
	Version    int        `json:"version"`
	Drill      string     `json:"drill"`
	Target     string     `json:"target"`
	Repetition int        `json:"repetition"`
	Load       ReportLoad `json:"load"`
	Window     Window     `json:"window"`
	Requests   Requests   `json:"requests"`
	// LongestOutageMs is the longest time in which no request of some class
	// that fell due was served well.
	LongestOutageMs int64 `json:"longestOutageMs"`
	// RecoveryMs is the time from the fault to the last request that was not
	// served well.
	RecoveryMs          int64   `json:"recoveryMs"`
	Checks              []Check `json:"checks"`
	Alerts              []Alert `json:"alerts"`
	SteadyStateRestored bool    `json:"steadyStateRestored"`
	// Verdict is "pass" or "fail"; Why lists what failed.
	Verdict string   `json:"verdict"`
	Why     []string `json:"why,omitempty"`
}

// ReportLoad is the load that was offered.
type ReportLoad struct {
	RPS     float64 `json:"rps"`
	Streams int     `json:"streams"`
}

// Window holds the drill's moments, in wall-clock time.
type Window struct {
	Start    time.Time `json:"start"`
	Fault    time.Time `json:"fault"`
	Restored time.Time `json:"restored"`
	End      time.Time `json:"end"`
}

// Alert is one alert that fired, and how long after the fault.
type Alert struct {
	Name         string `json:"name"`
	FiredAfterMs int64  `json:"firedAfterMs"`
}

// judge fills in the verdict.
func (r *Report) judge(maxOutage time.Duration) {
	if got := time.Duration(r.LongestOutageMs) * time.Millisecond; got > maxOutage {
		r.Why = append(r.Why, fmt.Sprintf("longest outage %v is over the limit of %v", got, maxOutage))
	}
	for _, c := range r.Checks {
		if !c.OK {
			r.Why = append(r.Why, fmt.Sprintf("check %s: %s", c.Name, c.Detail))
		}
	}
	if !r.SteadyStateRestored {
		r.Why = append(r.Why, "not every component became ready again")
	}
	r.Verdict = "pass"
	if len(r.Why) > 0 {
		r.Verdict = "fail"
	}
}

// WriteTable prints reports for a person: one line per drill, then what failed.
func WriteTable(w io.Writer, reports []*Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "DRILL\tTARGET\tREQUESTS\tFAILED\tSLOW\tLONGEST OUTAGE\tRECOVERY\tP99\tVERDICT")
	for _, r := range reports {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%v\t%v\t%.0fms\t%s\n", r.Drill, r.Target,
			r.Requests.Total, r.Requests.Failed, r.Requests.Slow,
			time.Duration(r.LongestOutageMs)*time.Millisecond,
			time.Duration(r.RecoveryMs)*time.Millisecond, r.Requests.P99Ms, r.Verdict)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, r := range reports {
		for _, c := range r.Checks {
			fmt.Fprintf(w, "%s: %s: %s\n", r.Drill, c.Name, c.Detail)
		}
		var classes []string
		for _, class := range []Class{Idempotent, Post, Stream} {
			c := r.Requests.ByClass[class]
			classes = append(classes, fmt.Sprintf("%s %d of %d (longest outage %v)", class, c.Failed, c.Total, time.Duration(c.LongestOutageMs)*time.Millisecond))
		}
		fmt.Fprintf(w, "%s: failed: %s\n", r.Drill, strings.Join(classes, ", "))
		reasons := make([]string, 0, len(r.Requests.Reasons))
		for why, n := range r.Requests.Reasons {
			reasons = append(reasons, fmt.Sprintf("%s (%d)", why, n))
		}
		slices.Sort(reasons)
		if len(reasons) > 0 {
			fmt.Fprintf(w, "%s: reasons: %s\n", r.Drill, strings.Join(reasons, ", "))
		}
		for _, why := range r.Why {
			fmt.Fprintf(w, "%s: FAIL: %s\n", r.Drill, why)
		}
	}
	return nil
}
