package local

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"fournines/topology"
)

// publish makes the state of the loop visible to everybody else.
func (l *unitLoop) publish() {
	c := l.component()
	rec := l.snapshot()
	l.gate.set(c.State == topology.Ready || !l.wanted())
	oldView, oldRec := l.view.Swap(&c), l.record.Swap(&rec)
	if oldView == nil || *oldView != c {
		if oldView != nil && oldView.State != c.State {
			l.sup.log.Info("unit state", "unit", c.Name, "state", string(c.State), "reason", c.Reason)
		}
		l.sup.changed(l.def.Name)
	}
	if oldRec == nil || !oldRec.same(&rec) {
		l.sup.persistSoon()
	}
}

func (l *unitLoop) component() topology.Component {
	c := topology.Component{Name: l.def.Name, Kind: l.def.Kind, Address: l.def.Address, Role: l.role, Restarts: l.restarts}
	if l.proc != nil && l.phase != sweeping {
		c.PID = l.proc.Identity().PID
	}
	c.State, c.Reason = l.state()
	return c
}

func (l *unitLoop) state() (topology.State, string) {
	late := !l.deadline.IsZero() && !l.everReady && time.Now().After(l.deadline)
	if l.done && l.phase == idle && !l.downing {
		return topology.Ready, ""
	}
	if !l.wanted() {
		return l.unwantedState()
	}
	switch l.phase {
	case working:
		return topology.Starting, l.workingReason()
	case running:
		switch {
		case l.paused:
			return topology.Degraded, "paused; let it go on with `fournines resume " + l.def.Name + "`"
		case l.ready:
			return topology.Ready, ""
		case l.probeErr == nil:
			return topology.Starting, "checking"
		case l.everReady:
			return topology.Degraded, l.probeErr.Error()
		case late:
			return topology.Failed, fmt.Sprintf("not ready after %v: %v", l.readyTimeout(), l.probeErr)
		}
		return topology.Starting, l.probeErr.Error()
	case stopping:
		return topology.Starting, "stopping before the restart"
	case resting:
		switch {
		case late, permanent(l.workErr), l.failures >= failedAfter && l.def.Process != nil:
			return topology.Failed, l.reason
		case l.everReady:
			return topology.Degraded, l.reason
		}
		return topology.Starting, l.reason
	case idle, sweeping:
	}
	if l.everReady {
		return topology.Degraded, l.reason
	}
	return topology.Starting, l.reason
}

// permanent reports if trying again cannot help until somebody acts.
func permanent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func (l *unitLoop) unwantedState() (topology.State, string) {
	if l.phase != idle {
		return topology.Degraded, "stopping"
	}
	switch {
	case l.downing:
		return topology.Stopped, ""
	case l.powerless.Load():
		return topology.Stopped, fmt.Sprintf("zone %s has no power; `fournines zone on %s`", l.def.Zone, l.def.Zone)
	}
	return topology.Stopped, "stopped by hand; `fournines start " + l.def.Name + "`"
}

func (l *unitLoop) workingReason() string {
	var names []string
	for _, d := range l.waitingFor {
		if !d.gate.isOpen() {
			names = append(names, d.def.Name)
		}
	}
	if len(names) > 0 {
		return "waits for " + strings.Join(names, ", ")
	}
	if l.def.Task != nil {
		return "at work"
	}
	return ""
}

func (l *unitLoop) snapshot() unitRecord {
	r := unitRecord{
		Restarts: l.restarts, Held: l.held, Paused: l.paused, Done: l.done, Task: l.def.Task != nil,
		Kind: l.def.Kind, Zone: l.def.Zone, Address: l.def.Address, After: l.def.After,
	}
	if p := l.def.Process; p != nil {
		r.StopSignal, r.StopTimeout, r.KillGroup, r.Handover = p.StopSignal, p.StopTimeout, p.KillGroup, p.Handover
	}
	if l.proc != nil {
		r.Identity = l.proc.Identity()
	}
	if l.next != nil {
		r.Next = l.next.Identity()
	}
	return r
}

// same compares what can change; the plan's part is constant.
func (r *unitRecord) same(o *unitRecord) bool {
	return r.Identity == o.Identity && r.Next == o.Next && r.Restarts == o.Restarts && r.Held == o.Held && r.Paused == o.Paused && r.Done == o.Done
}
