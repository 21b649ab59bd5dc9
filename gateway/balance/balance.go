// Package balance chooses the Dify instance for a request: own zone first,
// spill-over when too few of it are healthy, the better of two random ones by
// latency and work in hand. It learns health actively (probes) and passively
// (what requests met).
package balance

import (
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fournines/topology"
)

// Target is an endpoint as configured.
type Target struct {
	topology.Endpoint
	// Scheme is "http" or "https".
	Scheme string
}

// Config sets how the pool judges and chooses. All values must be positive.
type Config struct {
	// Zone is where the caller runs; endpoints of it are local.
	Zone string
	// LocalThreshold (0..1] is the healthy share of the local endpoints under
	// which traffic spills over: local gets share/threshold of it.
	LocalThreshold float64
	// SlowStart is how long a recovered endpoint takes to its full share.
	SlowStart time.Duration

	// HealthPath is asked every HealthInterval with HealthTimeout. Rise good
	// answers in a row make an endpoint healthy, Fall bad ones unhealthy. The
	// first answer of a new endpoint decides alone.
	HealthPath                    string
	HealthInterval, HealthTimeout time.Duration
	Rise, Fall                    int

	// ConsecutiveErrors counts connect errors, resets and cut answers in a row
	// until ejection; Consecutive5xx server errors in a row.
	ConsecutiveErrors, Consecutive5xx int
	// ErrorShare (0..1) of an endpoint's requests in ErrorWindow, of which
	// there must be MinRequests, is what ejects it when more of them failed,
	// while at least half of the others stay under OthersErrorShare. 0 turns
	// the rule off.
	ErrorShare, OthersErrorShare float64
	ErrorWindow                  time.Duration
	MinRequests                  int
	// EjectionBase is how long the first ejection lasts; each further one
	// adds as much again, up to EjectionMax.
	EjectionBase, EjectionMax time.Duration
	// MaxEjectedShare (0..1) bounds the endpoints that are ejected or found
	// unhealthy by probes, with the one to be ejected. The first of several may
	// always be ejected, the last that is left never.
	MaxEjectedShare float64

	// MaxInFlight bounds the requests in work at one endpoint; 0 is no bound.
	MaxInFlight int64
	// MaxStreams bounds those of them that have shown their first content and
	// go on, for requests that may become such; 0 is no bound.
	MaxStreams int64
	// Limit adapts how many requests without content yet an endpoint has.
	Limit Limit
}

// Observer is told what the pool decides. Its methods must not block.
type Observer interface {
	// Health reports the state of an endpoint after a change.
	Health(e *Endpoint, healthy bool)
	// Ejected reports a passive ejection; reason is "errors", "5xx" or
	// "share".
	Ejected(e *Endpoint, reason string)
	// Removed reports that an endpoint left the configuration.
	Removed(e *Endpoint)
}

// snapshot is one immutable view of who can be chosen.
type snapshot struct {
	cfg           Config
	all           []*Endpoint
	local, remote []*Endpoint // usable now
	localShare    float64     // of the local endpoints that exist
	panic         []*Endpoint // who is tried when nobody is usable; nil when somebody is
}

// Pool is the set of endpoints. Its methods are safe for concurrent use.
type Pool struct {
	log  *slog.Logger
	obs  Observer
	snap atomic.Pointer[snapshot]

	mu      sync.Mutex // guards everything below and every change of snap
	cfg     Config
	all     []*Endpoint
	changed chan struct{} // wakes Run after Update

	freed func() // see New
}

// New returns a pool; Run must run for probes and the end of ejections. Until
// the first probe has answered, all endpoints are tried. freed, when not nil, is
// called whenever a place may have come free, from any goroutine and also from
// New; the pool's lock may be held, so it must not change the pool.
func New(cfg Config, targets []Target, log *slog.Logger, obs Observer, freed func()) *Pool {
	if freed == nil {
		freed = func() {}
	}
	p := &Pool{log: log, obs: obs, changed: make(chan struct{}, 1), freed: freed}
	p.Update(cfg, targets)
	return p
}

// Update replaces settings and targets. Endpoints that stay keep their state,
// their history and their requests; those that leave end their work in peace.
func (p *Pool) Update(cfg Config, targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cfg = cfg
	var next []*Endpoint
	for _, t := range targets {
		i := slices.IndexFunc(p.all, func(e *Endpoint) bool { return e.Target == t })
		if i >= 0 {
			next = append(next, p.all[i])
			continue
		}
		next = append(next, newEndpoint(t))
	}
	for _, e := range next {
		e.adaptive.configure(cfg.Limit)
	}
	for _, e := range p.all {
		if !slices.Contains(next, e) {
			p.obs.Removed(e)
		}
	}
	p.all = next
	for _, e := range p.all {
		p.obs.Health(e, e.usable(time.Now()))
	}
	p.rebuild(time.Now())
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// rebuild publishes a new snapshot. p.mu is held.
func (p *Pool) rebuild(now time.Time) {
	s := &snapshot{cfg: p.cfg, all: p.all}
	locals := 0
	var passing []*Endpoint // ejected, and probes find them well
	for _, e := range p.all {
		local := e.Zone != "" && e.Zone == p.cfg.Zone
		if local {
			locals++
		}
		if !e.usable(now) {
			if e.Healthy() && !e.drained.Load() {
				passing = append(passing, e)
			}
			continue
		}
		if local {
			s.local = append(s.local, e)
		} else {
			s.remote = append(s.remote, e)
		}
	}
	if locals > 0 {
		s.localShare = float64(len(s.local)) / float64(locals)
	}
	if len(s.local)+len(s.remote) == 0 {
		// What an instance that answers probes did to some requests is a better
		// prospect than one that answers nothing at all.
		if s.panic = passing; len(passing) == 0 {
			s.panic = slices.DeleteFunc(slices.Clone(p.all), func(e *Endpoint) bool { return e.drained.Load() })
		}
	}
	p.snap.Store(s)
	p.freed()
}

// Healthy returns how many endpoints are usable and how many there are.
func (p *Pool) Healthy() (usable, all int) {
	s := p.snap.Load()
	return len(s.local) + len(s.remote), len(s.all)
}

// Endpoints returns all endpoints; the slice must not be changed.
func (p *Pool) Endpoints() []*Endpoint { return p.snap.Load().all }

// pick chooses among the endpoints that tried does not name; when it names all
// that are usable, nil.
func (s *snapshot) pick(tried []*Endpoint, kind Kind, now time.Time) *Endpoint {
	if s.panic != nil {
		return s.best(s.panic, tried, kind, now)
	}
	first, second := s.local, s.remote
	if len(s.local) == 0 || (s.localShare < s.cfg.LocalThreshold && rand.Float64() >= s.localShare/s.cfg.LocalThreshold) {
		first, second = s.remote, s.local
	}
	if e := s.best(first, tried, kind, now); e != nil {
		return e
	}
	return s.best(second, tried, kind, now)
}

// best takes two random eligible endpoints and returns the cheaper one.
func (s *snapshot) best(from, tried []*Endpoint, kind Kind, now time.Time) *Endpoint {
	n := len(from)
	if n == 0 {
		return nil
	}
	start := rand.IntN(n)
	first := -1
	for i := range n {
		if e := from[(start+i)%n]; s.eligible(e, tried, kind) {
			first = (start + i) % n
			break
		}
	}
	if first < 0 {
		return nil
	}
	a := from[first]
	if n == 1 {
		return a
	}
	// The second choice is as random: begin anywhere among the others.
	skip := 1 + rand.IntN(n-1)
	for i := range n - 1 {
		k := (first + 1 + (skip-1+i)%(n-1)) % n
		if b := from[k]; s.eligible(b, tried, kind) {
			if b.cost(now, s.cfg.SlowStart) < a.cost(now, s.cfg.SlowStart) {
				return b
			}
			return a
		}
	}
	return a
}

// eligible tells whether e has a free place and has not been tried.
func (s *snapshot) eligible(e *Endpoint, tried []*Endpoint, kind Kind) bool {
	if slices.Contains(tried, e) {
		return false
	}
	inFlight, working := e.inFlight.Load(), e.working.Load()
	return (s.cfg.MaxInFlight <= 0 || inFlight < s.cfg.MaxInFlight) && e.adaptive.room(working, kind.Yields) &&
		(!kind.Streams || s.cfg.MaxStreams <= 0 || inFlight-working < s.cfg.MaxStreams)
}

// Taken is the outcome of Take.
type Taken uint8

// The outcomes.
const (
	Took      Taken = iota // the slot holds a place
	Full                   // none of the endpoints outside tried has a free one
	Exhausted              // every endpoint that may be used has been tried
)

// Take chooses an endpoint outside tried that has a free place and takes it for
// slot, which must be free. It never waits.
func (p *Pool) Take(tried []*Endpoint, kind Kind, slot *Slot) Taken {
	s, now := p.snap.Load(), time.Now()
	for range takeTries {
		e := s.pick(tried, kind, now)
		if e == nil {
			if s.exhausted(tried) {
				return Exhausted
			}
			return Full
		}
		if s.cfg.MaxInFlight > 0 && e.inFlight.Add(1) > s.cfg.MaxInFlight {
			e.inFlight.Add(-1)
			continue
		} else if s.cfg.MaxInFlight <= 0 {
			e.inFlight.Add(1)
		}
		working, limit := e.working.Add(1), e.adaptive.limit.Load()
		if working > limit {
			e.working.Add(-1)
			e.inFlight.Add(-1)
			continue
		}
		*slot = Slot{pool: p, Endpoint: e, kind: kind, working: true, began: now}
		slot.window = e.adaptive.enter(working, limit)
		return Took
	}
	return Full // others are faster; who waits is woken when a place comes free
}

// takeTries is how often Take chooses again when another request was faster.
const takeTries = 4

// candidates yields those that requests go to now.
func (s *snapshot) candidates(yield func(*Endpoint) bool) {
	for _, set := range [...][]*Endpoint{s.local, s.remote, s.panic} {
		for _, e := range set {
			if !yield(e) {
				return
			}
		}
	}
}

// exhausted tells whether every endpoint that may be used has been tried.
func (s *snapshot) exhausted(tried []*Endpoint) bool {
	for e := range s.candidates {
		if !slices.Contains(tried, e) {
			return false
		}
	}
	return true
}

// Another tells whether a request that is in work at e could go to another
// endpoint now: one that has a free place and has not been tried. To get away
// from an endpoint that fails its probes, one that has been tried will do.
func (p *Pool) Another(e *Endpoint, tried []*Endpoint) bool {
	s := p.snap.Load()
	if !e.Healthy() {
		tried = nil
	}
	for c := range s.candidates {
		if c != e && s.eligible(c, tried, Kind{}) {
			return true
		}
	}
	return false
}
