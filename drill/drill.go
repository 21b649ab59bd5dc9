// Package drill breaks a running stack on purpose, under load, and measures
// from the client's side what its users got meanwhile.
package drill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"fournines/topology"
)

// Target is a stack that can be broken and mended.
type Target interface {
	Status(ctx context.Context) (topology.Status, error)
	// KillUnit ends the unit's processes at once, as a crash would; the stack
	// restarts them by its own rules.
	KillUnit(ctx context.Context, name string) error
	// PauseUnit stops the unit's processes where they are, as a machine that
	// hangs does; ResumeUnit lets them go on.
	PauseUnit(ctx context.Context, name string) error
	ResumeUnit(ctx context.Context, name string) error
	// RestartUnit replaces the unit's process in an orderly way and returns when
	// the new one is ready.
	RestartUnit(ctx context.Context, name string) error
	// ZoneCut takes a zone's network; its processes go on. ZoneHeal gives it back.
	ZoneCut(ctx context.Context, zone string) error
	ZoneHeal(ctx context.Context, zone string) error
	// ZoneOff takes a zone's power: all its processes end at once and stay away.
	ZoneOff(ctx context.Context, zone string) error
	// ZoneOn gives the power back and starts what belongs into the zone.
	ZoneOn(ctx context.Context, zone string) error
}

// Options say how a drill is run.
type Options struct {
	// Zone is the victim of drills that need one.
	Zone string
	// Load is sent from before the fault until after the repair.
	Load Load
	// PostgresURL is where acknowledged writes are made and looked for.
	PostgresURL string
	// Warmup is how long the load must run without a failure before the fault.
	Warmup time.Duration
	// Hold is how long the fault lasts, for those that do not mend themselves.
	Hold time.Duration
	// Recover bounds the wait for the steady state after the repair.
	Recover time.Duration
	// Slow is how much longer than before the fault a good answer may take.
	Slow time.Duration
	// MaxOutage overrides the longest outage with which the drill passes; zero
	// keeps the drill's own.
	MaxOutage time.Duration
	// Repetition numbers this run among several of the same drill, from 1.
	Repetition int
	// Progress is told in words what happens; nil tells nobody.
	Progress func(string)
}

// Drill is one fault and what a stack has to show while it lasts.
type Drill struct {
	// Name is how the drill is called on the command line.
	Name string
	// About says in one sentence what is broken.
	About string
	// NeedsZone tells that Options.Zone names the victim.
	NeedsZone bool
	// MaxOutage is the longest outage with which the drill passes.
	MaxOutage time.Duration
	// noFailure tells that not a single request may fail.
	noFailure bool
	// victim picks what will be broken from the state of the stack.
	victim func(topology.Status, Options) (string, error)
	// strike breaks it.
	strike func(ctx context.Context, t Target, victim string) error
	// repair mends it; nil when the stack has to mend itself.
	repair func(ctx context.Context, t Target, victim string) error
}

// Catalogue lists the drills in the order in which they are best run.
func Catalogue() []Drill {
	kill := func(ctx context.Context, t Target, victim string) error { return t.KillUnit(ctx, victim) }
	first := func(kind string) func(topology.Status, Options) (string, error) {
		return func(s topology.Status, _ Options) (string, error) { return find(s, kind, "") }
	}
	return []Drill{
		{
			Name: "api-kill", About: "kill -9 one Dify API instance; the stack restarts it",
			MaxOutage: time.Second, victim: first("dify-api"), strike: kill,
		},
		{
			Name: "api-hang", About: "stop one Dify API instance where it is (SIGSTOP), and let it go on later",
			MaxOutage: time.Second, victim: first("dify-api"),
			strike: func(ctx context.Context, t Target, victim string) error { return t.PauseUnit(ctx, victim) },
			repair: func(ctx context.Context, t Target, victim string) error { return t.ResumeUnit(ctx, victim) },
		},
		{
			Name: "gateway-kill", About: "kill -9 one gateway; the stack restarts it",
			MaxOutage: time.Second, victim: first("gateway"), strike: kill,
		},
		{
			Name: "gateway-restart", About: "restart all gateways in an orderly way, one after the other",
			MaxOutage: time.Second, noFailure: true,
			victim: func(s topology.Status, _ Options) (string, error) {
				all := findAll(s, "gateway")
				if len(all) == 0 {
					return "", errors.New("the stack has no gateway")
				}
				return strings.Join(all, ","), nil
			},
			strike: func(ctx context.Context, t Target, victims string) error {
				for name := range strings.SplitSeq(victims, ",") {
					if err := t.RestartUnit(ctx, name); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			Name: "primary-kill", About: "kill -9 the PostgreSQL primary together with its Patroni agent",
			MaxOutage: 30 * time.Second,
			victim:    func(s topology.Status, _ Options) (string, error) { return find(s, "postgres", "primary") },
			strike:    kill,
		},
		{
			Name: "zone-loss", About: "take the power of a whole zone, and give it back later",
			NeedsZone: true, MaxOutage: 30 * time.Second,
			victim: func(s topology.Status, o Options) (string, error) { return findZone(s, o.Zone) },
			strike: func(ctx context.Context, t Target, victim string) error { return t.ZoneOff(ctx, victim) },
			repair: func(ctx context.Context, t Target, victim string) error { return t.ZoneOn(ctx, victim) },
		},
		{
			Name: "zone-cut", About: "cut a zone off by the network, its processes go on, and connect it again later",
			NeedsZone: true, MaxOutage: 30 * time.Second,
			victim: func(s topology.Status, o Options) (string, error) { return findZone(s, o.Zone) },
			strike: func(ctx context.Context, t Target, victim string) error { return t.ZoneCut(ctx, victim) },
			repair: func(ctx context.Context, t Target, victim string) error { return t.ZoneHeal(ctx, victim) },
		},
	}
}

// Find returns the drill of that name.
func Find(name string) (Drill, error) {
	known := ""
	for _, d := range Catalogue() {
		if d.Name == name {
			return d, nil
		}
		known += " " + d.Name
	}
	return Drill{}, fmt.Errorf("no drill %q; there are:%s", name, known)
}

// find returns the first unit of a kind, in a role if one is given.
func find(s topology.Status, kind, role string) (string, error) {
	for _, z := range s.Zones {
		for _, c := range z.Components {
			if c.Kind == kind && (role == "" || c.Role == role) {
				return c.Name, nil
			}
		}
	}
	return "", fmt.Errorf("the stack has no %s %s", kind, role)
}

// findAll returns all units of a kind.
func findAll(s topology.Status, kind string) []string {
	var out []string
	for _, z := range s.Zones {
		for _, c := range z.Components {
			if c.Kind == kind {
				out = append(out, c.Name)
			}
		}
	}
	return out
}

func findZone(s topology.Status, zone string) (string, error) {
	known := ""
	for _, z := range s.Zones {
		if z.Name == "" {
			continue
		}
		if z.Name == zone {
			return zone, nil
		}
		known += " " + z.Name
	}
	return "", fmt.Errorf("the stack has no zone %q; it has:%s", zone, known)
}

// Check is one question about the data, answered after the drill.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// ErrUnsteady says that the stack was not healthy before the fault, so that
// nothing was broken and nothing measured.
var ErrUnsteady = errors.New("the stack is not in a steady state")

// Run carries the drill out and reports. It always mends what it broke, also
// when ctx ends in the middle. An error means that nothing could be measured;
// a failed verdict is not an error.
func (d Drill) Run(ctx context.Context, t Target, o Options, log *slog.Logger) (*Report, error) {
	say := o.Progress
	if say == nil {
		say = func(string) {}
	}
	status, err := t.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the stack for its state: %w", err)
	}
	if status.State != topology.Ready {
		return nil, fmt.Errorf("%w: it is %s; see `fournines status`", ErrUnsteady, status.State)
	}
	victim, err := d.victim(status, o)
	if err != nil {
		return nil, err
	}
	writes, err := newWriter(ctx, o.PostgresURL)
	if err != nil {
		return nil, err
	}

	// The load and the writers run from here to the end of the drill.
	var (
		mu      sync.Mutex
		samples []Sample
		running sync.WaitGroup
	)
	loadCtx, endLoad := context.WithCancel(ctx)
	defer running.Wait()
	defer endLoad()
	running.Go(func() {
		o.Load.Run(loadCtx, func(s Sample) {
			mu.Lock()
			samples = append(samples, s)
			mu.Unlock()
		})
	})
	running.Go(func() { writes.loop(loadCtx) })
	snapshot := func() []Sample {
		mu.Lock()
		defer mu.Unlock()
		return append([]Sample(nil), samples...)
	}

	r := &Report{
		Version: 1, Drill: d.Name, Target: victim, Repetition: max(1, o.Repetition),
		Load: ReportLoad{RPS: o.Load.Rate, Streams: o.Load.Streams}, Alerts: []Alert{},
	}
	r.Window.Start = time.Now()
	say(fmt.Sprintf("load of %g requests/s; steady state for %v first", o.Load.Rate, o.Warmup))
	if err := wait(ctx, o.Warmup); err != nil {
		return nil, err
	}
	before := snapshot()
	for _, s := range before {
		if s.Err != "" {
			return nil, fmt.Errorf("%w: a %s request failed before the fault: %s", ErrUnsteady, s.Class, s.Err)
		}
	}

	r.Window.Fault = time.Now()
	say(fmt.Sprintf("fault: %s (%s)", d.About, victim))
	log.Info("drill strikes", "drill", d.Name, "victim", victim)
	strikeErr := d.strike(ctx, t, victim)
	if strikeErr == nil {
		// An interrupt cuts the fault short and goes on to the repair.
		_ = wait(ctx, o.Hold)
	}
	// The repair does not ride on a context that an interrupt has ended.
	mend, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Recover)
	defer cancel()
	if d.repair != nil {
		say("repair")
		if err := d.repair(mend, t, victim); err != nil {
			return nil, errors.Join(strikeErr, fmt.Errorf("mend %s: %w; run `fournines drill restore`", victim, err))
		}
	}
	r.Window.Restored = time.Now()
	if strikeErr != nil {
		return nil, fmt.Errorf("break %s: %w", victim, strikeErr)
	}
	say("waiting until every component is ready again")
	r.SteadyStateRestored = awaitReady(mend, t) == nil
	// Load goes on for a while, so that late damage is seen as well.
	_ = wait(mend, o.Warmup)
	endLoad()
	running.Wait()
	r.Window.End = time.Now()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("interrupted; what was broken is mended: %w", context.Cause(ctx))
	}

	all := snapshot()
	slow := limits(before, o.Slow)
	r.Requests = summarise(all, slow)
	r.LongestOutageMs = r.Requests.measureOutages(all, slow, o.Load, r.Window.End).Milliseconds()
	r.RecoveryMs = recovery(all, slow, r.Window.Fault).Milliseconds()
	r.Checks = append(r.Checks, writes.check(mend))
	if d.noFailure {
		r.Checks = append(r.Checks, Check{
			Name: "no-failure", OK: r.Requests.Failed == 0,
			Detail: fmt.Sprintf("%d of %d requests failed", r.Requests.Failed, r.Requests.Total),
		})
	}
	limit := d.MaxOutage
	if o.MaxOutage > 0 {
		limit = o.MaxOutage
	}
	r.judge(limit)
	return r, nil
}

// awaitReady polls the stack until it is ready or ctx ends.
func awaitReady(ctx context.Context, t Target) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := t.Status(ctx)
		if err == nil && s.State == topology.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
