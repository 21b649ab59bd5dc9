package availability

import (
	"math"
	"math/rand/v2"
	"slices"
)

// warm is how long before the year a simulation starts, in minutes, so that the
// year begins with what is away on an ordinary day.
const warm = 30 * 24 * 60

// simulator plays years of a system. It is for one goroutine.
type simulator struct {
	*system
	// groupsOf lists the groups of a unit.
	groupsOf [][]int

	edges []edge
	aways [][]int   // units that are away together
	cuts  []float64 // shares
	gone  []int     // per unit: how many absences hold it
	up    []int     // per group
	// onCuts lists the outages that last at a moment, absent counts the absences.
	onCuts []int
	absent int
}

// edge is a moment at which an outage or an absence begins or ends.
type edge struct {
	at    float64
	begin bool
	// index of a cut, or of an absence when away is set.
	index int
	away  bool
}

func newSimulator(s *system) *simulator {
	sim := &simulator{system: s, groupsOf: make([][]int, len(s.units)), gone: make([]int, len(s.units)), up: make([]int, len(s.groups))}
	for g, group := range s.groups {
		for _, u := range group.units {
			sim.groupsOf[u] = append(sim.groupsOf[u], g)
		}
	}
	return sim
}

// year plays one year in a world and returns the minutes lost, as if all
// requests had failed in them.
func (s *simulator) year(r *rand.Rand, w world) float64 {
	s.edges, s.aways, s.cuts = s.edges[:0], s.aways[:0], s.cuts[:0]
	for _, e := range s.entities {
		total := 0.0
		for _, p := range e.procs {
			if f := s.faults[p.fault]; f.Kind != Planned && !f.Outside {
				total += s.rate(w, p.fault)
			}
		}
		for t := -float64(warm); total > 0; {
			if t += r.ExpFloat64() / total * MinutesPerYear; t >= MinutesPerYear {
				break
			}
			at := r.Float64() * total
			for _, p := range e.procs {
				f := s.faults[p.fault]
				if f.Kind == Planned || f.Outside {
					continue
				}
				if at -= s.rate(w, p.fault); at < 0 {
					t += s.strike(r, w, e, p, t)
					break
				}
			}
		}
		// Planned work is done as often as planned, at any time of the year.
		for _, p := range e.procs {
			if f := s.faults[p.fault]; f.Kind == Planned && !f.Outside {
				whole, rest := math.Modf(s.rate(w, p.fault))
				n := int(whole)
				if r.Float64() < rest {
					n++
				}
				for range n {
					s.strike(r, w, e, p, r.Float64()*MinutesPerYear)
				}
			}
		}
	}
	return s.sweep()
}

// strike lets a fault happen at a moment and returns how long its entity stays
// away.
func (s *simulator) strike(r *rand.Rand, w world, e entity, p process, t float64) float64 {
	f := &s.faults[p.fault]
	switch n := len(f.samples); {
	case p.silent:
	case n > 0 && f.ShareOnly:
		share := f.samples[r.IntN(n)] * w.faults[p.fault]
		s.cut(t, minutesOf(r, s.value(w, f.outage), s.inputs[f.outage]), min(1, share))
	case n > 0:
		s.cut(t, f.samples[r.IntN(n)]*w.faults[p.fault], 1)
	case !p.alone:
		s.cut(t, minutesOf(r, s.value(w, f.outage), s.inputs[f.outage]), f.share)
	}
	mean := s.away(w, p)
	if mean == 0 {
		return 0
	}
	away := minutesOf(r, mean, s.inputs[p.away])
	units := e.units
	if p.picks {
		i := r.IntN(len(units))
		units = units[i : i+1]
	}
	if s.span(t, t+away, len(s.aways), true) {
		s.aways = append(s.aways, units)
	}
	return away
}

// cut notes that a share of the requests fails for some minutes.
func (s *simulator) cut(t, minutes, share float64) {
	if share > 0 && s.span(t, t+minutes, len(s.cuts), false) {
		s.cuts = append(s.cuts, share)
	}
}

// span adds the edges of what lasts from one moment to another, and tells
// whether any of it is in the year.
func (s *simulator) span(from, to float64, index int, away bool) bool {
	from, to = max(from, 0), min(to, MinutesPerYear)
	if to <= from {
		return false
	}
	s.edges = append(s.edges, edge{from, true, index, away}, edge{to, false, index, away})
	return true
}

// sweep goes through the year's edges and adds up what is lost between them.
func (s *simulator) sweep() float64 {
	slices.SortFunc(s.edges, func(a, b edge) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	})
	for g := range s.groups {
		s.up[g] = len(s.groups[g].units)
	}
	clear(s.gone)
	s.onCuts, s.absent = s.onCuts[:0], 0
	lost, last := 0.0, 0.0
	for _, e := range s.edges {
		if e.at > last {
			lost += s.between(e.at - last)
			last = e.at
		}
		switch {
		case !e.away && e.begin:
			s.onCuts = append(s.onCuts, e.index)
		case !e.away:
			s.onCuts = without(s.onCuts, e.index)
		case e.begin:
			s.absent++
			for _, u := range s.aways[e.index] {
				if s.gone[u]++; s.gone[u] == 1 {
					for _, g := range s.groupsOf[u] {
						s.up[g]--
					}
				}
			}
		default:
			s.absent--
			for _, u := range s.aways[e.index] {
				if s.gone[u]--; s.gone[u] == 0 {
					for _, g := range s.groupsOf[u] {
						s.up[g]++
					}
				}
			}
		}
	}
	return lost
}

func without(list []int, v int) []int {
	i := slices.Index(list, v)
	list[i] = list[len(list)-1]
	return list[:len(list)-1]
}

// between is what is lost in minutes in which nothing begins or ends. The shares
// of what fails at once are taken as independent of each other.
func (s *simulator) between(minutes float64) float64 {
	ok := 1.0
	for _, c := range s.onCuts {
		ok *= 1 - s.cuts[c]
	}
	if s.absent > 0 {
		for g := range s.groups {
			if s.up[g] < s.groups[g].need {
				ok *= 1 - s.groups[g].share
			}
		}
	}
	return (1 - ok) * minutes
}
