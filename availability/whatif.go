package availability

import (
	"context"
	"maps"
	"slices"
)

// Variant is an installation that differs from another in one thing.
type Variant struct {
	Name         string   `json:"name"`
	Availability Interval `json:"availability"`
	Minutes      Interval `json:"minutes"`
	// Belief is how much of what is believed meets the target, 0 to 1.
	Belief float64 `json:"belief"`
	// Month is what it costs a month.
	Month float64 `json:"month"`
	// MinutesLess and MonthMore are against the first.
	MinutesLess float64 `json:"minutesLess"`
	MonthMore   float64 `json:"monthMore"`
}

// WhatIf estimates a model as it is, which comes first, and with single changes
// that are worth a thought. All use the same random numbers, so that differences
// are those of the changes.
func WhatIf(ctx context.Context, m Model, o Options) ([]Variant, error) {
	o.Played = -1
	var out []Variant
	add := func(name string, edit func(*Model)) error {
		changed := m
		changed.Assumptions = maps.Clone(m.Assumptions)
		changed.Faults = slices.Clone(m.Faults)
		edit(&changed)
		// A change that is out of range is no choice.
		if len(out) > 0 && changed.Layout.Validate() != nil {
			return nil
		}
		e, err := Run(ctx, changed, o)
		if err != nil {
			return err
		}
		v := Variant{Name: name, Availability: e.Availability, Minutes: e.Minutes, Belief: e.Belief, Month: changed.Prices.Month(changed.Layout)}
		if len(out) > 0 {
			v.MinutesLess, v.MonthMore = out[0].Minutes.Mean-v.Minutes.Mean, v.Month-out[0].Month
		}
		out = append(out, v)
		return nil
	}
	layout := func(edit func(*Layout)) func(*Model) { return func(m *Model) { edit(&m.Layout) } }
	scale := func(by float64, names ...string) func(*Model) {
		return func(m *Model) {
			for _, name := range names {
				a := m.Assumptions[name]
				a.Value *= by
				if a.Observed != nil {
					a.Observed = &Observed{Events: a.Observed.Events, Years: a.Observed.Years / by}
				}
				m.Assumptions[name] = a
			}
			for i, f := range m.Faults {
				if !f.ShareOnly && slices.Contains(names, f.Outage) {
					m.Faults[i].Measured = slices.Clone(f.Measured)
					for n := range f.Measured {
						m.Faults[i].Measured[n].Minutes *= by
					}
				}
			}
		}
	}
	l := m.Layout
	changes := []struct {
		name  string
		apply bool
		edit  func(*Model)
	}{
		{"as it is", true, func(*Model) {}},
		{"one zone fewer", l.Zones > 1, layout(func(l *Layout) {
			l.Zones--
			l.FullZones = min(l.FullZones, l.Zones)
			l.APINeeded = min(l.APINeeded, l.APIPerZone*l.FullZones)
		})},
		{"one zone more", l.Zones < 3, layout(func(l *Layout) { l.Zones++ })},
		{"traffic in one zone more", l.FullZones < l.Zones, layout(func(l *Layout) { l.FullZones++ })},
		{"one API instance more per zone", true, layout(func(l *Layout) {
			// The load stays what it is.
			if l.APINeeded == 0 {
				l.APINeeded = (l.APIPerZone*l.FullZones + 1) / 2
			}
			l.APIPerZone++
		})},
		{"one worker more", l.Workers > 0 && l.WorkerShare > 0, layout(func(l *Layout) { l.Workers++ })},
		{"one vector replica more", l.Vectors > 0 && l.VectorShare > 0, layout(func(l *Layout) { l.Vectors++ })},
		{"one Redis replica more for each master", true, layout(func(l *Layout) { l.RedisReplicas++ })},
		{"parts without data start elsewhere (Kubernetes)", !l.Reschedule, layout(func(l *Layout) { l.Reschedule = true })},
		{"failovers take half as long", true, scale(0.5, "switch")},
		{"half as many releases and changes fail", true, scale(0.5, "badRelease", "badConfig")},
		{"people mend in half the time", true, scale(0.5, "person")},
	}
	for _, c := range changes {
		if !c.apply {
			continue
		}
		if err := add(c.name, c.edit); err != nil {
			return nil, err
		}
	}
	return out, nil
}
