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
	"syscall"
	"time"
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

// sample is what one measurement of one contender gave.
type sample struct {
	values map[string]float64 // by metric; direct has p99 in ms instead
	// busy are the shares of one processor that contender and load used.
	busy, loadBusy float64
	// othersBusy is what everything else on the machine used meanwhile.
	othersBusy float64
	rate       float64 // answers or events a second
	bunched    float64 // share of events that came together with an earlier one
}

const keyP99 = "p99"

// bench is one run's processes and files.
type bench struct {
	dir      string
	sizes    sizes
	proxyCPU []int // nil: not pinned
	loadCPU  []int
	backends []netip.AddrPort
	backend  *driver
	taken    map[uint16]bool
	number   int // of measurements, to name their directories
	limit    uint64
}

// newBench starts the backend.
func newBench(ctx context.Context, sizes sizes) (*bench, error) {
	b := &bench{sizes: sizes, taken: map[uint16]bool{}}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("read the limit of open files: %w", err)
	}
	// Set, not only read: then processes that we start inherit it.
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("raise the limit of open files: %w", err)
	}
	b.limit = min(files.Cur, 100_000)
	cpus, err := processors()
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
		a, err := freeAddress(b.taken)
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
func (b *bench) with(ctx context.Context, c *contender, f func(p *child, at netip.AddrPort) (*sample, error)) (*sample, error) {
	b.number++
	dir := filepath.Join(b.dir, fmt.Sprintf("%d-%s", b.number, c.name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	// Its own set of ports each time: the last one's may be in TIME_WAIT.
	s := settings{Backends: b.backends, Root: os.Getuid() == 0, Descriptors: b.limit}
	var err error
	if s.Listen, err = freeAddress(b.taken); err != nil {
		return nil, err
	}
	if s.Admin, err = freeAddress(b.taken); err != nil {
		return nil, err
	}
	p, err := c.start(ctx, dir, b.proxyCPU, s)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	got, err := f(p, s.Listen)
	if err != nil {
		if ended := p.alive(); ended != nil {
			err = ended
		}
		return nil, err
	}
	return got, nil
}

// requests measures plain requests, over kept connections or over new ones.
func (b *bench) requests(ctx context.Context, c *contender, kind, metric string, connections int) (*sample, error) {
	return b.with(ctx, c, func(p *child, at netip.AddrPort) (*sample, error) {
		return b.load(ctx, p, kind, at, connections, 0, func(s *sample, r report, cpu time.Duration) {
			s.values[metric] = float64(r.Count) / cpu.Seconds()
		})
	})
}

// events measures streams that speak. A nil contender is the backend itself.
func (b *bench) events(ctx context.Context, c *contender) (*sample, error) {
	measure := func(p *child, at netip.AddrPort) (*sample, error) {
		return b.load(ctx, p, kindStreams, at, b.sizes.streams, b.sizes.rate, func(s *sample, r report, cpu time.Duration) {
			s.values[metricCPUPerEvent] = float64(cpu.Microseconds()) / float64(r.Count)
			s.values[keyP99] = float64(r.P99) / 1e6
		})
	}
	if c == nil {
		return measure(b.backend.child, b.backends[0])
	}
	return b.with(ctx, c, measure)
}

const (
	// A measurement lasts for at most so many windows, until the contender has
	// used one part in so many of a window as processor time.
	maxWindows, minShare = 5, 10
)

// load lets a client work through p for the window.
func (b *bench) load(ctx context.Context, p *child, kind string, at netip.AddrPort, connections, rate int, result func(*sample, report, time.Duration)) (*sample, error) {
	d, err := b.client(ctx, kind, at, connections, rate)
	if err != nil {
		return nil, err
	}
	defer d.stop()
	if err := p.pause(ctx, b.sizes.warm); err != nil {
		return nil, err
	}
	pids, err := descendants(p.pid())
	if err != nil {
		return nil, err
	}
	loaders := []int{b.backend.pid(), d.pid()}
	if _, err := d.tell(ctx, "begin", "begun"); err != nil {
		return nil, err
	}
	before, err := cpuOf(pids)
	if err != nil {
		return nil, err
	}
	loadBefore, err := cpuOf(loaders)
	if err != nil {
		return nil, err
	}
	allBefore, err := machineCPU()
	if err != nil {
		return nil, err
	}
	// On a busy machine it takes longer until there is enough to measure.
	for range maxWindows {
		if err := p.pause(ctx, b.sizes.window); err != nil {
			return nil, err
		}
		if so, err := cpuOf(pids); err != nil || so.cpu-before.cpu >= b.sizes.window/minShare {
			break
		}
	}
	r, err := d.tell(ctx, "end", "ended")
	if err != nil {
		return nil, err
	}
	after, err := cpuOf(pids)
	if err != nil {
		return nil, err
	}
	loadAfter, err := cpuOf(loaders)
	if err != nil {
		return nil, err
	}
	allAfter, err := machineCPU()
	if err != nil {
		return nil, err
	}
	if r.Count == 0 || after.cpu == before.cpu {
		return nil, fmt.Errorf("%d answers with %v of processor time: too little to measure", r.Count, after.cpu-before.cpu)
	}
	wall := after.at.Sub(before.at).Seconds()
	s := &sample{
		values: map[string]float64{},
		busy:   (after.cpu - before.cpu).Seconds() / wall, loadBusy: (loadAfter.cpu - loadBefore.cpu).Seconds() / wall,
		rate: float64(r.Count) / wall, bunched: float64(r.Bunched) / float64(r.Count),
	}
	s.othersBusy = max(0, (allAfter-allBefore).Seconds()/wall-s.loadBusy)
	if p != b.backend.child {
		s.othersBusy = max(0, s.othersBusy-s.busy)
	}
	result(s, r, after.cpu-before.cpu)
	return s, nil
}

// idle measures the memory of streams that are silent.
func (b *bench) idle(ctx context.Context, c *contender) (*sample, error) {
	return b.with(ctx, c, func(p *child, at netip.AddrPort) (*sample, error) {
		// First what is used once only: code, pools, the first of everything.
		for _, kind := range []string{kindRequests, kindStreams} {
			d, err := b.client(ctx, kind, at, 32, 0)
			if err != nil {
				return nil, err
			}
			err = p.pause(ctx, b.sizes.warm/2)
			d.stop()
			if err != nil {
				return nil, err
			}
		}
		before, err := b.settledRSS(ctx, p)
		if err != nil {
			return nil, err
		}
		d, err := b.client(ctx, kindStreams, at, b.sizes.idle, 0)
		if err != nil {
			return nil, err
		}
		defer d.stop()
		after, err := b.settledRSS(ctx, p)
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
		return &sample{values: map[string]float64{metricIdle: float64(after-before) / 1024 / float64(b.sizes.idle)}}, nil
	})
}

// settledRSS reads the memory of p when it has stopped to change: four readings
// a quarter of a second apart within half a percent, or the last of eight seconds.
func (b *bench) settledRSS(ctx context.Context, p *child) (int64, error) {
	var last [4]int64
	for n := range 32 {
		pids, err := descendants(p.pid())
		if err != nil {
			return 0, err
		}
		rss, err := rssOf(pids)
		if err != nil {
			return 0, err
		}
		last[n%len(last)] = rss
		low, high := rss, rss
		for _, v := range last {
			low, high = min(low, v), max(high, v)
		}
		if float64(high-low) < 0.005*float64(high) {
			break
		}
		if err := p.pause(ctx, 250*time.Millisecond); err != nil {
			return 0, err
		}
	}
	pids, err := descendants(p.pid())
	if err != nil {
		return 0, err
	}
	return rssOf(pids)
}
