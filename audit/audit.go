// Package audit finds what costs a Dify installation its nines: in a fournines
// spec, docker compose files, Kubernetes manifests, rules of Prometheus,
// configuration files of the servers, backup scripts, and servers that run.
//
// An Inventory holds everything that was read, once, with the place of every
// value. A Rule is a value with a check over it. No rule reads a file or asks a
// server: audit/live does the asking.
package audit

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity says how much a finding matters.
type Severity int

// The severities, in rising order.
const (
	// Low: worth knowing, costs little.
	Low Severity = iota + 1
	// Medium: makes another fault longer or harder to see.
	Medium
	// High: one ordinary fault becomes an outage.
	High
	// Critical: the protection that the configuration claims does not exist, or
	// data can be lost.
	Critical
)

// String returns the severity's word.
func (s Severity) String() string {
	switch s {
	case Low:
		return "low"
	case Medium:
		return "medium"
	case High:
		return "high"
	case Critical:
		return "critical"
	}
	return "none"
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseSeverity reads low, medium, high, critical, or none, which nothing
// reaches.
func ParseSeverity(word string) (Severity, error) {
	for s := Low; s <= Critical+1; s++ {
		if s.String() == word {
			return s, nil
		}
	}
	return 0, fmt.Errorf("severity %q: want low, medium, high, critical or none", word)
}

// Place is where a finding was made: in a file, or in a server's answer.
type Place struct {
	// File as the user named it, or the name of a server.
	File string `json:"file"`
	// Line and Column start at 1; both are 0 for a server and for a whole file.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Query is what a server was asked: SQL, PromQL, a command, a path.
	Query string `json:"query,omitempty"`
}

// String writes file:line, or server: query.
func (p Place) String() string {
	switch {
	case p.Query != "":
		return p.File + ": " + p.Query
	case p.Line > 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return p.File
}

// Rule is one thing that is looked for.
type Rule struct {
	// ID never changes and is never used again for something else.
	ID string
	// Title says what is wrong, in a few words.
	Title string
	// Severity of its findings.
	Severity Severity
	// Reads says which inputs it looks at.
	Reads []Kind
	// Why says what happens because of it.
	Why string
	// Cost is what it costs in a year.
	Cost Cost
	// Fix says what to do.
	Fix string

	check func(in *Inventory) []hit
}

// hit is what a check found; the rule adds the rest.
type hit struct {
	place   Place
	message string
	edits   []Edit
}

// Finding is one mistake at one place.
type Finding struct {
	Rule *Rule
	Place
	// Message says what was found there.
	Message string
	// Edits mend it without a change to anything else; empty when a person has
	// to decide.
	Edits []Edit
	// Suppressed is why it does not count; nil when it does.
	Suppressed *Suppression
}

// Report is the result of an audit.
type Report struct {
	// Findings that count, the most severe first.
	Findings []Finding
	// Suppressed findings.
	Suppressed []Finding
	// Unused suppressions hide nothing and can be removed.
	Unused []Suppression
	// Inputs is how many inputs of each kind were read.
	Inputs map[Kind]int
}

// Worst returns the highest severity of the findings that count, 0 for none.
func (r *Report) Worst() Severity {
	worst := Severity(0)
	for _, f := range r.Findings {
		worst = max(worst, f.Rule.Severity)
	}
	return worst
}

// Run checks everything in the inventory against every rule. Suppressions from
// a file are added to those in the inputs' comments.
func Run(in *Inventory, fromFile []Suppression) *Report {
	in.link()
	suppressions := append(in.inlineSuppressions(), fromFile...)
	used := make([]bool, len(suppressions))
	report := &Report{Inputs: in.count()}
	rules := Rules()
	for i := range rules {
		rule := &rules[i]
		if !in.has(rule.Reads) {
			continue
		}
		for _, h := range merged(rule.check(in)) {
			f := Finding{Rule: rule, Place: h.place, Message: h.message, Edits: h.edits}
			for n := range suppressions {
				if suppressions[n].covers(f) {
					used[n] = true
					if f.Suppressed == nil {
						f.Suppressed = &suppressions[n]
					}
				}
			}
			if f.Suppressed != nil {
				report.Suppressed = append(report.Suppressed, f)
			} else {
				report.Findings = append(report.Findings, f)
			}
		}
	}
	sortFindings(report.Findings)
	sortFindings(report.Suppressed)
	for n, s := range suppressions {
		if !used[n] {
			report.Unused = append(report.Unused, s)
		}
	}
	return report
}

// merged makes one hit of those at the same place: with anchors one line may
// belong to many services.
func merged(hits []hit) []hit {
	slices.SortStableFunc(hits, func(a, b hit) int { return strings.Compare(a.message, b.message) })
	var out []hit
	more := map[Place]int{}
	for _, h := range hits {
		if more[h.place]++; more[h.place] == 1 || h.place.Line == 0 {
			out = append(out, h)
		}
	}
	for i, h := range out {
		if n := more[h.place] - 1; n > 0 && h.place.Line > 0 {
			out[i].message += fmt.Sprintf(" (and %d more at this place)", n)
		}
	}
	return out
}

func sortFindings(all []Finding) {
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(b.Rule.Severity, a.Rule.Severity),
			strings.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			strings.Compare(a.Rule.ID, b.Rule.ID),
			strings.Compare(a.Message, b.Message),
		)
	})
}

// Rules returns every rule, in the order of their ids.
func Rules() []Rule {
	all := slices.Concat(
		specRules(), specTimingRules(),
		composeRules(), processRules(), probeRules(), storageRules(), secretRules(),
		kubernetesRules(), disruptionRules(), spreadRules(), scalingRules(), operatorRules(),
		gatewayRules(), higressRules(), nginxRules(),
		postgresRules(), redisRules(),
		alertRules(), monitoringRules(),
		backupRules(),
	)
	slices.SortFunc(all, func(a, b Rule) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// found makes a hit.
func found(at Place, format string, args ...any) hit {
	return hit{place: at, message: fmt.Sprintf(format, args...)}
}
