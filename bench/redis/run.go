//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"fournines/bench/result"
	"fournines/bench/rig"
)

// The rows beside those of rates.
const (
	metricAddedP99 = "added_p99_ms_half_load"
	metricCosts    = "cpu_us_per_op"
)

// sizes are how much load each measurement makes.
type sizes struct {
	clients, many int
	requests      int // of each kind of command, without pipelines
	rate          int // commands a second of the paced load
	length        time.Duration
}

var (
	fullSizes = sizes{clients: 50, many: 500, requests: 100_000, rate: 8000, length: 5 * time.Second}
	// quickSizes are so small that the start of a load counts.
	quickSizes = sizes{clients: 20, many: 50, requests: 5000, rate: 1000, length: 2 * time.Second}
)

// measurements are all that can be measured at a bench, which may be nil when
// only the names of the rows are wanted.
func measurements(b *bench) []rig.Measurement {
	var size sizes
	if b != nil {
		size = b.sizes
	}
	proxies := func(c *rig.Contender) bool { return c.Program != "" }
	var all []rig.Measurement
	rate := func(name, metric string, l closed, only func(*rig.Contender) bool) {
		all = append(all, rig.Measurement{
			Name: name, Rows: []rig.Row{{Metric: metric, Better: result.Higher}}, Only: only,
			Run: func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) { return b.closed(ctx, c, l, metric) },
		})
	}
	rate("set/get, 50", "set_get_p1_50_clients_ops", closed{clients: size.clients, pipeline: 1, requests: size.requests}, nil)
	rate("set/get, 50, 32 deep", "set_get_p32_50_clients_ops", closed{clients: size.clients, pipeline: 32, requests: 5 * size.requests}, nil)
	// A client that knows the cluster would have to split MGET itself, which
	// redis-benchmark does not.
	rate("mget of 10, 50", "mget10_p1_50_clients_ops", closed{clients: size.clients, pipeline: 1, requests: size.requests / 4, mget: true}, proxies)
	rate("set/get, 500", "set_get_p1_500_clients_ops", closed{clients: size.many, pipeline: 1, requests: size.requests}, nil)
	return append(all, rig.Measurement{
		Name: "set/get, paced", AddedP99: metricAddedP99, Only: proxies,
		Rows: []rig.Row{{Metric: metricAddedP99, Better: result.Lower}, {Metric: metricCosts, Better: result.Lower}},
		Run:  func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) { return b.paced(ctx, c) },
	})
}

// bench is one run's nodes and files.
type bench struct {
	sizes
	dir     string
	program string // redis-benchmark
	cluster *cluster
	free    rig.Addresses
	number  int // of measurements, to name their directories
}

func newBench(ctx context.Context, sizes sizes) (_ *bench, err error) {
	b := &bench{sizes: sizes, program: rig.InPath("redis-benchmark")}
	if b.program == "" {
		return nil, errors.New("redis-benchmark is not installed; see make setup")
	}
	if _, err := rig.RaiseFileLimit(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "fournines-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.cluster, err = startCluster(ctx, b.dir, &b.free); err != nil {
		return nil, fmt.Errorf("start the nodes: %w", err)
	}
	// All keys are there, for GET and MGET, under the names of both kinds of client.
	if err = b.cluster.fill(ctx); err != nil {
		return nil, err
	}
	_, err = benchmark(ctx, b.program, b.cluster.addresses[0], b.cluster.password, true, closed{clients: 20, pipeline: 32, requests: 5 * keys, fill: true})
	return b, err
}

func (b *bench) close() error {
	if b.cluster != nil {
		b.cluster.close()
	}
	return os.RemoveAll(b.dir)
}

// with runs f with a contender that has just been started, or with none.
func (b *bench) with(ctx context.Context, c *rig.Contender, f func(p *rig.Process, at netip.AddrPort) (*rig.Sample, error)) (*rig.Sample, error) {
	if c == nil || c.Program == "" {
		return f(nil, b.cluster.addresses[0])
	}
	b.number++
	dir := filepath.Join(b.dir, fmt.Sprintf("%d-%s", b.number, c.Name))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s := settings{Nodes: b.cluster.addresses, PasswordFile: b.cluster.passwordFile, Password: b.cluster.password}
	var err error
	if s.Listen, err = b.free.Free(); err != nil {
		return nil, err
	}
	if s.Admin, err = b.free.Free(); err != nil {
		return nil, err
	}
	p, err := c.Start(dir, nil, peerFiles, s)
	if err != nil {
		return nil, err
	}
	defer p.Stop()
	if err := rig.AwaitService(ctx, p, 3, ask(s.Listen, b.cluster.password)); err != nil {
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

// measured reads what everybody used while load ran.
func (b *bench) measured(p *rig.Process, load func() (*outcome, error)) (*outcome, *rig.Sample, time.Duration, error) {
	read := func() (proxy, nodes, all time.Duration, err error) {
		if p != nil {
			u, err := rig.CPUOf(p.PID())
			if err != nil {
				return 0, 0, 0, err
			}
			proxy = u.CPU
		}
		u, err := rig.CPUOf(b.cluster.pids()...)
		if err != nil {
			return 0, 0, 0, err
		}
		all, err = rig.MachineCPU()
		return proxy, u.CPU, all, err
	}
	began, self := time.Now(), ownCPU()
	proxy0, nodes0, all0, err := read()
	if err != nil {
		return nil, nil, 0, err
	}
	o, err := load()
	if err != nil {
		return nil, nil, 0, err
	}
	proxy1, nodes1, all1, err := read()
	if err != nil {
		return nil, nil, 0, err
	}
	wall := time.Since(began).Seconds()
	proxy := proxy1 - proxy0
	loaders := nodes1 - nodes0 + o.cpu + ownCPU() - self
	return o, &rig.Sample{
		Values: map[string]float64{}, P99: o.p99, Rate: o.rate, Busy: proxy.Seconds() / wall, LoadBusy: loaders.Seconds() / wall,
		OthersBusy: max(0, (all1-all0-proxy-loaders).Seconds()) / wall,
	}, proxy, nil
}

// ownCPU is the processor time of this process, which is the paced load.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *bench) closed(ctx context.Context, c *rig.Contender, l closed, metric string) (*rig.Sample, error) {
	return b.with(ctx, c, func(p *rig.Process, at netip.AddrPort) (*rig.Sample, error) {
		o, s, _, err := b.measured(p, func() (*outcome, error) {
			return benchmark(ctx, b.program, at, b.cluster.password, p == nil, l)
		})
		if err != nil {
			return nil, err
		}
		s.Values[metric] = o.rate
		return s, nil
	})
}

func (b *bench) paced(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
	return b.with(ctx, c, func(p *rig.Process, at netip.AddrPort) (*rig.Sample, error) {
		addresses := b.cluster.addresses
		if p != nil {
			addresses = []netip.AddrPort{at}
		}
		o, s, proxy, err := b.measured(p, func() (*outcome, error) {
			return paced(ctx, addresses, b.cluster.password, b.clients, b.rate, b.length)
		})
		if err != nil {
			return nil, err
		}
		if p != nil {
			s.Values[metricCosts] = float64(proxy.Microseconds()) / float64(o.ops)
		}
		return s, nil
	})
}

// run measures everything that the order asks for.
func run(ctx context.Context, o *rig.Order, progress io.Writer) (_ *result.Suite, notes string, err error) {
	r, err := rig.NewRunner(ctx, "redis", o, ours(o.Program), peers, progress)
	if err != nil {
		return nil, "", err
	}
	if slices.Contains(o.Peers, direct) {
		r.Enter(&rig.Contender{Name: direct, Title: direct})
	}
	sizes := fullSizes
	if o.Quick {
		sizes = quickSizes
	}
	b, err := newBench(ctx, sizes)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	suite, err := r.Run(ctx, measurements(b))
	if err != nil {
		return nil, "", err
	}
	where := "Proxy, nodes (three masters) and redis-benchmark shared all processors. `direct` is redis-benchmark that knows the cluster."
	if o.Quick {
		where += fmt.Sprintf(" **Quick: %d clients instead of 50, %d instead of 500, %d requests each.**", sizes.clients, sizes.many, sizes.requests)
	}
	return suite, r.Notes(where, "nodes and client"), nil
}
