package availability

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
)

// system is a model made ready to calculate with: names are indices.
type system struct {
	model  Model
	groups []group
	units  []unit
	// inputs are the assumptions that faults refer to, in their order of use.
	inputs []Assumption
	faults []fault
	// entities are what fails as one: units, hosts, zones, and one per group and
	// for the service, which have no units of their own.
	entities []entity
}

// fault is a Fault with its numbers at hand.
type fault struct {
	Fault
	rate, away, outage int // indices of inputs; away is -1 for none
	samples            []float64
	sampleMean         float64
	doubt              float64
	// share of the requests that fail, when nothing says otherwise.
	share float64
}

// entity fails as one and takes its units along.
type entity struct {
	units []int
	procs []process
	// own is set for a single unit; other entities are shared.
	own bool
}

// process is a fault at an entity.
type process struct {
	fault int
	// alone tells of a part or layer that the failure by itself leaves a group
	// with too few parts: nothing takes over, and users wait until it is back.
	alone bool
	// picks is set for a fault that takes one of several units: the entity
	// holds all of them, and each event takes one.
	picks bool
	// away is the index of the input that says how long redundancy is reduced,
	// or -1.
	away int
	// silent is set for a part that starts elsewhere when its host or zone is
	// lost: what users notice of the event itself is counted there.
	silent bool
}

func compile(m Model) (*system, error) {
	if !(m.Target > 0 && m.Target < 1) {
		return nil, fmt.Errorf("target %g: want more than 0 and less than 1", m.Target)
	}
	if err := m.Layout.Validate(); err != nil {
		return nil, err
	}
	s := &system{model: m}
	s.groups, s.units = m.Layout.groups()
	index := map[string]int{}
	input := func(name string, unit Unit) (int, error) {
		a, ok := m.Assumptions[name]
		if !ok || a.Unit != unit {
			return 0, fmt.Errorf("no assumption %q in %s", name, unit)
		}
		i, ok := index[name]
		if !ok {
			i = len(s.inputs)
			index[name] = i
			s.inputs = append(s.inputs, a)
		}
		return i, nil
	}
	counts := m.Layout.Counts()
	for _, f := range m.Faults {
		if (f.Scope == ScopeUnit || f.Scope == ScopeGroup) && counts[f.Group] == 0 {
			continue
		}
		c := fault{Fault: f, away: -1, share: f.Share}
		var err error
		if c.rate, err = input(f.Rate, PerYear); err != nil {
			return nil, fmt.Errorf("fault %s: %w", f.Name, err)
		}
		if c.outage, err = input(f.Outage, Minutes); err != nil {
			return nil, fmt.Errorf("fault %s: %w", f.Name, err)
		}
		if f.Away != "" {
			if c.away, err = input(f.Away, Minutes); err != nil {
				return nil, fmt.Errorf("fault %s: %w", f.Name, err)
			}
		}
		if c.share == 0 && f.Group != "" {
			c.share = 1 / float64(counts[f.Group])
			for _, g := range s.groups {
				if g.name == f.Group {
					c.share *= g.share
					break
				}
			}
		}
		c.samples = f.samples(f.Measured)
		c.sampleMean, c.doubt = mean(c.samples), doubt(c.samples)
		s.faults = append(s.faults, c)
	}
	moved := -1
	if m.Layout.Reschedule {
		var err error
		if moved, err = input("reschedule", Minutes); err != nil {
			return nil, err
		}
	}
	s.place(moved)
	return s, nil
}

// place makes the entities. Parts without data start elsewhere when their host or
// zone is lost, after the input moved, unless that is negative.
func (s *system) place(moved int) {
	l := s.model.Layout
	moves := func(u int) bool { return moved >= 0 && stateless(s.units[u].kind) }
	add := func(units []int, picks, own bool, of func(fault) bool) {
		e := entity{units: units, own: own}
		for i, f := range s.faults {
			if of(f) {
				taken := units
				if picks {
					taken = units[:1]
				}
				p := process{fault: i, alone: f.Group != "" && s.alone(taken), picks: picks, away: f.away}
				if own && f.Group == "" {
					p.silent = true
					if f.Kind != Planned {
						p.away = moved
					}
				}
				e.procs = append(e.procs, p)
			}
		}
		if len(e.procs) > 0 {
			s.entities = append(s.entities, e)
		}
	}
	for u := range s.units {
		add([]int{u}, false, true, func(f fault) bool {
			return f.Scope == ScopeUnit && f.Group == s.units[u].kind || moves(u) && (f.Scope == ScopeHost || f.Scope == ScopeZone)
		})
	}
	byKind := map[string][]int{}
	for u, at := range s.units {
		byKind[at.kind] = append(byKind[at.kind], u)
	}
	for _, name := range Groups() {
		if units := byKind[name]; len(units) > 0 {
			add(units, true, false, func(f fault) bool { return f.Scope == ScopeGroup && f.Group == name })
		}
	}
	within := func(zone, host int) []int {
		var units []int
		for u, at := range s.units {
			if at.zone == zone && (host < 0 || at.host == host) && !moves(u) {
				units = append(units, u)
			}
		}
		return units
	}
	for zone := range l.Zones {
		add(within(zone, -1), false, false, func(f fault) bool { return f.Scope == ScopeZone })
		for host := range l.HostsPerZone {
			add(within(zone, host), false, false, func(f fault) bool { return f.Scope == ScopeHost })
		}
	}
	// One entity each: two faults of the whole service may happen at once.
	for i := range s.faults {
		add(nil, false, false, func(f fault) bool { return f.Scope == ScopeService && f.Name == s.faults[i].Name })
	}
}

// alone tells whether some group has too few parts without these units.
func (s *system) alone(units []int) bool {
	gone := map[int]bool{}
	for _, u := range units {
		gone[u] = true
	}
	for _, g := range s.groups {
		up := 0
		for _, u := range g.units {
			if !gone[u] {
				up++
			}
		}
		if up < g.need {
			return true
		}
	}
	return false
}

// world is one possible truth: a multiple of each input's mean, and of what was
// measured for each fault.
type world struct {
	inputs, faults []float64
}

// mean is the world in which everything is as it is believed on average.
func (s *system) mean() world {
	w := world{inputs: make([]float64, len(s.inputs)), faults: make([]float64, len(s.faults))}
	for i := range w.inputs {
		w.inputs[i] = 1
	}
	for i := range w.faults {
		w.faults[i] = 1
	}
	return w
}

// draw takes the world of that number from what is believed. Faults that use the
// same input share its error, and all drills share the laboratory's. Each belief
// has random numbers of its own, so that systems which differ in one thing have
// the same worlds in all others.
func (s *system) draw(seed, number uint64) world {
	stream := func(name string) *rand.Rand {
		h := fnv.New64a()
		h.Write([]byte(name))
		return rand.New(rand.NewPCG(seed^(number+1)*0x9e3779b97f4a7c15, h.Sum64()))
	}
	w := s.mean()
	for i, a := range s.inputs {
		w.inputs[i] = a.belief(stream(a.Name))
	}
	lab := around(stream("the laboratory"), sigma(s.model.Laboratory))
	for i, f := range s.faults {
		if len(f.samples) > 0 {
			w.faults[i] = around(stream("drills of "+f.Name), f.doubt)
			if !f.ShareOnly {
				w.faults[i] *= lab
			}
		}
	}
	return w
}

// value of an input in a world.
func (s *system) value(w world, i int) float64 { return s.inputs[i].Mean() * w.inputs[i] }

// rate is events a year at one entity.
func (s *system) rate(w world, f int) float64 {
	return s.value(w, s.faults[f].rate) * s.faults[f].Part
}

// away is the mean minutes for which redundancy is reduced.
func (s *system) away(w world, p process) float64 {
	// A drill of a part without replacement saw its users wait until it was back.
	if p.away < 0 || p.alone && len(s.faults[p.fault].samples) > 0 {
		return 0
	}
	return s.value(w, p.away)
}

// outage is the mean of the minutes that users lose to one event because of the
// event itself, as if all requests failed.
func (s *system) outage(w world, p process) float64 {
	f := s.faults[p.fault]
	switch {
	case p.silent:
		return 0
	case len(f.samples) > 0 && f.ShareOnly:
		return s.value(w, f.outage) * min(1, f.sampleMean*w.faults[p.fault])
	case len(f.samples) > 0:
		return f.sampleMean * w.faults[p.fault]
	case p.alone:
		// Users wait until it is back, which the loss of the group counts.
		return 0
	}
	return s.value(w, f.outage) * f.share
}

// expected is what a year costs on average in a world, in minutes, by fault: what
// the events cost by themselves, and what is lost because too few parts of a group
// are left. Faults outside are in neither.
type expected struct {
	events    []float64
	exhausted []float64
	outside   float64
}

func (e expected) total() float64 {
	sum := 0.0
	for i := range e.events {
		sum += e.events[i] + e.exhausted[i]
	}
	return sum
}

// expect calculates without chance: every entity is away for a known share of
// the time, entities are independent of each other, and what users lose when
// redundancy holds adds up.
func (s *system) expect(w world) expected {
	out := expected{events: make([]float64, len(s.faults)), exhausted: make([]float64, len(s.faults))}
	away := make([]float64, len(s.entities)) // share of the time
	for i, e := range s.entities {
		awayMinutes := 0.0
		for _, p := range e.procs {
			awayMinutes += s.rate(w, p.fault) * s.away(w, p)
		}
		// While an entity is away it does not fail again.
		up := 1 / (1 + awayMinutes/MinutesPerYear)
		away[i] = 1 - up
		for _, p := range e.procs {
			m := s.rate(w, p.fault) * up * s.outage(w, p)
			if s.faults[p.fault].Outside {
				out.outside += m
			} else {
				out.events[p.fault] += m
			}
		}
	}
	for i, share := range s.exhausted(away) {
		e := s.entities[i]
		total := 0.0
		for _, p := range e.procs {
			total += s.rate(w, p.fault) * s.away(w, p)
		}
		for _, p := range e.procs {
			if total > 0 {
				out.exhausted[p.fault] += share * MinutesPerYear * s.rate(w, p.fault) * s.away(w, p) / total
			}
		}
	}
	return out
}

// unlikely is the probability under which a set of entities that are away at once
// is passed over: together such sets cost less than a second a year.
const unlikely = 1e-12

// exhausted is the mean share of requests that fail because groups have too few
// parts, when each entity is away independently for a share of the time. It goes
// through the sets of shared entities (hosts, zones, layers) that are likely enough
// to be noticed; single units follow the binomial distribution. The result is by
// entity: those that are away together share what is lost because of it.
func (s *system) exhausted(away []float64) []float64 {
	out := make([]float64, len(s.entities))
	own := make([]float64, len(s.units))
	type shared struct {
		entity, pick int     // pick is a unit, or -1 for all
		odds         float64 // of being away against being here
	}
	var domains []shared
	base := 1.0
	for i, e := range s.entities {
		if away[i] == 0 || len(e.units) == 0 {
			continue
		}
		switch {
		case e.procs[0].picks:
			odds := away[i] / float64(len(e.units)) / (1 - away[i])
			for _, u := range e.units {
				domains = append(domains, shared{entity: i, pick: u, odds: odds})
			}
			base *= 1 - away[i]
		case e.own:
			own[e.units[0]] = away[i]
		default:
			domains = append(domains, shared{entity: i, pick: -1, odds: away[i] / (1 - away[i])})
			base *= 1 - away[i]
		}
	}
	// The likely ones first, so that the search can stop early; the parts of a
	// layer stay beside each other.
	slices.SortStableFunc(domains, func(a, b shared) int { return cmp.Compare(b.odds, a.odds) })
	gone := make([]int, len(s.units))
	take := func(d shared, by int) {
		if d.pick >= 0 {
			gone[d.pick] += by
			return
		}
		for _, u := range s.entities[d.entity].units {
			gone[u] += by
		}
	}
	// What units lose by themselves is theirs, also while others are away.
	alone := s.loss(gone, own)
	units := 0.0
	var set []int
	var walk func(from int, p float64)
	walk = func(from int, p float64) {
		units += p * alone
		if len(set) > 0 {
			more := p * (s.loss(gone, own) - alone) / float64(len(set))
			for _, e := range set {
				out[e] += more
			}
		}
		for i := from; i < len(domains); i++ {
			d := domains[i]
			if p*d.odds < unlikely {
				return
			}
			// A layer loses one part at a time.
			next := i + 1
			if d.pick >= 0 {
				for next < len(domains) && domains[next].entity == d.entity {
					next++
				}
			}
			take(d, 1)
			set = append(set, d.entity)
			walk(next, p*d.odds)
			set = set[:len(set)-1]
			take(d, -1)
		}
	}
	walk(0, base)
	s.divide(units, own, out)
	return out
}

// divide gives what single units lose to them: to each group by its own loss, and
// in it by how much each unit is away.
func (s *system) divide(lost float64, own, out []float64) {
	weight := make([]float64, len(s.units))
	total := 0.0
	for _, g := range s.groups {
		sum, q := 0.0, 0.0
		for _, u := range g.units {
			sum += own[u]
			q = own[u]
		}
		if sum == 0 {
			continue
		}
		down := (1 - KOfN(g.need, len(g.units), 1-q)) * g.share
		total += down
		for _, u := range g.units {
			weight[u] += down * own[u] / sum
		}
	}
	if total == 0 {
		return
	}
	for i, e := range s.entities {
		if e.own {
			out[i] += lost * weight[e.units[0]] / total
		}
	}
}

// loss is the share of requests that fail on average when the units with a
// positive count in gone are away and each other one is for its own share of
// the time.
func (s *system) loss(gone []int, own []float64) float64 {
	ok := 1.0
	for _, g := range s.groups {
		// All units of a group have the same share: the distribution is binomial.
		left, q := 0, 0.0
		for _, u := range g.units {
			if gone[u] == 0 {
				left++
				q = own[u]
			}
		}
		down := 1.0
		switch {
		case left < g.need:
		case q == 0:
			down = 0
		default:
			down = 1 - KOfN(g.need, left, 1-q)
		}
		ok *= 1 - down*g.share
	}
	return max(0, 1-ok)
}

// minutesOf draws how long one event takes around a mean.
func minutesOf(r *rand.Rand, mean float64, a Assumption) float64 {
	return mean * around(r, sigma(a.Spread))
}
