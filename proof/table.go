package proof

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"fournines/availability"
)

// WriteJSON writes a report for a program.
func WriteJSON(w io.Writer, r *Report) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// WriteTable writes a report for a person.
func WriteTable(w io.Writer, r *Report) error {
	fmt.Fprintln(w, r.Statement)
	for _, why := range r.Why {
		fmt.Fprintf(w, "  %s\n", why)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  %s\n", p)
	}
	a, m, y := r.Availability, r.Minutes, r.Year
	fmt.Fprintf(w, `
many years    %s (95%%: %s to %s), %s minutes a year (%s to %s) of %.2f
belief        %.0f%% of what is believed meets %s
`, availability.Percent(a.Mean), availability.Percent(a.Low), availability.Percent(a.High), minutes(m.Mean), minutes(m.Low), minutes(m.High), r.BudgetMinutes,
		r.Belief*100, availability.Percent(r.Target))
	if r.Years > 0 {
		fmt.Fprintf(w, `single years  half lose less than %s minutes, one in twenty more than %s; %.0f%% keep the budget
              %.0f%% of the variance is not knowing rates and times, the rest is luck (%d years played)
`, minutes(y.P50), minutes(y.P95), y.WithinBudget*100, y.FromIgnorance*100, r.Years)
	}
	fmt.Fprint(w, "known         ")
	for i, s := range r.Evidence {
		if i > 0 {
			fmt.Fprint(w, ", ")
		}
		fmt.Fprintf(w, "%s %s min (%.0f%%)", s.Name, minutes(s.Minutes), s.Share*100)
	}
	fmt.Fprintln(w)
	if r.OutsideMinutes > 0 {
		fmt.Fprintf(w, "outside       %s minutes a year more by what lies outside the installation\n", minutes(r.OutsideMinutes))
	}
	if r.DowntimeYear > 0 {
		fmt.Fprintf(w, "cost          %.0f %s a month; the lost minutes %.0f %s a year\n", r.Month, r.Currency, r.DowntimeYear, r.Currency)
	} else {
		fmt.Fprintf(w, "cost          %.0f %s a month\n", r.Month, r.Currency)
	}

	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nFAULT\tKIND\tA YEAR\tEACH\tMIN/YEAR\tSHARE\t95%\tNO SPARE LEFT\tKNOWN")
	for _, c := range r.Faults {
		if c.Outside {
			continue
		}
		known := string(c.Known)
		if c.Repetitions > 0 {
			known += fmt.Sprintf(" ×%d", c.Repetitions)
		}
		fmt.Fprintf(tw, "%s\t%s\t%.2g\t%s\t%s\t%.0f%%\t%s to %s\t%s\t%s\n", c.Fault, c.Kind, c.EventsPerYear, seconds(c.SecondsPerEvent),
			minutes(c.Minutes.Mean), c.Share*100, minutes(c.Minutes.Low), minutes(c.Minutes.High), minutes(c.Exhausted), known)
	}
	fmt.Fprintln(tw, "\nINPUT\tAT ITS LOW END\tAT ITS HIGH END")
	for i, s := range r.Sensitivity {
		if i == 10 {
			break
		}
		fmt.Fprintf(tw, "%s\t%s min/year\t%s min/year\n", s.Input, minutes(s.Low), minutes(s.High))
	}
	if len(r.Drills) > 0 {
		fmt.Fprintln(tw, "\nDRILL\tOF\tMEASURES\tREPETITIONS\tMEDIAN\tWORST\tLONGEST OUTAGE")
		for _, d := range r.Drills {
			class := d.Class
			if class == "" {
				class = "no class of faults"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", d.Name, d.of(), class, d.Repetitions, seconds(d.MedianSeconds), seconds(d.WorstSeconds), seconds(d.LongestOutageSeconds))
		}
	}
	return tw.Flush()
}

// of says what a drill was about.
func (d Drill) of() string {
	if d.Suite == "" {
		return "the stack"
	}
	return d.Suite
}

// minutes writes minutes with as many digits as they deserve.
func minutes(m float64) string {
	switch {
	case m >= 10:
		return fmt.Sprintf("%.0f", m)
	case m >= 0.095:
		return fmt.Sprintf("%.1f", m)
	case m >= 0.0095:
		return fmt.Sprintf("%.2f", m)
	case m > 0:
		return "<0.01"
	}
	return "0"
}
