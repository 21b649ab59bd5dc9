package balance

import (
	"slices"
	"time"
)

// Outcome is what a request met at an endpoint.
type Outcome uint8

// The outcomes. A request has one of them, or Success when its answer begins
// and Cut when that breaks off.
const (
	Success     Outcome = iota
	ServerError         // an answer with status 500 or more
	Failure             // a connect error, or a connection that broke before an answer
	Cut                 // an answer that began and broke off
	Slow                // an answer that did not begin, or a stream that did not go on, in time
)

// Report records an outcome and ejects the endpoint when too many in a row
// were bad, or too many of late.
//
// A slow answer is no sign of death: probes that are answered while requests
// wait say that the endpoint lives and waits itself, most likely for a database
// that all wait for. It counts only in the comparison with the others.
func (p *Pool) Report(e *Endpoint, o Outcome) {
	s := p.snap.Load()
	now := time.Now()
	e.mu.Lock()
	if s.cfg.ErrorShare > 0 {
		e.recent.add(o, e.age(now), s.cfg.ErrorWindow)
	}
	reason := ""
	switch o {
	case Success:
		e.errors, e.serverErrs = 0, 0
	case ServerError:
		e.errors = 0
		if e.serverErrs++; e.serverErrs >= s.cfg.Consecutive5xx {
			reason = "5xx"
		}
	case Failure, Cut:
		if e.errors++; e.errors >= s.cfg.ConsecutiveErrors {
			reason = "errors"
		}
	case Slow:
	}
	e.mu.Unlock()
	if o == Success {
		return
	}
	if o == Failure || o == Slow {
		e.adaptive.drop()
	}
	if o != ServerError {
		select { // the next probe need not wait for its time
		case e.kick <- struct{}{}:
		default:
		}
	}
	if reason == "" && s.outlier(e, now) {
		reason = "share"
	}
	if reason != "" {
		p.eject(e, reason, now)
	}
}

// eject takes e out for a while, unless too few would be left: those that
// probes find unhealthy are as much out as those that are ejected.
func (p *Pool) eject(e *Endpoint, reason string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Ejected(now) || !slices.Contains(p.all, e) {
		return
	}
	out, left := 1, 0
	for _, other := range p.all {
		switch {
		case other == e:
		case other.usable(now):
			left++
		default:
			out++
		}
	}
	const rounding = 1e-9
	limit := max(1, int(p.cfg.MaxEjectedShare*float64(len(p.all))+rounding))
	if out > limit || left == 0 {
		return
	}
	e.forget()
	e.mu.Lock()
	e.ejections++
	lasts := min(time.Duration(e.ejections)*p.cfg.EjectionBase, p.cfg.EjectionMax)
	e.forgiveAt = now.Add(lasts + p.cfg.EjectionMax)
	e.mu.Unlock()
	e.ejectedUntil.Store(e.age(now.Add(lasts)))
	p.rebuild(now)
	p.log.Warn("endpoint ejected", "endpoint", e.Name, "zone", e.Zone, "reason", reason, "for", lasts)
	p.obs.Ejected(e, reason)
	p.obs.Health(e, false)
}

// readmit ends ejections whose time is over. p.mu is not held.
func (p *Pool) readmit(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dirty := false
	for _, e := range p.all {
		until := e.ejectedUntil.Load()
		switch {
		case until == 0:
			e.forgive(now, p.cfg.EjectionMax)
		case until <= e.age(now):
			e.forget()
			e.ejectedUntil.Store(0)
			e.recovered.Store(e.age(now))
			dirty = true
			p.log.Info("endpoint readmitted", "endpoint", e.Name, "zone", e.Zone)
			p.obs.Health(e, e.usable(now))
		}
	}
	if dirty {
		p.rebuild(now)
	}
}

// forget drops what requests met before the endpoint went out: it comes back
// with a clean sheet.
func (e *Endpoint) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.errors, e.serverErrs = 0, 0
	e.recent = window{}
}

// forgive makes the next ejection shorter for every while that the endpoint has
// been in service without another one.
func (e *Endpoint) forgive(now time.Time, every time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ejections > 0 && now.After(e.forgiveAt) {
		e.ejections--
		e.forgiveAt = now.Add(every)
	}
}
