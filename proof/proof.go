// Package proof reads what drills recorded, puts it into the availability model
// and reports what follows: as a table, as JSON and as a page.
package proof

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"fournines/availability"
)

// FormatVersion is the version of the JSON form. Fields are added, never renamed
// or removed, within a version.
const FormatVersion = 1

// Report is what recorded drills and the model say.
type Report struct {
	Version   int       `json:"version"`
	Generated time.Time `json:"generated"`
	// Statement is the verdict as a sentence, Rule how it is found.
	Statement string `json:"statement"`
	Rule      string `json:"rule"`
	// Drills are the recorded ones.
	Drills []Drill `json:"drills"`
	// Problems are drills that broke data or did not come back; a verdict of
	// pass is not given with them.
	Problems []string `json:"problems"`
	// Unused names drills that no class of faults has.
	Unused []string            `json:"unused"`
	Layout availability.Layout `json:"layout"`
	availability.Estimate
	// Assumptions that the estimate uses, with their sources.
	Assumptions []availability.Assumption `json:"assumptions"`
	// Classes are the faults with their sources.
	Classes []availability.Fault `json:"classes"`
	// Month is what the layout costs a month, in Currency; DowntimeYear what the
	// lost minutes do in a year, 0 when they have no price.
	Month        float64 `json:"month"`
	DowntimeYear float64 `json:"downtimeYear"`
	Currency     string  `json:"currency"`
}

// Drill sums up the repetitions of one recorded drill.
type Drill struct {
	Name string `json:"name"`
	// Suite of fault tables it comes from; empty for a drill of a whole stack.
	Suite string `json:"suite,omitempty"`
	// Class of faults that it measures; empty when there is none.
	Class       string   `json:"class"`
	Files       []string `json:"files"`
	Repetitions int      `json:"repetitions"`
	Passed      int      `json:"passed"`
	// MedianSeconds and WorstSeconds are what one event cost, as if all requests
	// had failed for that long.
	MedianSeconds float64 `json:"medianSeconds"`
	WorstSeconds  float64 `json:"worstSeconds"`
	// LongestOutageSeconds in which some class of requests was not served.
	LongestOutageSeconds float64 `json:"longestOutageSeconds"`
	// Requests that were sent and that failed or were slow.
	Requests int `json:"requests"`
	Bad      int `json:"bad"`
}

// Recordings are what records measured, for the model. A drill after which the
// steady state did not come back measured nothing.
func Recordings(records []Record) []availability.Recording {
	var out []availability.Recording
	for _, group := range grouped(records) {
		r := availability.Recording{Drill: group[0].Drill}
		for _, rec := range group {
			if rec.Restored {
				r.Events = append(r.Events, rec.Event)
			}
		}
		out = append(out, r)
	}
	return out
}

// New estimates from a model and records.
func New(ctx context.Context, m availability.Model, records []Record, o availability.Options, now time.Time) (*Report, error) {
	r := &Report{
		Version: FormatVersion, Generated: now.UTC().Truncate(time.Second), Rule: availability.Rule,
		Drills: []Drill{}, Problems: []string{}, Layout: m.Layout, Currency: m.Prices.Currency,
	}
	for _, rec := range records {
		r.Problems = append(r.Problems, rec.problems()...)
	}
	r.Unused = append([]string{}, m.Measure(Recordings(records))...)
	e, err := availability.Run(ctx, m, o)
	if err != nil {
		return nil, err
	}
	r.Estimate = *e
	if len(r.Problems) > 0 {
		if r.Verdict == availability.Pass {
			r.Verdict = availability.Unknown
		}
		r.Why = append(r.Why, fmt.Sprintf("%d recorded drills broke data or did not come back", len(r.Problems)))
	}
	r.Statement = r.Estimate.Statement()
	r.Drills = summarise(records, m.Faults)
	r.Classes = slices.Clone(m.Faults)
	for i := range r.Classes {
		// What was measured stands under Drills.
		r.Classes[i].Measured = nil
	}
	r.Assumptions = used(m)
	r.Month = m.Prices.Month(m.Layout)
	r.DowntimeYear = m.Prices.DowntimeMinute * e.Minutes.Mean
	return r, nil
}

// used lists the assumptions that the model's faults refer to.
func used(m availability.Model) []availability.Assumption {
	var out []availability.Assumption
	for _, a := range availability.Assumptions() {
		for _, f := range m.Faults {
			if a.Name == f.Rate || a.Name == f.Away || a.Name == f.Outage || a.Name == "reschedule" && m.Layout.Reschedule {
				out = append(out, m.Assumptions[a.Name])
				break
			}
		}
	}
	return out
}

// grouped puts the repetitions of a drill in one place together, in the order of
// drill and suite.
func grouped(records []Record) [][]Record {
	by := map[[2]string][]Record{}
	for _, rec := range records {
		key := [2]string{rec.Drill, rec.Suite}
		by[key] = append(by[key], rec)
	}
	out := slices.Collect(maps.Values(by))
	slices.SortFunc(out, func(a, b []Record) int {
		return cmp.Or(strings.Compare(a[0].Drill, b[0].Drill), strings.Compare(a[0].Suite, b[0].Suite))
	})
	return out
}

func summarise(records []Record, faults []availability.Fault) []Drill {
	out := []Drill{}
	for _, all := range grouped(records) {
		d := Drill{Name: all[0].Drill, Suite: all[0].Suite, Repetitions: len(all)}
		for _, f := range faults {
			if slices.Contains(f.Drills, d.Name) {
				d.Class = f.Name
			}
		}
		var seconds []float64
		for _, rec := range all {
			if !slices.Contains(d.Files, rec.File) {
				d.Files = append(d.Files, rec.File)
			}
			if rec.Verdict == "pass" {
				d.Passed++
			}
			seconds = append(seconds, rec.Event.Minutes*60)
			d.LongestOutageSeconds = max(d.LongestOutageSeconds, rec.LongestOutage.Seconds())
			d.Requests += rec.Requests
			d.Bad += rec.Bad
		}
		slices.Sort(seconds)
		d.WorstSeconds = seconds[len(seconds)-1]
		d.MedianSeconds = (seconds[(len(seconds)-1)/2] + seconds[len(seconds)/2]) / 2
		out = append(out, d)
	}
	return out
}
