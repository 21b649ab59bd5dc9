//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"fournines/bench/postgres"
	"fournines/bench/rig"
	"fournines/internal/process"
)

// sizes are how much load each measurement makes.
type sizes struct {
	scale   int // of pgbench's tables: 100,000 accounts each
	clients int // of most rows
	many    int // of the row with many
	rate    int // transactions a second of the latency row
	idle    int // clients of the memory row
	seconds int // of one measurement
}

var (
	fullSizes  = sizes{scale: 10, clients: 50, many: 500, rate: 2000, idle: 5000, seconds: 4}
	quickSizes = sizes{scale: 1, clients: 20, many: 50, rate: 500, idle: 300, seconds: 1}
)

// poolSize is how many server connections those who pool have. Two processors
// have no use for more.
const poolSize = 20

// bench is one run's servers and files.
type bench struct {
	sizes
	dir     string
	program string // pgbench
	cluster *postgres.Cluster
	free    rig.Addresses
	number  int // of measurements, to name their directories
}

// newBench starts the servers, a primary and a standby, and fills them.
func newBench(ctx context.Context, sizes sizes) (_ *bench, err error) {
	b := &bench{sizes: sizes, program: rig.InPath("pgbench")}
	if b.program == "" {
		return nil, errors.New("pgbench is not installed; see make setup")
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
	b.cluster, err = postgres.Start(ctx, &b.free, postgres.Options{
		Dir: b.dir, Standbys: 1,
		// Room for one connection of each client of those who do not pool.
		Settings: map[string]string{"max_connections": strconv.Itoa(sizes.many + 100)},
	})
	if err != nil {
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	return b, b.fill(ctx)
}

// fill makes pgbench's tables, and waits until the standby has them.
func (b *bench) fill(ctx context.Context) error {
	at := b.cluster.Primary().Address
	if err := b.runProgram(ctx, "-i", "-q", "-s", strconv.Itoa(b.scale), "-h", at.Addr().String(), "-p", strconv.Itoa(int(at.Port())), "-U", postgres.User, postgres.User); err != nil {
		return err
	}
	return b.cluster.AwaitStandbys(ctx)
}

func (b *bench) close() error {
	if b.cluster != nil {
		b.cluster.Close()
	}
	return os.RemoveAll(b.dir)
}

// with runs f with a contender that has just been started, or with none.
func (b *bench) with(ctx context.Context, c *rig.Contender, l load, f func(p *rig.Process, dir string, at netip.AddrPort) (*rig.Sample, error)) (*rig.Sample, error) {
	b.number++
	name := direct
	if c != nil {
		name = c.Name
	}
	dir := filepath.Join(b.dir, fmt.Sprintf("%d-%s", b.number, name))
	if err := process.MkdirAll(dir, 0o755, b.cluster.Owner); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if c == nil || c.Program == "" {
		return f(nil, dir, b.cluster.Primary().Address)
	}
	s := settings{
		Servers: b.cluster.Servers, Primary: b.cluster.Primary().Address, Dir: dir,
		User: postgres.User, ProbeUser: postgres.ProbeUser, Password: b.cluster.Password, PasswordFile: b.cluster.PasswordFile,
		Pool: poolSize, MaxClients: b.idle + 1000, Clients: l.clients, Children: l.clients + 10, Prepared: l.prepared,
		Splitting: name == splitting,
	}
	if l.prepared && l.script == tpcb {
		// One thread of pgbench has many clients, and waits for the answer when it
		// prepares for one of them, while others of them hold server connections.
		s.Pool = max(poolSize, l.clients)
	}
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
	err = rig.AwaitService(ctx, p, 3, ask(b.cluster.DSN(s.Listen)))
	if err != nil {
		return nil, err
	}
	got, err := f(p, dir, s.Listen)
	if err != nil {
		if ended := p.Alive(); ended != nil {
			err = ended
		}
		return nil, err
	}
	return got, nil
}

// load lets pgbench work through a contender. The figure of the row metric is
// its rate; with a metric for it, costs are the contender's processor time for
// each transaction.
func (b *bench) load(ctx context.Context, c *rig.Contender, l load, metric, costs string) (*rig.Sample, error) {
	return b.with(ctx, c, l, func(p *rig.Process, dir string, at netip.AddrPort) (*rig.Sample, error) {
		// First what is done once only: connections to the servers, caches.
		warm := l
		warm.clients, warm.each, warm.rate = min(l.clients, b.clients), 20, 0
		first, err := b.pgbench(ctx, dir, at, warm)
		if err != nil {
			return nil, err
		}
		// pgbench's time runs while it connects, which takes some proxies long.
		connecting := first.connecting.Seconds() * float64(l.clients) / float64(warm.clients)
		l.seconds += int(math.Ceil(connecting))
		before, err := b.usage(p)
		if err != nil {
			return nil, err
		}
		o, err := b.pgbenchWithTime(ctx, dir, at, l)
		if err != nil {
			return nil, err
		}
		after, err := b.usage(p)
		if err != nil {
			return nil, err
		}
		wall := after.at.Sub(before.at).Seconds()
		proxy := (after.proxy - before.proxy).Seconds()
		loaders := (after.servers - before.servers + o.cpu).Seconds()
		s := &rig.Sample{
			Values: map[string]float64{}, P99: o.p99, Rate: o.tps, Busy: proxy / wall, LoadBusy: loaders / wall,
			OthersBusy: max(0, (after.all-before.all).Seconds()-proxy-loaders) / wall,
		}
		if metric != "" {
			s.Values[metric] = o.tps
		}
		if costs != "" && p != nil {
			s.Values[costs] = 1e6 * proxy / float64(o.transactions)
		}
		return s, nil
	})
}

// usage is the processor time of everybody at one moment.
type usage struct {
	proxy, servers, all time.Duration
	at                  time.Time
}

func (b *bench) usage(p *rig.Process) (usage, error) {
	var u usage
	if p != nil {
		proxy, err := rig.CPUOf(p.PID())
		if err != nil {
			return u, err
		}
		u.proxy = proxy.CPU
	}
	servers, err := rig.CPUOf(b.cluster.PIDs()...)
	if err != nil {
		return u, err
	}
	u.servers, u.at = servers.CPU, servers.At
	u.all, err = rig.MachineCPU()
	return u, err
}

// silence is how long idle clients are silent before they are measured.
const silence = 5 * time.Second

// idleMemory measures the memory of clients that have asked once and are silent.
func (b *bench) idleMemory(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
	if !pools(c) {
		return nil, errNoPooling(b.idle)
	}
	return b.with(ctx, c, load{}, func(p *rig.Process, _ string, at netip.AddrPort) (*rig.Sample, error) {
		// First what is used once only: code, the server connections, the first of everything.
		warm, err := b.connect(ctx, at, 2*poolSize)
		warm.close()
		if err != nil {
			return nil, err
		}
		before, err := p.Memory(ctx)
		if err != nil {
			return nil, err
		}
		clients, err := b.connect(ctx, at, b.idle)
		defer clients.close()
		if err != nil {
			return nil, err
		}
		if err := p.Pause(ctx, silence); err != nil {
			return nil, err
		}
		after, err := p.Memory(ctx)
		if err != nil {
			return nil, err
		}
		// They are still there.
		for i := 0; i < len(clients); i += max(1, len(clients)/50) {
			if err := query(ctx, clients[i]); err != nil {
				return nil, fmt.Errorf("after it was idle, client %d: %w", i, err)
			}
		}
		return &rig.Sample{Values: map[string]float64{metricIdle: float64(after-before) / 1024 / float64(b.idle)}}, nil
	})
}

type connections []*pgconn.PgConn

// connect makes n connections, each of which asks once. Those that were made
// are returned also with an error.
func (b *bench) connect(ctx context.Context, at netip.AddrPort, n int) (connections, error) {
	config, err := pgconn.ParseConfig(b.cluster.DSN(at))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, fmt.Errorf("%d clients could not log in within five minutes", n))
	defer cancel()
	var (
		mu    sync.Mutex
		all   connections
		first error
		wg    sync.WaitGroup
		todo  = make(chan struct{}, n)
	)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	for range 16 {
		wg.Go(func() {
			for range todo {
				conn, err := pgconn.ConnectConfig(ctx, config)
				if err == nil {
					err = query(ctx, conn)
				}
				mu.Lock()
				if conn != nil {
					all = append(all, conn)
				}
				if err != nil && first == nil {
					first = err
				}
				failed := first != nil
				mu.Unlock()
				if failed {
					return
				}
			}
		})
	}
	wg.Wait()
	return all, first
}

func (c connections) close() {
	// Without the goodbye: five thousand would take long.
	for _, conn := range c {
		_ = conn.Conn().Close()
	}
}

// runProgram runs pgbench with arguments, for what is not measured.
func (b *bench) runProgram(ctx context.Context, args ...string) error {
	cmd := b.command(ctx, b.dir, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench: %w: %s", err, lastLines(string(out), 3))
	}
	return nil
}
