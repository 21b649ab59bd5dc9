package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/difysim"
	"fournines/gateway"
	"fournines/gateway/dify"
)

// experiment is what is run, and for how long.
type experiment struct {
	instances, gateways   int
	loads                 []float64 // times the capacity
	warm, settle, measure time.Duration

	neighbour, flood float64 // of the capacity
	neighbourFor     time.Duration

	lag quantiles // how late timers fired meanwhile
}

const (
	// costPerChat is the core's time for one chat.
	costPerChat = 100 * time.Millisecond
	// bulkhead is what app A may have in work per gateway when it has one.
	bulkhead = 16
	keyA     = "app-of-the-flood"
	keyB     = "app-of-the-neighbour"
)

func (x *experiment) capacity() float64 {
	return float64(x.instances) * float64(time.Second/costPerChat)
}

// protection is a set of gateway settings.
type protection uint8

const (
	protected protection = iota
	withBulkhead
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
	switch p {
	case withBulkhead:
		cfg.Apps[0].MaxInFlight = bulkhead
	case unprotected:
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

// ramps raises the load step by step, on a protected and an unprotected system
// side by side.
func (x *experiment) ramps(ctx context.Context) (ours, bare []level, err error) {
	var wg sync.WaitGroup
	results := make([][]level, 2)
	errs := make([]error, 2)
	for i, p := range []protection{protected, unprotected} {
		wg.Go(func() { results[i], errs[i] = x.ramp(ctx, p) })
	}
	wg.Wait()
	return results[0], results[1], errors.Join(errs...)
}

func (x *experiment) ramp(ctx context.Context, p protection) (levels []level, err error) {
	s, err := x.start(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	load := newLoad(s.urls)
	defer load.close()
	if p == protected { // the limits find their place; nothing to find without them
		load.run(ctx, keyA, 1.5*x.capacity(), 0, x.warm)
	}
	for _, l := range x.loads {
		at := load.run(ctx, keyA, l*x.capacity(), x.settle, x.measure)
		at.load = l
		levels = append(levels, at)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return levels, nil
}

// noise is how app B fares.
type noise struct{ alone, flooded, bulkhead, bare level }

func (x *experiment) noise(ctx context.Context) (n noise, err error) {
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i, c := range []struct {
		p     protection
		flood float64
		to    *level
	}{{protected, 0, &n.alone}, {protected, x.flood, &n.flooded}, {withBulkhead, x.flood, &n.bulkhead}} {
		wg.Go(func() { *c.to, errs[i] = x.beside(ctx, c.p, c.flood) })
	}
	wg.Wait()
	// Last and alone: its thousands of open streams keep the machine busy.
	short := *x
	short.warm, short.neighbourFor = min(x.warm, 15*time.Second), min(x.neighbourFor, 15*time.Second)
	n.bare, errs[3] = short.beside(ctx, unprotected, x.flood)
	return n, errors.Join(errs...)
}

// beside runs app B beside a flood of app A.
func (x *experiment) beside(ctx context.Context, p protection, flood float64) (b level, err error) {
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
		wg.Go(func() { *app.to = load.run(ctx, app.key, app.rate, x.warm, x.neighbourFor) })
	}
	wg.Wait()
	return b, ctx.Err()
}

// leastShare is the least goodput as a share of the peak.
func leastShare(levels []level) float64 {
	peak, least := 0.0, math.Inf(1)
	for _, l := range levels {
		peak, least = max(peak, l.goodput()), min(least, l.goodput())
	}
	return least / max(peak, 1e-9)
}
