package gatewaydrill

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"fournines/difysim"
	"fournines/internal/handover"
	"fournines/test/clock"
)

// Fault is one way to break a cluster.
type Fault struct {
	// Name is how it is called on the command line and in results.
	Name string
	// About says in a few words what is done.
	About string
	// Network tells that the fault needs network namespaces.
	Network bool
	// hits is what a request can have been in flight on when it fails.
	hits hit
	// hold is how long the fault lasts, when strike itself does not take that long.
	hold time.Duration
	// strike breaks the cluster; it calls struck before each blow, and over when
	// what was hit is surely gone.
	strike func(ctx context.Context, c *Cluster, struck func() (over func())) error
	// repair mends it; nil when there is nothing to mend.
	repair func(ctx context.Context, c *Cluster) error
}

// hit says what a fault takes away.
type hit struct {
	// instance is the one that answers wrongly, "" for none.
	instance string
	// instances tells that instances die or hang: what they had fails, and the
	// gateway says so.
	instances bool
	// gateways tells that a gateway or the way to it dies: what it had fails
	// without a word.
	gateways bool
	// until is how long after the last blow a request may still go to what
	// is dead, because nobody can know yet.
	until time.Duration
}

// victim is the instance and zone that faults hit.
const (
	victim     = "a1"
	victimZone = "a"
)

// Faults lists the faults in the order of the table.
func Faults() []Fault {
	wrong := func(f difysim.Faults) func(context.Context, *Cluster, func() func()) error {
		return func(ctx context.Context, c *Cluster, struck func() (over func())) error {
			defer struck()()
			return c.SetFaults(ctx, victim, f)
		}
	}
	healthy := func(ctx context.Context, c *Cluster) error { return c.SetFaults(ctx, victim, difysim.Faults{}) }
	return []Fault{
		{
			Name: "instance-kill", About: "kill -9 an instance", hold: 3 * time.Second,
			hits: hit{instances: true},
			strike: func(_ context.Context, c *Cluster, struck func() (over func())) error {
				defer struck()()
				return c.procs[victim].kill()
			},
			repair: func(_ context.Context, c *Cluster) error { return c.procs[victim].start() },
		},
		{
			Name: "instance-hang", About: "an instance hangs (SIGSTOP)", hold: 4 * time.Second,
			hits: hit{instances: true, until: 5 * time.Second},
			strike: func(_ context.Context, c *Cluster, struck func() (over func())) error {
				defer struck()()
				return c.procs[victim].signal(syscall.SIGSTOP)
			},
			repair: func(_ context.Context, c *Cluster) error { return c.procs[victim].signal(syscall.SIGCONT) },
		},
		{
			Name: "instance-slow", About: "an instance is 10 times slower", hold: 4 * time.Second,
			strike: wrong(difysim.Faults{Slow: 10}), repair: healthy,
		},
		{
			Name: "instance-errors", About: "an instance answers 50% of its requests with 500", hold: 4 * time.Second,
			hits:   hit{instance: victim},
			strike: wrong(difysim.Faults{ErrorShare: 0.5}), repair: healthy,
		},
		{
			Name: "zone-loss", About: "a zone loses power: all its processes and its network at once", Network: true, hold: 4 * time.Second,
			hits: hit{instances: true, gateways: true, until: 2 * time.Second},
			strike: func(_ context.Context, c *Cluster, struck func() (over func())) error {
				defer struck()()
				// The network first, and the gateway before its instances: a zone
				// without power says no goodbye, and nobody in it sees another die.
				errs := []error{c.net.Cut(victimZone)}
				for _, p := range slices.Backward(c.inZone(victimZone)) {
					errs = append(errs, p.kill())
				}
				return errors.Join(errs...)
			},
			repair: func(_ context.Context, c *Cluster) error {
				errs := []error{c.net.Heal(victimZone)}
				for _, p := range c.inZone(victimZone) {
					errs = append(errs, p.start())
				}
				return errors.Join(errs...)
			},
		},
		{
			Name: "zone-cut", About: "a zone is cut off by the network, its processes go on", Network: true, hold: 4 * time.Second,
			hits: hit{instances: true, gateways: true, until: 2 * time.Second},
			strike: func(_ context.Context, c *Cluster, struck func() (over func())) error {
				defer struck()()
				return c.net.Cut(victimZone)
			},
			repair: func(_ context.Context, c *Cluster) error { return c.net.Heal(victimZone) },
		},
		{
			Name: "instance-flap", About: "an instance is killed and started again three times",
			hits: hit{instances: true},
			strike: func(ctx context.Context, c *Cluster, struck func() (over func())) error {
				for range 3 {
					over := struck()
					if err := c.procs[victim].kill(); err != nil {
						return err
					}
					over()
					clock.Wait(ctx, 400*time.Millisecond)
					if err := c.procs[victim].start(); err != nil {
						return err
					}
					clock.Wait(ctx, 1100*time.Millisecond)
				}
				return nil
			},
		},
		{
			Name: "gateway-kill", About: "kill -9 a gateway", hold: 2 * time.Second,
			hits: hit{gateways: true},
			strike: func(_ context.Context, c *Cluster, struck func() (over func())) error {
				defer struck()()
				return c.procs["gateway-"+victimZone].kill()
			},
			repair: func(_ context.Context, c *Cluster) error { return c.procs["gateway-"+victimZone].start() },
		},
		{
			Name: "gateway-restart", About: "restart all gateways, one after the other",
			strike: func(ctx context.Context, c *Cluster, struck func() (over func())) error {
				var old []*proc
				for _, name := range c.gateways {
					defer struck()()
					before, err := c.restartGateway(ctx, name)
					if err != nil {
						return err
					}
					old = append(old, before)
				}
				for _, p := range old {
					if err := p.await(ctx); err != nil {
						return err
					}
				}
				return nil
			},
		},
	}
}

// FindFaults returns the faults of these names, in their own order; all when
// none is given.
func FindFaults(names []string) ([]Fault, error) {
	all := Faults()
	if len(names) == 0 {
		return all, nil
	}
	var out []Fault
	for _, f := range all {
		if slices.Contains(names, f.Name) {
			out = append(out, f)
		}
	}
	if len(out) != len(names) {
		var known []string
		for _, f := range all {
			known = append(known, f.Name)
		}
		return nil, fmt.Errorf("faults %q: there are %q", names, known)
	}
	return out, nil
}

// restartGateway starts a successor, which takes the port over from the process
// that runs, and returns when it has. The process before has its work to end.
func (c *Cluster) restartGateway(ctx context.Context, name string) (before *proc, err error) {
	p := c.procs[name]
	before = &proc{name: name, cmd: p.cmd, done: p.done}
	if err := p.start(); err != nil {
		return nil, err
	}
	p.before = append(p.before, before)
	for end := time.Now().Add(patience); ; clock.Wait(ctx, 20*time.Millisecond) {
		holder, err := handover.Holder(filepath.Join(c.dir, name+".sock"))
		switch {
		case err == nil && holder == p.cmd.Process.Pid:
			return before, c.AwaitReady(ctx)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case time.Now().After(end):
			return nil, fmt.Errorf("%s has not taken over: %w", name, errors.Join(err, fmt.Errorf("process %d holds its port", holder)))
		}
	}
}
