package local

import (
	"context"
	"slices"
	"strings"

	"fournines/topology"
)

// StopLeftovers stops what a dead supervisor left running in dir, in the
// order of the saved state. The plan is only needed for its Teardown and may
// be nil. It reports how many processes there were.
func StopLeftovers(ctx context.Context, dir string, lock *Lock, plan *Plan, opts Options) (int, error) {
	state, err := loadState(dir)
	if err != nil {
		return 0, err
	}
	p := &Plan{Name: state.Name}
	if plan != nil {
		p.Network, p.Teardown = plan.Network, plan.Teardown
	}
	for name, rec := range state.Units {
		if rec.Task {
			continue
		}
		if rec.Zone != "" && !slices.Contains(p.Zones, rec.Zone) {
			p.Zones = append(p.Zones, rec.Zone)
		}
		p.Units = append(p.Units, rec.unit(name))
	}
	if plan != nil {
		// Units that were started but not written down carry their mark.
		for _, u := range plan.Units {
			if _, known := state.Units[u.Name]; !known && u.Process != nil {
				u.After, u.Prepare, u.Ready, u.Role = nil, nil, nil, nil
				if u.Zone != "" && !slices.Contains(p.Zones, u.Zone) {
					p.Zones = append(p.Zones, u.Zone)
				}
				p.Units = append(p.Units, u)
			}
		}
	}
	linkOverTasks(p, state)
	opts.Plan, opts.Dir = p, dir
	s, err := New(opts)
	if err != nil {
		return 0, err
	}
	s.stopOnly = true
	running := 0
	for _, rec := range state.Units {
		if rec.Alive() || rec.Next.Alive() {
			running++
		}
	}
	ln, err := ListenControl(lock, dir)
	if err != nil {
		return running, err
	}
	s.Down()
	return running, s.Run(ctx, lock, ln)
}

// linkOverTasks replaces dependencies on tasks, which are not there any more,
// by what the tasks themselves came after.
func linkOverTasks(p *Plan, state *savedState) {
	var expand func(names []string, seen map[string]bool) []string
	expand = func(names []string, seen map[string]bool) []string {
		var out []string
		for _, n := range names {
			rec, ok := state.Units[n]
			if !ok || seen[n] {
				continue
			}
			seen[n] = true
			if rec.Task {
				out = append(out, expand(rec.After, seen)...)
			} else {
				out = append(out, n)
			}
		}
		return out
	}
	for i := range p.Units {
		p.Units[i].After = expand(p.Units[i].After, map[string]bool{})
	}
}

// LeftRunning returns the state of a stack whose supervisor is dead: what
// still runs of it. Without any such process its state is "stopped".
func LeftRunning(dir string) (topology.Status, error) {
	out := topology.Status{State: topology.Stopped, DataDir: dir, Zones: []topology.Zone{}, Endpoints: map[string]string{}}
	state, err := loadState(dir)
	if err != nil {
		return out, err
	}
	out.Name = state.Name
	byZone := map[string][]topology.Component{}
	for name, rec := range state.Units {
		if !rec.Alive() {
			rec.Identity = rec.Next // it may have taken over since
		}
		if rec.Task || !rec.Alive() {
			continue
		}
		out.State = topology.Degraded
		byZone[rec.Zone] = append(byZone[rec.Zone], topology.Component{
			Name: name, Kind: rec.Kind, Address: rec.Address, PID: rec.PID, Restarts: rec.Restarts,
			State: topology.Degraded, Reason: "runs without a supervisor; `fournines up` takes it over",
		})
	}
	for zone, cs := range byZone {
		slices.SortFunc(cs, func(a, b topology.Component) int { return strings.Compare(a.Name, b.Name) })
		out.Zones = append(out.Zones, topology.Zone{Name: zone, Components: cs})
	}
	slices.SortFunc(out.Zones, func(a, b topology.Zone) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
