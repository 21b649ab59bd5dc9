package audit

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// WriteTable writes a report for a person.
func WriteTable(w io.Writer, r *Report, showSuppressed bool) error {
	out := bufio.NewWriter(w)
	explained := map[string]bool{}
	for _, f := range r.Findings {
		first := !explained[f.Rule.ID]
		explained[f.Rule.ID] = true
		fmt.Fprintf(out, "%-8s  %s  %s\n", strings.ToUpper(f.Rule.Severity.String()), f.Rule.ID, f.Rule.Title)
		fmt.Fprintf(out, "          at    %s\n", f.Place)
		fmt.Fprintf(out, "          found %s\n", f.Message)
		if first {
			wrap(out, "          why   ", f.Rule.Why)
			fmt.Fprintf(out, "          costs %s\n", f.Rule.Cost)
		}
		fix := f.Rule.Fix
		if len(f.Edits) > 0 {
			fix += " (--fix does it)"
		}
		if first || len(f.Edits) > 0 {
			wrap(out, "          fix   ", fix)
		}
		fmt.Fprintln(out)
	}
	if showSuppressed {
		for _, f := range r.Suppressed {
			fmt.Fprintf(out, "suppressed  %s  %s: %s (%s, %s)\n", f.Rule.ID, f.Place, f.Message, f.Suppressed.Reason, f.Suppressed.Source)
		}
	}
	for _, s := range r.Unused {
		fmt.Fprintf(out, "unused suppression of %s at %s: remove it\n", s.Rule, s.Source)
	}
	fmt.Fprintln(out, Summary(r))
	return out.Flush()
}

// wrap writes text after a label, in lines of about 100 letters.
func wrap(w io.Writer, label, text string) {
	line := label
	indent := strings.Repeat(" ", len(label))
	for word := range strings.FieldsSeq(text) {
		if len(line)+len(word) > 100 && strings.TrimSpace(line) != strings.TrimSpace(label) {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line, label = indent, indent
		}
		line += word + " "
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
}

// Summary says in a line how many findings there are.
func Summary(r *Report) string {
	var inputs []string
	for _, k := range slices.Sorted(maps.Keys(r.Inputs)) {
		inputs = append(inputs, fmt.Sprintf("%d %s", r.Inputs[k], k))
	}
	counts := map[Severity]int{}
	for _, f := range r.Findings {
		counts[f.Rule.Severity]++
	}
	text := fmt.Sprintf("%d findings", len(r.Findings))
	if len(r.Findings) == 1 {
		text = "1 finding"
	}
	for s := Critical; s >= Low; s-- {
		if counts[s] > 0 {
			text += fmt.Sprintf(", %d %s", counts[s], s)
		}
	}
	if len(r.Suppressed) > 0 {
		text += fmt.Sprintf("; %d suppressed", len(r.Suppressed))
	}
	return fmt.Sprintf("%s, in %s.", text, strings.Join(inputs, ", "))
}
