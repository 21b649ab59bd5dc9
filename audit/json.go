package audit

import (
	"encoding/json"
	"io"
)

// FormatVersion is the version of the JSON form. Fields are added, never
// renamed or removed, within a version.
const FormatVersion = 1

type jsonFinding struct {
	Rule     string   `json:"rule"`
	Title    string   `json:"title"`
	Severity Severity `json:"severity"`
	Place
	Message        string       `json:"message"`
	Why            string       `json:"why"`
	MinutesPerYear float64      `json:"minutesPerYear"`
	Cost           string       `json:"cost"`
	Fix            string       `json:"fix"`
	Fixable        bool         `json:"fixable"`
	Suppression    *Suppression `json:"suppression,omitempty"`
}

func toJSON(all []Finding) []jsonFinding {
	out := []jsonFinding{}
	for _, f := range all {
		out = append(out, jsonFinding{
			Rule: f.Rule.ID, Title: f.Rule.Title, Severity: f.Rule.Severity, Place: f.Place, Message: f.Message, Why: f.Rule.Why,
			MinutesPerYear: f.Rule.Cost.Minutes(), Cost: f.Rule.Cost.String(), Fix: f.Rule.Fix, Fixable: len(f.Edits) > 0, Suppression: f.Suppressed,
		})
	}
	return out
}

// WriteJSON writes a report for a program. The verdict is "fail" when a finding
// reaches failOn, else "pass".
func WriteJSON(w io.Writer, r *Report, failOn Severity) error {
	verdict := "pass"
	if r.Worst() >= failOn {
		verdict = "fail"
	}
	unused := r.Unused
	if unused == nil {
		unused = []Suppression{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(struct {
		Version    int           `json:"version"`
		Verdict    string        `json:"verdict"`
		FailOn     Severity      `json:"failOn"`
		Inputs     map[Kind]int  `json:"inputs"`
		Findings   []jsonFinding `json:"findings"`
		Suppressed []jsonFinding `json:"suppressed"`
		Unused     []Suppression `json:"unusedSuppressions"`
	}{FormatVersion, verdict, failOn, r.Inputs, toJSON(r.Findings), toJSON(r.Suppressed), unused})
}
