package availability

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// Options say how much to calculate. The zero value takes the defaults.
type Options struct {
	// Worlds is how many possible truths are drawn; 4000 by default, 100 to 1e6.
	Worlds int
	// Played is in how many of them years are played, 1000 by default and at
	// most Worlds; negative plays none.
	Played int
	// Years are played in each; 10 by default, 2 to 1000.
	Years int
	// Seed of the random numbers. The same seed gives the same result, whatever
	// Workers is.
	Seed uint64
	// Workers calculate at once; one per processor by default.
	Workers int
}

func (o Options) withDefaults() (Options, error) {
	if o.Worlds == 0 {
		o.Worlds = 4000
	}
	if o.Played == 0 {
		o.Played = min(1000, o.Worlds)
	}
	o.Played = max(o.Played, 0)
	if o.Years == 0 {
		o.Years = 10
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	switch {
	case o.Worlds < 100 || o.Worlds > 1_000_000:
		return o, fmt.Errorf("worlds %d: want 100 to 1000000", o.Worlds)
	case o.Played > o.Worlds:
		return o, fmt.Errorf("played worlds %d: want at most the %d that are drawn", o.Played, o.Worlds)
	case o.Years < 2 || o.Years > 1000:
		return o, fmt.Errorf("years %d: want 2 to 1000", o.Years)
	case o.Workers < 1:
		return o, fmt.Errorf("workers %d: want at least 1", o.Workers)
	}
	return o, nil
}

// Estimate is what a model says about an installation.
type Estimate struct {
	Target        float64 `json:"target"`
	BudgetMinutes float64 `json:"budgetMinutes"`
	Verdict       Verdict `json:"verdict"`
	// Why explains the verdict, a sentence each.
	Why []string `json:"why"`

	// Availability over many years, and the minutes lost in a mean year: the
	// interval is what is not known about rates and times.
	Availability Interval `json:"availability"`
	Minutes      Interval `json:"minutes"`
	// Belief is how much of what is believed meets the target, 0 to 1.
	Belief float64 `json:"belief"`
	// Year is what single years may bring; its Worst is 0 when none was played.
	Year Year `json:"year"`
	// Optimistic is the interval's end when what a drill could measure and none
	// did costs nothing, Pessimistic when it costs the upper end of what is
	// assumed.
	Optimistic  Interval `json:"optimistic"`
	Pessimistic Interval `json:"pessimistic"`

	// Faults by what they cost, the most expensive first.
	Faults []Contribution `json:"faults"`
	// Kinds sums Faults up by kind, Evidence by how the number is known.
	Kinds    []Sum `json:"kinds"`
	Evidence []Sum `json:"evidence"`
	// Sensitivity ranks the inputs by how far the estimate moves over 90% of
	// what is believed of each.
	Sensitivity []Swing `json:"sensitivity"`
	// OutsideMinutes is what lies outside the installation and comes on top.
	OutsideMinutes float64 `json:"outsideMinutes"`

	Worlds int    `json:"worlds"`
	Years  int    `json:"years"`
	Seed   uint64 `json:"seed"`
}

// Year is the distribution of what a single year loses, in minutes.
type Year struct {
	Mean float64 `json:"mean"`
	P5   float64 `json:"p5"`
	P25  float64 `json:"p25"`
	P50  float64 `json:"p50"`
	P75  float64 `json:"p75"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	// Worst is the worst of all years that were played.
	Worst float64 `json:"worst"`
	// WithinBudget is the share of years that keep the budget.
	WithinBudget float64 `json:"withinBudget"`
	// FromIgnorance is which part of the variance comes from not knowing rates
	// and times; the rest is good and bad luck.
	FromIgnorance float64 `json:"fromIgnorance"`
	// Histogram counts years by minutes.
	Histogram []Bin `json:"histogram"`
}

// Bin counts the years that lost at least From and less than To minutes.
type Bin struct {
	From  float64 `json:"from"`
	To    float64 `json:"to"` // 0: no end
	Years int     `json:"years"`
}

// Contribution is what a class of faults costs.
type Contribution struct {
	Fault string `json:"fault"`
	About string `json:"about"`
	Kind  Kind   `json:"kind"`
	// Known says where the cost of an event comes from.
	Known Known `json:"known"`
	// Repetitions of drills behind it.
	Repetitions int `json:"repetitions"`
	// EventsPerYear on the whole installation.
	EventsPerYear float64 `json:"eventsPerYear"`
	// SecondsPerEvent that users lose, as if all requests failed, when
	// redundancy holds.
	SecondsPerEvent float64 `json:"secondsPerEvent"`
	// Minutes a year.
	Minutes Interval `json:"minutes"`
	// Exhausted is how many of the mean minutes are lost because too few parts
	// of a layer were left; the rest is what the events cost by themselves.
	Exhausted float64 `json:"exhausted"`
	// Share of all the minutes.
	Share   float64 `json:"share"`
	Outside bool    `json:"outside,omitempty"`
}

// Known is how the cost of an event is known.
type Known string

// The kinds of knowledge.
const (
	Measured   Known = "measured"
	ShareKnown Known = "share measured"
	Unmeasured Known = "not measured"
	Assumed    Known = "assumed"
)

// known says how the cost of a fault's events is known: measured, or that it is
// not although a drill could, or that no drill can.
func (f Fault) known() Known {
	switch {
	case len(f.Measured) > 0 && f.ShareOnly:
		return ShareKnown
	case len(f.Measured) > 0:
		return Measured
	case len(f.Drills) > 0:
		return Unmeasured
	}
	return Assumed
}

// Sum is the part of a group of faults.
type Sum struct {
	Name    string  `json:"name"`
	Minutes float64 `json:"minutes"`
	Share   float64 `json:"share"`
}

// Swing is how far the mean year moves when an input goes through 90% of what is
// believed of it and the rest stays at its mean.
type Swing struct {
	Input string  `json:"input"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// drillInput is the name of what production may differ from the drills by.
const drillInput = "drills stand for production"

// outcome is what one world gave.
type outcome struct {
	expected
	optimistic, pessimistic float64
	years                   []float64
}

// Run estimates what a model's installation loses in a year.
func Run(ctx context.Context, m Model, o Options) (*Estimate, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := compile(m)
	if err != nil {
		return nil, err
	}
	results := make([]outcome, o.Worlds)
	var (
		next    atomic.Int64
		running sync.WaitGroup
	)
	for range min(o.Workers, o.Worlds) {
		running.Go(func() {
			sim := newSimulator(s)
			for {
				i := int(next.Add(1)) - 1
				if i >= o.Worlds || ctx.Err() != nil {
					return
				}
				years := 0
				if i < o.Played {
					years = o.Years
				}
				results[i] = sim.world(o.Seed, uint64(i), years)
			}
		})
	}
	running.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s.summarise(results, o), nil
}

// world draws a world, calculates its mean year and plays single ones. It has
// its own random numbers, so that it does not matter who plays it.
func (s *simulator) world(seed, number uint64, years int) outcome {
	w := s.draw(seed, number)
	out := outcome{expected: s.expect(w)}
	total := out.total()
	out.optimistic, out.pessimistic = total, total
	for i, f := range s.faults {
		if f.Outside || f.known() != Unmeasured {
			continue
		}
		out.optimistic -= out.events[i]
		out.pessimistic += out.events[i] * (upper(sigma(s.inputs[f.outage].Factor))/w.inputs[f.outage] - 1)
	}
	if years > 0 {
		r := rand.New(rand.NewPCG(seed, number))
		for range years {
			out.years = append(out.years, s.year(r, w))
		}
	}
	return out
}

func (s *system) summarise(results []outcome, o Options) *Estimate {
	pick := func(of func(outcome) float64) []float64 {
		out := make([]float64, len(results))
		for i, r := range results {
			out[i] = of(r)
		}
		return out
	}
	e := &Estimate{
		Target: s.model.Target, BudgetMinutes: BudgetMinutes(s.model.Target),
		Worlds: o.Worlds, Years: o.Played * o.Years, Seed: o.Seed,
	}
	totals := pick(func(r outcome) float64 { return r.total() })
	e.Minutes = interval(totals)
	e.Availability = availabilityOf(e.Minutes)
	e.Optimistic = availabilityOf(interval(pick(func(r outcome) float64 { return r.optimistic })))
	e.Pessimistic = availabilityOf(interval(pick(func(r outcome) float64 { return r.pessimistic })))
	for _, m := range totals {
		if m <= e.BudgetMinutes {
			e.Belief += 1 / float64(len(totals))
		}
	}
	e.Year = years(results[:o.Played], e.BudgetMinutes)
	s.contributions(e, results)
	e.Sensitivity = s.sensitivity()
	e.OutsideMinutes = mean(pick(func(r outcome) float64 { return r.outside }))
	e.judge()
	return e
}

func availabilityOf(m Interval) Interval {
	return Interval{Mean: FromMinutes(m.Mean), Median: FromMinutes(m.Median), Low: FromMinutes(m.High), High: FromMinutes(m.Low)}
}

// years sums up what was played.
func years(results []outcome, budget float64) Year {
	var all []float64
	within := 0.0
	for _, r := range results {
		all = append(all, r.years...)
		m, ss := mean(r.years), 0.0
		for _, y := range r.years {
			ss += (y - m) * (y - m)
		}
		within += ss / float64(len(r.years)-1) / float64(len(results))
	}
	if len(all) == 0 {
		return Year{Histogram: []Bin{}}
	}
	m, ss := mean(all), 0.0
	for _, y := range all {
		ss += (y - m) * (y - m)
	}
	slices.Sort(all)
	y := Year{
		Mean: m, P5: quantile(all, 0.05), P25: quantile(all, 0.25), P50: quantile(all, 0.5), P75: quantile(all, 0.75),
		P95: quantile(all, 0.95), P99: quantile(all, 0.99), Worst: all[len(all)-1],
	}
	if ss > 0 {
		y.FromIgnorance = max(0, 1-within/(ss/float64(len(all)-1)))
	}
	kept, _ := slices.BinarySearch(all, math.Nextafter(budget, math.Inf(1)))
	y.WithinBudget = float64(kept) / float64(len(all))
	edges := []float64{0, budget / 8, budget / 4, budget / 2, budget, 2 * budget, 4 * budget, 8 * budget, 16 * budget}
	for i, from := range edges {
		b := Bin{From: from}
		first, _ := slices.BinarySearch(all, from)
		last := len(all)
		if i+1 < len(edges) {
			b.To = edges[i+1]
			last, _ = slices.BinarySearch(all, b.To)
		}
		b.Years = last - first
		y.Histogram = append(y.Histogram, b)
	}
	return y
}

// contributions fills in what each class of faults costs.
func (s *system) contributions(e *Estimate, results []outcome) {
	w := s.mean()
	central := s.expect(w)
	total := 0.0
	for i, f := range s.faults {
		events, lost := 0.0, 0.0
		for _, entity := range s.entities {
			for _, p := range entity.procs {
				if p.fault == i && !p.silent {
					events += s.rate(w, i)
					lost += s.rate(w, i) * s.outage(w, p)
				}
			}
		}
		c := Contribution{
			Fault: f.Name, About: f.About, Kind: f.Kind, Known: f.known(), Repetitions: len(f.Measured),
			EventsPerYear: events, Outside: f.Outside,
		}
		if events > 0 {
			c.SecondsPerEvent = lost / events * 60
		}
		if f.Outside {
			c.Minutes = Interval{Mean: lost, Median: lost, Low: lost, High: lost}
			e.Faults = append(e.Faults, c)
			continue
		}
		minutes := make([]float64, len(results))
		for n, r := range results {
			minutes[n] = r.events[i] + r.exhausted[i]
		}
		// The mean needs no chance: it is that of the mean world.
		c.Minutes = interval(minutes)
		c.Exhausted = central.exhausted[i]
		c.Minutes.Mean = central.events[i] + c.Exhausted
		total += c.Minutes.Mean
		e.Faults = append(e.Faults, c)
	}
	slices.SortStableFunc(e.Faults, func(a, b Contribution) int {
		return cmp.Or(boolCompare(a.Outside, b.Outside), cmp.Compare(b.Minutes.Mean, a.Minutes.Mean), cmp.Compare(a.Fault, b.Fault))
	})
	kinds, known := map[string]float64{}, map[string]float64{}
	for i := range e.Faults {
		c := &e.Faults[i]
		if c.Outside {
			continue
		}
		if total > 0 {
			c.Share = c.Minutes.Mean / total
		}
		kinds[string(c.Kind)] += c.Minutes.Mean
		known[string(c.Known)] += c.Minutes.Mean
	}
	e.Kinds, e.Evidence = sums(kinds, total), sums(known, total)
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func sums(by map[string]float64, total float64) []Sum {
	out := []Sum{}
	for name, m := range by {
		s := Sum{Name: name, Minutes: m}
		if total > 0 {
			s.Share = m / total
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Sum) int {
		return cmp.Or(cmp.Compare(b.Minutes, a.Minutes), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// sensitivity moves one input at a time.
func (s *system) sensitivity() []Swing {
	out := []Swing{}
	add := func(name string, low, high world) {
		swing := Swing{Input: name, Low: s.expect(low).total(), High: s.expect(high).total()}
		if swing.High-swing.Low > 1e-9 {
			out = append(out, swing)
		}
	}
	for i, a := range s.inputs {
		low, high := s.mean(), s.mean()
		low.inputs[i], high.inputs[i] = a.quantiles()
		add(a.Name, low, high)
	}
	low, high := s.mean(), s.mean()
	lab := sigma(s.model.Laboratory)
	for i, f := range s.faults {
		if len(f.samples) > 0 && !f.ShareOnly {
			low.faults[i], high.faults[i] = math.Exp(-lab*z95-lab*lab/2), upper(lab)
		}
	}
	add(drillInput, low, high)
	slices.SortStableFunc(out, func(a, b Swing) int {
		return cmp.Or(cmp.Compare(b.High-b.Low, a.High-a.Low), cmp.Compare(a.Input, b.Input))
	})
	return out
}
