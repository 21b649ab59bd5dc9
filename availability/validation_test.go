package availability

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// bare makes a system of n parts with k needed in each of the given groups. Every
// part fails rate times a year and is away for minutes; a zone too, when it has a
// rate. Nothing is uncertain and users lose nothing but what is exhausted.
func bare(t *testing.T, groups [][2]int, zones int, rate, minutes, zoneRate, zoneMinutes float64) *system {
	t.Helper()
	s := &system{
		inputs: []Assumption{
			{Name: "rate", Value: rate, Factor: 1},
			{Name: "away", Value: minutes, Factor: 1, Spread: 3},
			{Name: "zoneRate", Value: zoneRate, Factor: 1},
			{Name: "zoneAway", Value: zoneMinutes, Factor: 1, Spread: 3},
		},
		faults: []fault{
			{Fault: Fault{Name: "part", Scope: ScopeUnit, Group: groupAPI, Part: 1}, rate: 0, away: 1, outage: 1},
			{Fault: Fault{Name: "zone", Scope: ScopeZone, Part: 1}, rate: 2, away: 3, outage: 3},
		},
	}
	s.model.Layout = Layout{Zones: zones, HostsPerZone: 1}
	for _, g := range groups {
		group := group{name: groupAPI, need: g[1], share: 1}
		for i := range g[0] {
			group.units = append(group.units, len(s.units))
			s.units = append(s.units, unit{kind: groupAPI, zone: i % zones})
		}
		s.groups = append(s.groups, group)
	}
	s.place(-1)
	return s
}

// TestClosedForms holds the calculated and the played availability against
// textbook formulas.
func TestClosedForms(t *testing.T) {
	const rate, minutes = 20, 300
	a := SteadyState(rate, minutes)
	z := SteadyState(4, 600)
	for _, c := range []struct {
		name     string
		groups   [][2]int
		zones    int
		zoneRate float64
		want     float64
	}{
		{"one part", [][2]int{{1, 1}}, 1, 0, a},
		{"three in series", [][2]int{{1, 1}, {1, 1}, {1, 1}}, 1, 0, Series(a, a, a)},
		{"two in parallel", [][2]int{{2, 1}}, 2, 0, Parallel(a, a)},
		{"2 of 3", [][2]int{{3, 2}}, 3, 0, KOfN(2, 3, a)},
		{"3 of 5", [][2]int{{5, 3}}, 5, 0, KOfN(3, 5, a)},
		{"two layers of two", [][2]int{{2, 1}, {2, 1}}, 2, 0, Series(Parallel(a, a), Parallel(a, a))},
		{"two parts in one zone", [][2]int{{2, 1}}, 1, 4, z * Parallel(a, a)},
		{"two parts in two zones", [][2]int{{2, 1}}, 2, 4, Parallel(z*a, z*a)},
		{"2 of 3 in three zones", [][2]int{{3, 2}}, 3, 4, KOfN(2, 3, z*a)},
		{"2 of 3 in two zones", [][2]int{{3, 2}}, 2, 4,
			z*z*KOfN(2, 3, a) + z*(1-z)*a*a},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := bare(t, c.groups, c.zones, rate, minutes, c.zoneRate, 600)
			w := s.mean()
			want := (1 - c.want) * MinutesPerYear
			e := s.expect(w)
			near(t, "calculated", e.total(), want, want*1e-6+1e-6)
			if c.zoneRate == 0 {
				near(t, "what the parts cost", e.exhausted[0], want, want*1e-6+1e-6)
			} else if e.exhausted[0] <= 0 || e.exhausted[1] <= 0 {
				t.Errorf("parts cost %v minutes, zones %v", e.exhausted[0], e.exhausted[1])
			}

			sim := newSimulator(s)
			r := rand.New(rand.NewPCG(1, 2))
			const years = 500
			sum, squares := 0.0, 0.0
			for range years {
				m := sim.year(r, w)
				sum += m
				squares += m * m
			}
			m := sum / years
			se := math.Sqrt((squares/years - m*m) / years)
			// Four standard errors; the seed is fixed, so this does not flake.
			near(t, "played", m, want, 4*se)
			if se > want/3 {
				t.Errorf("the standard error %v is too wide to show anything about %v", se, want)
			}
		})
	}
}

// TestOutagesAddUp: what events cost by themselves is rate, times minutes, times
// the share of the requests that fail.
func TestOutagesAddUp(t *testing.T) {
	m := Default()
	m.Assumptions["commonBug"] = Assumption{Name: "commonBug", Value: 6, Unit: PerYear, Factor: 1}
	m.Assumptions["person"] = Assumption{Name: "person", Value: 30, Unit: Minutes, Factor: 1, Spread: 2}
	m.Faults = []Fault{{Name: "x", Kind: Software, Scope: ScopeService, Rate: "commonBug", Part: 0.5, Outage: "person", Share: 0.25}}
	e, err := Run(t.Context(), m, Options{Worlds: 400, Played: 400, Years: 5, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "minutes", e.Minutes.Mean, 3*30*0.25, 0.01)
	near(t, "played minutes", e.Year.Mean, 22.5, 1.5)
	near(t, "events", e.Faults[0].EventsPerYear, 3, 1e-9)
	near(t, "seconds for each", e.Faults[0].SecondsPerEvent, 450, 1e-6)

	// A drill that says 10% for how long it was told to: the share is measured.
	m.Faults[0].ShareOnly, m.Faults[0].Drills = true, []string{"d"}
	m.Laboratory = 1
	if unknown := m.Measure([]Recording{
		{"d", []Event{{Minutes: 1, Share: 0.01}}},
		{"d", []Event{{Minutes: 9, Share: 0.1}, {Minutes: 9, Share: 0.1}}},
		{"other", []Event{{}}},
	}); len(unknown) != 1 || unknown[0] != "other" {
		t.Errorf("unknown drills: %v", unknown)
	}
	e, err = Run(t.Context(), m, Options{Worlds: 400, Played: -1, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "with a measured share", e.Faults[0].Minutes.Mean, 3*30*0.1, 0.01)
	if e.Faults[0].Known != ShareKnown || e.Faults[0].Repetitions != 2 {
		t.Errorf("%+v", e.Faults[0])
	}

	// And one that says how long: share and minutes are.
	m.Faults[0].ShareOnly = false
	e, err = Run(t.Context(), m, Options{Worlds: 400, Played: 400, Years: 5, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "with measured minutes", e.Faults[0].Minutes.Mean, 3*9, 0.01)
	near(t, "played with measured minutes", e.Year.Mean, 27, 2)
}

// TestPlayedIsCalculated: the two ways to the mean year agree on the whole model,
// also when parts are rescheduled and hosts are several.
func TestPlayedIsCalculated(t *testing.T) {
	for name, edit := range map[string]func(*Layout){
		"as is":       func(*Layout) {},
		"rescheduled": func(l *Layout) { l.Reschedule, l.HostsPerZone = true, 2 },
		"idle worker": func(l *Layout) { l.WorkerShare = 0 },
		"one zone":    func(l *Layout) { l.Zones, l.FullZones = 1, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			m := Default()
			edit(&m.Layout)
			// Without uncertainty the played years are all of the mean world.
			for key, a := range m.Assumptions {
				a.Factor = 1
				m.Assumptions[key] = a
			}
			e, err := Run(t.Context(), m, Options{Worlds: 100, Played: 100, Years: 4, Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			near(t, "played", e.Year.Mean, e.Minutes.Mean, e.Minutes.Mean*0.1)
			near(t, "nothing is unknown", e.Year.FromIgnorance, 0, 0.1)
			if e.Minutes.High-e.Minutes.Low > 1e-9 {
				t.Errorf("the interval %+v has a width", e.Minutes)
			}
			sum := 0.0
			for _, c := range e.Faults {
				if !c.Outside {
					sum += c.Minutes.Mean
				}
			}
			near(t, "sum of the faults", sum, e.Minutes.Mean, 1e-6)
		})
	}
}

// TestIgnoranceIsNotLuck: when many events happen at a rate that is hardly known,
// years differ because of the rate.
func TestIgnoranceIsNotLuck(t *testing.T) {
	m := Default()
	m.Assumptions["crash"] = Assumption{Name: "crash", Value: 400, Unit: PerYear, Factor: 5}
	m.Assumptions["cut"] = Assumption{Name: "cut", Value: 1, Unit: Minutes, Factor: 1, Spread: 1}
	m.Faults = []Fault{{Name: "x", Kind: Software, Scope: ScopeService, Rate: "crash", Part: 1, Outage: "cut", Share: 0.1}}
	e, err := Run(t.Context(), m, Options{Worlds: 300, Played: 300, Years: 4, Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	if e.Year.FromIgnorance < 0.9 {
		t.Errorf("only %v of the variance is ignorance", e.Year.FromIgnorance)
	}
}

// TestSameSeedSameResult whatever the number of workers.
func TestSameSeedSameResult(t *testing.T) {
	var want string
	for _, workers := range []int{1, 2, 7} {
		e, err := Run(t.Context(), Default(), Options{Worlds: 150, Played: 60, Years: 2, Seed: 42, Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("%+v", e)
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("%d workers give another result", workers)
		}
	}
	e, err := Run(t.Context(), Default(), Options{Worlds: 150, Played: 60, Years: 2, Seed: 43})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", e) == want {
		t.Error("another seed gives the same result")
	}
}

// TestRankingIsStable over seeds: which faults and which inputs matter is no
// matter of luck.
func TestRankingIsStable(t *testing.T) {
	var want string
	for seed := range uint64(5) {
		e, err := Run(t.Context(), Default(), Options{Worlds: 100, Played: -1, Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range e.Faults {
			got = append(got, c.Fault)
		}
		for _, s := range e.Sensitivity {
			got = append(got, s.Input)
		}
		if len(got) < 40 {
			t.Fatalf("only %v are ranked", got)
		}
		if seed == 0 {
			want = fmt.Sprint(got)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("seed %d ranks %v, seed 0 %v", seed, got, want)
		}
	}
}

// TestIntervalCoversTheTruth plays histories whose truth is known: years of
// operation with counted events, and drills that measured how long they take.
// The 95% interval that follows has to hold the true mean year in most of them.
func TestIntervalCoversTheTruth(t *testing.T) {
	type truth struct{ rate, minutes, spread float64 }
	truths := []truth{{6, 4, 2}, {1, 30, 3}, {0.4, 60, 2}}
	const histories, years, drills = 200, 5, 12
	want := 0.0
	for _, x := range truths {
		want += x.rate * x.minutes
	}
	covered := 0
	r := rand.New(rand.NewPCG(11, 13))
	for range histories {
		m := Default()
		m.Laboratory = 1
		m.Faults = nil
		for i, x := range truths {
			events := 0.0
			for at := r.ExpFloat64() / x.rate; at < years; at += r.ExpFloat64() / x.rate {
				events++
			}
			name := fmt.Sprint("rate", i)
			m.Assumptions[name] = Assumption{Name: name, Value: 1, Unit: PerYear, Factor: 1, Observed: &Observed{Events: events, Years: years}}
			f := Fault{Name: fmt.Sprint("fault", i), Kind: Software, Scope: ScopeService, Rate: name, Part: 1, Outage: "person", Share: 1, Drills: []string{"d"}}
			for range drills {
				f.Measured = append(f.Measured, Event{Minutes: minutesOf(r, x.minutes, Assumption{Spread: x.spread})})
			}
			m.Faults = append(m.Faults, f)
		}
		e, err := Run(t.Context(), m, Options{Worlds: 400, Played: -1, Seed: r.Uint64(), Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		if e.Minutes.Low <= want && want <= e.Minutes.High {
			covered++
		}
	}
	share := float64(covered) / histories
	t.Logf("the interval holds the truth in %.1f%% of the histories", share*100)
	if share < 0.91 || share > 0.99 {
		t.Errorf("the 95%% interval holds the truth in %.1f%% of %d histories", share*100, histories)
	}
}
