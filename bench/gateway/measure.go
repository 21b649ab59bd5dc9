//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"fournines/bench/rig"
)

// sizes are how much load each measurement makes.
type sizes struct {
	connections  int // requests in flight of the requests row
	churn        int // connections at a time of the churn row
	streams      int // of the event rows
	rate         int // events a second of each
	idle         int // streams of the memory row
	warm, window time.Duration
}

var (
	fullSizes  = sizes{connections: 64, churn: 32, streams: 1000, rate: 20, idle: 5000, warm: time.Second, window: 4 * time.Second}
	quickSizes = sizes{connections: 16, churn: 8, streams: 100, rate: 20, idle: 300, warm: 200 * time.Millisecond, window: 600 * time.Millisecond}
)

// bench is one run's processes and files.
type bench struct {
	dir      string
	sizes    sizes
	proxyCPU []int // nil: not pinned
	loadCPU  []int
	backends []netip.AddrPort
	backend  *driver
	taken    rig.Addresses
	number   int // of measurements, to name their directories
	limit    uint64
}

// newBench starts the backend.
func newBench(ctx context.Context, sizes sizes) (*bench, error) {
	b := &bench{sizes: sizes}
	var err error
	if b.limit, err = rig.RaiseFileLimit(); err != nil {
		return nil, err
	}
	cpus, err := rig.Processors()
	if err != nil {
		return nil, err
	}
	if len(cpus) > 1 {
		b.proxyCPU, b.loadCPU = cpus[:1], cpus[1:2]
	}
	if b.dir, err = os.MkdirTemp("", "fournines-bench-"); err != nil {
		return nil, err
	}
	args := []string{roleBackend}
	for range 2 {
		a, err := b.taken.Free()
		if err != nil {
			return nil, errors.Join(err, b.close())
		}
		b.backends = append(b.backends, a)
		args = append(args, a.String())
	}
	if b.backend, err = startDriver("backend", b.dir, b.loadCPU, args...); err != nil {
		return nil, errors.Join(err, b.close())
	}
	if _, err := b.backend.expect(ctx, "ready", 10*time.Second); err != nil {
		return nil, errors.Join(fmt.Errorf("start the backend: %w", err), b.close())
	}
	return b, nil
}

func (b *bench) close() error {
	if b.backend != nil {
		b.backend.stop()
	}
	return os.RemoveAll(b.dir)
}

// client starts a load client and waits until each of its connections has had a
// good answer.
func (b *bench) client(ctx context.Context, kind string, to netip.AddrPort, connections, rate int) (*driver, error) {
	d, err := startDriver("client", b.dir, b.loadCPU, roleClient, kind, to.String(), strconv.Itoa(connections), strconv.Itoa(rate))
	if err != nil {
		return nil, err
	}
	if _, err := d.expect(ctx, "ready", time.Minute); err != nil {
		d.stop()
		return nil, err
	}
	return d, nil
}

// with runs f with a contender that has just been started.
func (b *bench) with(ctx context.Context, c *rig.Contender, f func(p *rig.Process, at netip.AddrPort) (*rig.Sample, error)) (*rig.Sample, error) {
	b.number++
	dir := filepath.Join(b.dir, fmt.Sprintf("%d-%s", b.number, c.Name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	// Its own set of ports each time: the last one's may be in TIME_WAIT.
	s := settings{Backends: b.backends, Dir: dir, Root: os.Getuid() == 0, Descriptors: b.limit}
	var err error
	if s.Listen, err = b.taken.Free(); err != nil {
		return nil, err
	}
	if s.Admin, err = b.taken.Free(); err != nil {
		return nil, err
	}
	p, err := c.Start(dir, b.proxyCPU, peerFiles, s)
	if err != nil {
		return nil, err
	}
	defer p.Stop()
	if err := serves(ctx, p, s.Listen); err != nil {
		return nil, err
	}
	got, err := f(p, s.Listen)
	if err != nil {
		if ended := p.Alive(); ended != nil {
			err = ended
		}
		return nil, err
	}
	return got, nil
}

// requests measures plain requests, over kept connections or over new ones.
func (b *bench) requests(ctx context.Context, c *rig.Contender, kind, metric string, connections int) (*rig.Sample, error) {
	return b.with(ctx, c, func(p *rig.Process, at netip.AddrPort) (*rig.Sample, error) {
		return b.load(ctx, p, kind, at, connections, 0, func(s *rig.Sample, r report, cpu time.Duration) {
			s.Values[metric] = float64(r.Count) / cpu.Seconds()
		})
	})
}

// events measures streams that speak. A nil contender is the backend itself.
func (b *bench) events(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
	measure := func(p *rig.Process, at netip.AddrPort) (*rig.Sample, error) {
		return b.load(ctx, p, kindStreams, at, b.sizes.streams, b.sizes.rate, func(s *rig.Sample, r report, cpu time.Duration) {
			s.Values[metricCPUPerEvent] = float64(cpu.Microseconds()) / float64(r.Count)
			s.P99 = float64(r.P99) / 1e6
		})
	}
	if c == nil {
		return measure(b.backend.Process, b.backends[0])
	}
	return b.with(ctx, c, measure)
}

const (
	// A measurement lasts for at most so many windows, until the contender has
	// used one part in so many of a window as processor time.
	maxWindows, minShare = 5, 10
)

// load lets a client work through p for the window.
func (b *bench) load(ctx context.Context, p *rig.Process, kind string, at netip.AddrPort, connections, rate int, result func(*rig.Sample, report, time.Duration)) (*rig.Sample, error) {
	d, err := b.client(ctx, kind, at, connections, rate)
	if err != nil {
		return nil, err
	}
	defer d.stop()
	if err := p.Pause(ctx, b.sizes.warm); err != nil {
		return nil, err
	}
	loaders := []int{b.backend.PID(), d.PID()}
	if _, err := d.tell(ctx, "begin", "begun"); err != nil {
		return nil, err
	}
	before, err := rig.CPUOf(p.PID())
	if err != nil {
		return nil, err
	}
	loadBefore, err := rig.CPUOf(loaders...)
	if err != nil {
		return nil, err
	}
	allBefore, err := rig.MachineCPU()
	if err != nil {
		return nil, err
	}
	// On a busy machine it takes longer until there is enough to measure.
	for range maxWindows {
		if err := p.Pause(ctx, b.sizes.window); err != nil {
			return nil, err
		}
		if so, err := rig.CPUOf(p.PID()); err != nil || so.CPU-before.CPU >= b.sizes.window/minShare {
			break
		}
	}
	r, err := d.tell(ctx, "end", "ended")
	if err != nil {
		return nil, err
	}
	after, err := rig.CPUOf(p.PID())
	if err != nil {
		return nil, err
	}
	loadAfter, err := rig.CPUOf(loaders...)
	if err != nil {
		return nil, err
	}
	allAfter, err := rig.MachineCPU()
	if err != nil {
		return nil, err
	}
	if r.Count == 0 || after.CPU == before.CPU {
		return nil, fmt.Errorf("%d answers with %v of processor time: too little to measure", r.Count, after.CPU-before.CPU)
	}
	wall := after.At.Sub(before.At).Seconds()
	s := &rig.Sample{
		Values: map[string]float64{},
		Busy:   (after.CPU - before.CPU).Seconds() / wall, LoadBusy: (loadAfter.CPU - loadBefore.CPU).Seconds() / wall,
		Rate: float64(r.Count) / wall, Bunched: float64(r.Bunched) / float64(r.Count),
	}
	s.OthersBusy = max(0, (allAfter-allBefore).Seconds()/wall-s.LoadBusy)
	if p != b.backend.Process {
		s.OthersBusy = max(0, s.OthersBusy-s.Busy)
	}
	result(s, r, after.CPU-before.CPU)
	return s, nil
}

// idle measures the memory of streams that are silent.
func (b *bench) idle(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
	return b.with(ctx, c, func(p *rig.Process, at netip.AddrPort) (*rig.Sample, error) {
		// First what is used once only: code, pools, the first of everything.
		for _, kind := range []string{kindRequests, kindStreams} {
			d, err := b.client(ctx, kind, at, 32, 0)
			if err != nil {
				return nil, err
			}
			err = p.Pause(ctx, b.sizes.warm/2)
			d.stop()
			if err != nil {
				return nil, err
			}
		}
		before, err := p.Memory(ctx)
		if err != nil {
			return nil, err
		}
		d, err := b.client(ctx, kindStreams, at, b.sizes.idle, 0)
		if err != nil {
			return nil, err
		}
		defer d.stop()
		after, err := p.Memory(ctx)
		if err != nil {
			return nil, err
		}
		r, err := d.tell(ctx, "end", "ended")
		if err != nil {
			return nil, err
		}
		if r.Open != b.sizes.idle {
			return nil, fmt.Errorf("%d of %d streams are left", r.Open, b.sizes.idle)
		}
		return &rig.Sample{Values: map[string]float64{metricIdle: float64(after-before) / 1024 / float64(b.sizes.idle)}}, nil
	})
}
