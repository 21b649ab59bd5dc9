package availability

import (
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTableIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range Assumptions() {
		switch {
		case seen[a.Name]:
			t.Errorf("%s is there twice", a.Name)
		case a.Value <= 0 || a.Factor < 1 || a.Source == "" || a.Unit != PerYear && a.Unit != Minutes:
			t.Errorf("%+v is not whole", a)
		case (a.Unit == Minutes) != (a.Spread > 1):
			t.Errorf("%s: spread %g", a.Name, a.Spread)
		}
		seen[a.Name] = true
	}
	names, drills := map[string]bool{}, map[string]string{}
	for _, f := range Catalogue() {
		if names[f.Name] || f.About == "" || f.Part <= 0 || Assume(f.Rate).Unit != PerYear || Assume(f.Outage).Unit != Minutes {
			t.Errorf("%+v is not whole", f)
		}
		names[f.Name] = true
		if (f.Scope == ScopeUnit || f.Scope == ScopeGroup) != (f.Group != "") || (f.Away != "") != (f.Scope != ScopeService) {
			t.Errorf("%s: group %q, away %q, scope %s", f.Name, f.Group, f.Away, f.Scope)
		}
		if f.Share != 0 && f.ShareSource == "" {
			t.Errorf("%s: the share has no source", f.Name)
		}
		for _, d := range f.Drills {
			if drills[d] != "" {
				t.Errorf("drill %s measures %s and %s", d, drills[d], f.Name)
			}
			drills[d] = f.Name
		}
	}
	if _, err := compile(Default()); err != nil {
		t.Error(err)
	}
}

func TestEdit(t *testing.T) {
	m := Default()
	err := m.Edit("own.yaml", []byte(`
target: 0.999
layout: {workers: 2, reschedule: true}
assumptions:
  zone: {value: 0.1, factor: 2}
  crash: {observed: {events: 7, years: 2}}
faults:
  region-loss: {enabled: false}
  bad-release: {part: 0.5, share: 0.1}
prices: {cpuMonth: 20, cpus: {etcd: 1}}
`))
	if err != nil {
		t.Fatal(err)
	}
	near(t, "target", m.Target, 0.999, 0)
	near(t, "zone", m.Assumptions["zone"].Value, 0.1, 0)
	near(t, "crash", m.Assumptions["crash"].Mean(), 3.75, 0)
	if m.Assumptions["zone"].Source != "own.yaml" || m.Assumptions["crash"].Source != "own.yaml: 7 in 2 years" || m.Assumptions["host"].Source != Assume("host").Source {
		t.Errorf("sources: %+v", m.Assumptions)
	}
	if m.Layout.Workers != 2 || !m.Layout.Reschedule || m.Layout.APIPerZone != 2 {
		t.Errorf("%+v", m.Layout)
	}
	if m.Prices.CPUMonth != 20 || m.Prices.CPUs["etcd"] != 1 || m.Prices.CPUs["postgres"] != 4 {
		t.Errorf("%+v", m.Prices)
	}
	if Default().Prices.CPUs["etcd"] == 1 || Default().Assumptions["zone"].Value == 0.1 {
		t.Error("an edit changes the defaults")
	}
	for _, f := range m.Faults {
		switch f.Name {
		case "region-loss":
			t.Error("region-loss is still there")
		case "bad-release":
			if f.Part != 0.5 || f.Share != 0.1 || f.ShareSource != "own.yaml" {
				t.Errorf("%+v", f)
			}
		}
	}
}

func TestEditRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"target: 1.5":                                           `f:1:9: target: 1.5 is not between 0.5 and 0.9999999`,
		"laboratory: 0":                                         "laboratory: 0 is not between 1 and 100",
		"layout: {zones: 0}":                                    "layout.zones: 0 is not between 1 and 9",
		"layout: {zones: 2, fullZones: 3}":                      "layout.fullZones: 3 is not between 1 and 2",
		"layout: {apiNeeded: 99}":                               "layout.apiNeeded",
		"layout: {workerShare: 2}":                              "layout.workerShare",
		"assumptions: {zoone: {value: 1}}":                      `did you mean "zone"?`,
		"assumptions: {zone: {value: -1}}":                      "assumptions.zone.value",
		"assumptions: {zone: {value: .nan}}":                    "assumptions.zone.value",
		"assumptions: {zone: {factor: 0.5}}":                    "assumptions.zone.factor",
		"assumptions: {zone: {spread: 2}}":                      "have no spread",
		"assumptions: {cut: {observed: {events: 1, years: 1}}}": "only events can be counted",
		"assumptions: {zone: {observed: {events: 1}}}":          "assumptions.zone.observed.years",
		"faults: {zone-los: {}}":                                `did you mean "zone-loss"?`,
		"faults: {zone-loss: {share: 2}}":                       "faults.zone-loss.share",
		"faults: {zone-loss: {rate: cut}}":                      "cut counts minutes, want a year",
		"faults: {zone-loss: {outage: nothing}}":                `there is no assumption "nothing"`,
		"faults: {bad-release: {away: cut}}":                    "nothing can be away",
		"prices: {cpuMonth: -1}":                                "prices.cpuMonth",
		"prices: {cpus: {etdc: 1}}":                             `did you mean "etcd"?`,
		"unknown: 1":                                            `unknown field "unknown"`,
	} {
		m := Default()
		if err := m.Edit("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if diff := cmp.Diff(Default(), m); diff != "" {
			t.Errorf("%s: the model is changed all the same:\n%s", text, diff)
		}
	}
}

// TestTemplate: a template changes nothing, as it is and with every number in
// effect.
func TestTemplate(t *testing.T) {
	text := string(Default().Template())
	m := Default()
	if err := m.Edit("t", []byte(text)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), m); diff != "" {
		t.Errorf("the template changes the model:\n%s", diff)
	}
	on := regexp.MustCompile(`(?m)^# ( *[A-Za-z-]+:)`).ReplaceAllString(text, "$1")
	if err := m.Edit("t", []byte(on)); err != nil {
		t.Fatalf("%v\n%s", err, on)
	}
	for name, a := range m.Assumptions {
		a.Source = Assume(name).Source
		m.Assumptions[name] = a
	}
	for i := range m.Faults {
		m.Faults[i].ShareSource = Catalogue()[i].ShareSource
	}
	if diff := cmp.Diff(Default(), m); diff != "" {
		t.Errorf("the numbers of the template are not the defaults:\n%s", diff)
	}
	for _, a := range Assumptions() {
		if !strings.Contains(on, "\n  "+a.Name+": ") {
			t.Errorf("%s is not in the template", a.Name)
		}
	}
}

func TestBeliefs(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const n = 20000
	stats := func(draw func() float64) (m, inside float64, all []float64) {
		for range n {
			all = append(all, draw())
		}
		return mean(all), 0, all
	}
	a := Assumption{Value: 5, Factor: 3}
	m, _, all := stats(func() float64 { return a.belief(r) })
	near(t, "mean of a belief", m, 1, 0.02)
	low, high := a.quantiles()
	below, above := 0.0, 0.0
	for _, x := range all {
		if x < low {
			below += 1.0 / n
		}
		if x > high {
			above += 1.0 / n
		}
	}
	near(t, "below the 5% point", below, 0.05, 0.006)
	near(t, "above the 95% point", above, 0.05, 0.006)
	near(t, "their ratio is the factor squared", high/low, 9, 1e-9)

	counted := Assumption{Observed: &Observed{Events: 8, Years: 4}}
	near(t, "mean of a count", counted.Mean(), 8.5/4, 0)
	m, _, all = stats(func() float64 { return counted.belief(r) })
	near(t, "mean of a counted belief", m, 1, 0.02)
	ss := 0.0
	for _, x := range all {
		ss += (x - m) * (x - m) / n
	}
	near(t, "its variance", ss, 1/8.5, 0.01)
	none := Assumption{Observed: &Observed{Years: 10}}
	m, _, _ = stats(func() float64 { return none.belief(r) })
	near(t, "mean after no event", m, 1, 0.05)

	// The doubt about a mean falls with the number of samples and never to 0.
	last := math.Inf(1)
	for _, n := range []int{1, 2, 5, 20, 100} {
		s := make([]float64, n)
		for i := range s {
			s[i] = 3
		}
		d := doubt(s)
		if d <= 0 || d >= last {
			t.Errorf("%d samples: doubt %v after %v", n, d, last)
		}
		last = d
	}
}

// TestVerdicts holds the stated rule.
func TestVerdicts(t *testing.T) {
	one := func(share, factor float64, drills []string, measured ...Event) Model {
		m := Default()
		m.Laboratory = 1
		m.Assumptions["commonBug"] = Assumption{Name: "commonBug", Value: 1, Unit: PerYear, Factor: factor}
		m.Assumptions["person"] = Assumption{Name: "person", Value: 100, Unit: Minutes, Factor: factor, Spread: 2}
		m.Faults = []Fault{{Name: "x", Kind: Software, Scope: ScopeService, Rate: "commonBug", Part: 1, Outage: "person", Share: share, Drills: drills, Measured: measured}}
		return m
	}
	// Ten classes of 3.6 minutes each, whose errors are independent.
	many := func(drills []string) Model {
		m := one(1, 1, nil)
		m.Faults = nil
		for i := range 10 {
			name := fmt.Sprint("x", i)
			m.Assumptions[name] = Assumption{Name: name, Value: 3.6, Unit: Minutes, Factor: 2, Spread: 2}
			m.Faults = append(m.Faults, Fault{Name: name, Kind: Software, Scope: ScopeService, Rate: "commonBug", Part: 1, Outage: name, Share: 1, Drills: drills})
		}
		return m
	}
	drill := []string{"d"}
	for _, c := range []struct {
		name  string
		model Model
		want  Verdict
		why   string
	}{
		{"far below the budget", one(0.1, 1.2, nil), Pass, "lower end"},
		{"far above it", one(1, 1.2, nil), Fail, "upper end"},
		{"an interval around it", one(0.5, 3, nil), Unknown, "target is inside"},
		{"drills are missing that could measure too much", many(drill), Unknown, "no drill measured x0, x1"},
		{"no drill could", many(nil), Pass, "lower end"},
		{"a drill is missing that could measure little", one(1, 1.1, drill), Unknown, "no drill measured x"},
		{"the drill is there", one(1, 1.1, drill, Event{Minutes: 1}, Event{Minutes: 1.1}, Event{Minutes: 0.9}, Event{Minutes: 1}), Pass, "lower end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Run(t.Context(), c.model, Options{Worlds: 500, Played: -1})
			if err != nil {
				t.Fatal(err)
			}
			if e.Verdict != c.want || !strings.Contains(strings.Join(e.Why, "; "), c.why) {
				t.Errorf("%s (%v), want %s with %q; %+v", e.Verdict, e.Why, c.want, c.why, e.Availability)
			}
		})
	}
}

func TestLayouts(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Layout)
		want string
	}{
		{"default", func(*Layout) {}, "map[api:4 etcd:3 gateway:2 pgproxy:2 postgres:3 redis:6 redisproxy:2 vectors:1 worker:1]"},
		{"plugins", func(l *Layout) { l.PluginDaemons, l.Vectors, l.Workers = 1, 0, 0 }, "map[api:4 etcd:3 gateway:2 pgproxy:2 plugin-daemon:1 postgres:3 redis:6 redisproxy:2]"},
		{"one zone", func(l *Layout) { l.Zones, l.FullZones, l.RedisReplicas = 1, 1, 0 }, "map[api:2 etcd:3 gateway:1 pgproxy:1 postgres:3 redis:3 redisproxy:1 vectors:1 worker:1]"},
	} {
		l := DefaultLayout()
		c.edit(&l)
		if got := fmt.Sprint(l.Counts()); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestMoreIsBetter: what is added to an installation does not make it worse, and
// a zone fewer does.
func TestMoreIsBetter(t *testing.T) {
	minutes := func(edit func(*Layout)) float64 {
		m := Default()
		edit(&m.Layout)
		s, err := compile(m)
		if err != nil {
			t.Fatal(err)
		}
		return s.expect(s.mean()).total()
	}
	base := minutes(func(*Layout) {})
	for name, edit := range map[string]func(*Layout){
		"second worker":       func(l *Layout) { l.Workers = 2 },
		"second vector store": func(l *Layout) { l.Vectors = 2 },
		"rescheduling":        func(l *Layout) { l.Reschedule = true },
	} {
		if m := minutes(edit); m >= base {
			t.Errorf("%s: %v minutes after %v", name, m, base)
		}
	}
	for name, edit := range map[string]func(*Layout){
		"two zones":        func(l *Layout) { l.Zones = 2 },
		"one zone":         func(l *Layout) { l.Zones, l.FullZones = 1, 1 },
		"a plugin daemon":  func(l *Layout) { l.PluginDaemons = 1 },
		"no spare API":     func(l *Layout) { l.APINeeded = 4 },
		"no Redis replica": func(l *Layout) { l.RedisReplicas = 0 },
	} {
		if m := minutes(edit); m <= base {
			t.Errorf("%s: %v minutes after %v", name, m, base)
		}
	}
	if p := DefaultPrices(); p.Month(Layout{Zones: 1, FullZones: 1, HostsPerZone: 1, APIPerZone: 1, Postgres: 1}) <= 0 {
		t.Error("a small layout costs nothing")
	}
}

func TestOptionsRefuse(t *testing.T) {
	for _, o := range []Options{{Worlds: 3}, {Worlds: 200, Played: 300}, {Years: 1}, {Workers: -1}} {
		if _, err := Run(t.Context(), Default(), o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
