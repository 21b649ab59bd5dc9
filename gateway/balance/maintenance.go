package balance

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Errors of SetDrained.
var (
	ErrNoEndpoint   = errors.New("there is no such endpoint")
	ErrLastEndpoint = errors.New("it is the last endpoint in service")
)

// State is what the pool knows of one endpoint at one moment.
type State struct {
	Target
	Local bool
	// Healthy is what probes say, Ejected what requests met, Drained what an
	// operator asked for. Requests go where only the first is true.
	Healthy, Ejected, Drained bool
	// EjectedFor is how long the ejection still lasts.
	EjectedFor time.Duration
	InFlight   int64
	// Limit bounds InFlight; 0 is no bound.
	Limit int64
	// Working are those of InFlight without content yet, WorkingLimit what the
	// adaptive limit allows of them; 0 is no bound.
	Working, WorkingLimit int64
	// Latency until an answer begins, peak-EWMA; 0 is not measured of late.
	Latency time.Duration
}

// States returns all endpoints in configured order.
func (p *Pool) States() []State {
	s := p.snap.Load()
	now := time.Now()
	out := make([]State, len(s.all))
	for i, e := range s.all {
		e.mu.Lock()
		latency := e.decayed(now)
		e.mu.Unlock()
		out[i] = State{
			Target: e.Target, Local: e.Zone != "" && e.Zone == s.cfg.Zone,
			Healthy: e.Healthy(), Ejected: e.Ejected(now), Drained: e.drained.Load(),
			InFlight: e.InFlight(), Limit: s.cfg.MaxInFlight, Working: e.Working(), WorkingLimit: e.Limit(), Latency: time.Duration(latency),
		}
		if out[i].Ejected {
			out[i].EjectedFor = time.Duration(e.ejectedUntil.Load() - e.age(now))
		}
	}
	return out
}

// SetDrained takes an endpoint out for maintenance, or back in with a slow
// start. What is in work there ends in peace. The last endpoint in service is
// taken out only with force. A drained endpoint gets no request at all, not
// even when all others are ill.
func (p *Pool) SetDrained(name string, drained, force bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.all, func(e *Endpoint) bool { return e.Name == name })
	if i < 0 {
		return fmt.Errorf("%q: %w", name, ErrNoEndpoint)
	}
	e, now := p.all[i], time.Now()
	if drained == e.drained.Load() {
		return nil
	}
	if drained && !force && e.usable(now) {
		if !slices.ContainsFunc(p.all, func(o *Endpoint) bool { return o != e && o.usable(now) }) {
			return fmt.Errorf("%q: %w", name, ErrLastEndpoint)
		}
	}
	e.drained.Store(drained)
	if !drained {
		e.recovered.Store(e.age(now))
	}
	p.rebuild(now)
	p.log.Info("endpoint maintenance", "endpoint", e.Name, "zone", e.Zone, "drained", drained)
	p.obs.Health(e, e.usable(now))
	return nil
}
