package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/difysim"
	"fournines/gateway"
	"fournines/gateway/dify"
)

// experiment is what is run, and for how long. Nothing runs side by side.
type experiment struct {
	instances, gateways int
	loads, bareLoads    []float64 // times the capacity; with protection, without
	// warm is how long the limits get to find their place before the first load;
	// then each load runs for settle before measure begins.
	warm, settle, measure time.Duration
	bareMeasure           time.Duration // without protection nothing comes that is worth waiting for

	neighbour, flood float64       // of the capacity
	neighbourFor     time.Duration // measured, after as long as warm and settle

	progress func(format string, args ...any) // is told what is done

	lag quantiles // how late timers fired while the protected system ran
	cpu float64   // processors that this process used then
}

const (
	// costPerChat is the core's time for one chat.
	costPerChat = 100 * time.Millisecond
	keyA        = "app-of-the-flood"
	keyB        = "app-of-the-neighbour"
)

func (x *experiment) capacity() float64 {
	return float64(x.instances) * float64(time.Second/costPerChat)
}

// protection is a set of gateway settings.
type protection uint8

const (
	protected protection = iota
	unprotected
)

// system is instances and gateways of one contender.
type system struct {
	urls []string
	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex
	err  error
}

func (s *system) run(name string, f func() error) {
	s.wg.Go(func() {
		if err := f(); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.err = errors.Join(s.err, fmt.Errorf("%s: %w", name, err))
		}
	})
}

func (s *system) close() error {
	s.stop()
	s.wg.Wait()
	return s.err
}

// start brings up a system of its own.
func (x *experiment) start(ctx context.Context, p protection) (*system, error) {
	ctx, stop := context.WithCancel(ctx)
	s := &system{stop: stop}
	log := slog.New(slog.DiscardHandler)
	cfg := gateway.DefaultConfig()
	cfg.Zone = "a"
	cfg.Drain = gateway.Drain{Timeout: 0}
	cfg.Health.Timeout = 10 * time.Second // a full core is not a dead instance, not even without protection
	cfg.Stream.StopOnDisconnect = false
	cfg.Apps = []gateway.App{{Name: "a", KeyIDs: []string{dify.KeyID(keyA)}}, {Name: "b", KeyIDs: []string{dify.KeyID(keyB)}}}
	if p == unprotected {
		cfg.Overload.Adaptive, cfg.Limits.MaxInFlight = false, 0
	}
	for i := range x.instances {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		sim := difysim.DefaultStubConfig()
		sim.CPU.Cost, sim.CPU.FirstShare = costPerChat, 0.4
		sim.Answer = difysim.AnswerConfig{Tokens: 24, TokensPerSecond: 40, FirstTokenDelay: 500 * time.Millisecond}
		sim.Server.WorkerConnections = 10_000
		sim.Server.GracefulTimeout = time.Second
		stub, err := difysim.NewStub(sim, log, prometheus.NewRegistry())
		if err != nil {
			return nil, errors.Join(err, ln.Close(), s.close())
		}
		u, err := gateway.ParseUpstream(fmt.Sprintf("http://%s@a", ln.Addr()))
		if err != nil {
			return nil, errors.Join(err, ln.Close(), s.close())
		}
		u.Name = fmt.Sprintf("dify-%d", i+1)
		cfg.Upstreams = append(cfg.Upstreams, u)
		s.run(u.Name, func() error { return stub.Run(ctx, ln) })
	}
	for i := range x.gateways {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		g, err := gateway.New(cfg, log, prometheus.NewRegistry())
		if err != nil {
			return nil, errors.Join(err, ln.Close(), s.close())
		}
		s.urls = append(s.urls, "http://"+ln.Addr().String())
		s.run(fmt.Sprintf("gateway-%d", i+1), func() error { return g.Run(ctx, ln) })
		for g.Ready() != nil {
			select {
			case <-ctx.Done():
				return nil, errors.Join(ctx.Err(), s.close())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return s, nil
}

// ramps raises the load step by step, first on a protected system, then on an
// unprotected one.
func (x *experiment) ramps(ctx context.Context) (ours, bare []level, err error) {
	lag, cpu := watchLag(ctx), watchCPU()
	ours, err = x.ramp(ctx, protected, x.loads, x.measure)
	x.lag, x.cpu = lag(), cpu()
	if err != nil {
		return nil, nil, err
	}
	bare, err = x.ramp(ctx, unprotected, x.bareLoads, x.bareMeasure)
	return ours, bare, err
}

func (x *experiment) ramp(ctx context.Context, p protection, loads []float64, measure time.Duration) (levels []level, err error) {
	s, err := x.start(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	load := newLoad(s.urls)
	defer load.close()
	if p == protected { // nothing to find without limits
		load.run(ctx, keyA, 1.5*x.capacity(), 0, x.warm)
	}
	for _, l := range loads {
		at := load.run(ctx, keyA, l*x.capacity(), x.settle, measure)
		at.load = l
		x.progress("%gx: %.1f per second in time, %d refused, %d late, first content p99 %.0f ms", l, at.goodput(), at.refused, at.late, at.content.ms(.99))
		levels = append(levels, at)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return levels, nil
}

// noise is how app B fares.
type noise struct{ alone, flooded, bare level }

func (x *experiment) noise(ctx context.Context) (n noise, err error) {
	for _, c := range []struct {
		p       protection
		flood   float64
		warm    time.Duration
		measure time.Duration
		to      *level
	}{
		{protected, 0, x.settle, x.neighbourFor, &n.alone},
		{protected, x.flood, x.warm + x.settle, x.neighbourFor, &n.flooded},
		{unprotected, x.flood, x.settle, x.bareMeasure, &n.bare},
	} {
		if *c.to, err = x.beside(ctx, c.p, c.flood, c.warm, c.measure); err != nil {
			return n, err
		}
		x.progress("app B beside a flood of %gx: first content p95 %.0f ms, last event p95 %.0f ms", c.flood, c.to.content.ms(.95), c.to.end.ms(.95))
	}
	return n, nil
}

// beside runs app B beside a flood of app A.
func (x *experiment) beside(ctx context.Context, p protection, flood float64, warm, measure time.Duration) (b level, err error) {
	s, err := x.start(ctx, p)
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var wg sync.WaitGroup
	for _, app := range []struct {
		key  string
		rate float64
		to   *level
	}{{keyA, flood * x.capacity(), new(level)}, {keyB, x.neighbour * x.capacity(), &b}} {
		if app.rate == 0 {
			continue
		}
		load := newLoad(s.urls)
		defer load.close()
		wg.Go(func() { *app.to = load.run(ctx, app.key, app.rate, warm, measure) })
	}
	wg.Wait()
	return b, ctx.Err()
}

// peak is the most goodput of any load.
func peak(levels []level) (most float64) {
	for _, l := range levels {
		most = max(most, l.goodput())
	}
	return most
}
