//go:build linux

// Command splitting measures what read/write splitting costs in each of its
// modes: how long reads and transactions take, and what the primary has to do for
// them, with the primary in the proxy's own zone and 30 ms away. `make
// bench-splitting` runs it.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/bench/postgres"
	"fournines/bench/result"
	"fournines/bench/rig"
)

//go:embed peers
var files embed.FS

// farTrip is the round trip between the zones of the far rows.
const farTrip = 30 * time.Millisecond

// The load: clients that each do one thing per pause, and a writer beside them.
const (
	clients    = 64
	pause      = 250 * time.Millisecond
	writePause = 20 * time.Millisecond
	readsInTx  = 3 // of a transaction
)

const (
	read  = `SELECT v FROM items WHERE id = `
	write = `UPDATE counters SET n = n + 1 WHERE id = 1`
)

// modes are the contenders, ours first; the last has no splitting.
var modes = []string{"fence", "session", "bounded", "off"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := rig.ParseOrder("splitting", args, rig.Metrics(measurements(nil)), modes[1:], stderr)
	if err != nil {
		return err
	}
	contender := func(mode string) *rig.Contender {
		return &rig.Contender{
			Name: mode, Title: mode, Program: o.Program,
			Files: map[string]string{"fournines.yaml.tmpl": "pgproxy.yaml"}, Argv: []string{"pgproxy", "--config", "{dir}/pgproxy.yaml"},
		}
	}
	r, err := rig.NewRunner(ctx, "splitting", o, contender(modes[0]), nil, stderr)
	if err != nil {
		return err
	}
	for _, mode := range modes[1:] {
		if slices.Contains(o.Peers, mode) {
			r.Enter(contender(mode))
		}
	}
	length := 10 * time.Second
	if o.Quick {
		length = time.Second
	}
	b, err := newBench(ctx, length)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	suite, err := r.Run(ctx, measurements(b))
	if err != nil {
		return err
	}
	notes := r.Notes(fmt.Sprintf("`ours` is the mode fence. %d clients each sent a read, and then a transaction of %d reads as SQLAlchemy does, every %v, through a proxy beside the standby; a writer committed every %v at the primary. In the rows `far_` the primary is %v away from proxy and standby, in `near_` it is not.", clients, readsInTx, pause, writePause, farTrip), "servers and clients")
	if err := suite.Write(o.Output, notes); err != nil {
		return err
	}
	fmt.Fprint(stdout, suite.Markdown(), "\n", notes)
	return nil
}

// measurements are all that can be measured at a bench, which may be nil when
// only the names of the rows are wanted.
func measurements(b *bench) []rig.Measurement {
	var all []rig.Measurement
	for _, zone := range []struct {
		name string
		trip time.Duration
	}{{"near", 0}, {"far", farTrip}} {
		for _, what := range []string{"read", "transaction"} {
			rows := func(names ...string) (rows []rig.Row) {
				for _, name := range names {
					rows = append(rows, rig.Row{Metric: zone.name + "_" + what + "_" + name, Better: result.Lower})
				}
				return rows
			}(medianMS, p99MS, statements, cpuMicros)
			all = append(all, rig.Measurement{
				Name: zone.name + " " + what, Rows: rows,
				Run: func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
					s, err := b.measure(ctx, c, zone.trip, what == "transaction")
					if err != nil {
						return nil, err
					}
					values := map[string]float64{}
					for name, v := range s.Values {
						values[zone.name+"_"+what+"_"+name] = v
					}
					s.Values = values
					return s, nil
				},
			})
		}
	}
	return all
}

// What each measurement tells of one read or transaction.
const (
	medianMS   = "median_ms"
	p99MS      = "p99_ms"
	statements = "primary_statements" // that the primary has executed for it
	cpuMicros  = "primary_cpu_us"     // processor time of the primary, the writer's included
)

// bench is a primary and a standby, with the way between their zones.
type bench struct {
	length  time.Duration
	dir     string
	free    rig.Addresses
	cluster *postgres.Cluster
	proxies *relay // from the proxy to the primary
	wal     *relay // from the standby to the primary
	admin   *pgx.Conn
}

// settings fill the template in peers/.
type settings struct {
	Listen, Primary, Standby netip.AddrPort
	User, PasswordFile, Mode string
}

func newBench(ctx context.Context, length time.Duration) (_ *bench, err error) {
	b := &bench{length: length}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "fournines-bench-"); err != nil {
		return nil, err
	}
	way := func(to netip.AddrPort) (*relay, error) {
		at, err := b.free.Free()
		if err != nil {
			return nil, err
		}
		return newRelay(ctx, at, to)
	}
	b.cluster, err = postgres.Start(ctx, &b.free, postgres.Options{
		Dir: b.dir, Standbys: 1, Settings: map[string]string{"shared_preload_libraries": "pg_stat_statements"},
		Replication: func(primary netip.AddrPort) (netip.AddrPort, error) {
			if b.wal, err = way(primary); err != nil {
				return netip.AddrPort{}, err
			}
			return b.wal.address(), nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	if b.proxies, err = way(b.cluster.Primary().Address); err != nil {
		return nil, err
	}
	if b.admin, err = b.cluster.Admin(ctx); err != nil {
		return nil, err
	}
	for _, sql := range []string{
		`CREATE EXTENSION pg_stat_statements`, `GRANT pg_read_all_stats TO ` + postgres.ProbeUser,
	} {
		if _, err := b.admin.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.Connect(ctx, b.cluster.DSN(b.cluster.Primary().Address))
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range []string{
		`CREATE TABLE items (id int PRIMARY KEY, v text)`, `INSERT INTO items SELECT g, repeat('x', 200) FROM generate_series(0, 9999) g`,
		`CREATE TABLE counters (id int PRIMARY KEY, n int)`, `INSERT INTO counters VALUES (1, 0)`, `ANALYZE`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	return b, b.cluster.AwaitStandbys(ctx)
}

func (b *bench) close() error {
	var errs []error
	if b.admin != nil {
		errs = append(errs, b.admin.Close(context.Background()))
	}
	if b.cluster != nil {
		b.cluster.Close()
	}
	for _, r := range []*relay{b.proxies, b.wal} {
		if r != nil {
			errs = append(errs, r.close())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// measure starts a proxy and lets the clients read through it.
func (b *bench) measure(ctx context.Context, c *rig.Contender, trip time.Duration, transaction bool) (_ *rig.Sample, err error) {
	b.wal.delay.Store(int64(trip))
	b.proxies.delay.Store(int64(trip))
	own, err := os.MkdirTemp(b.dir, "proxy-")
	if err != nil {
		return nil, err
	}
	at, err := b.free.Free()
	if err != nil {
		return nil, err
	}
	s := settings{Listen: at, Primary: b.cluster.Primary().Address, Standby: b.cluster.Servers[1].Address, User: postgres.User, PasswordFile: b.cluster.PasswordFile, Mode: c.Name}
	if trip > 0 {
		s.Primary = b.proxies.address()
	}
	p, err := c.Start(own, nil, files, s)
	if err != nil {
		return nil, err
	}
	defer p.Stop()
	dsn := b.cluster.DSN(at)
	if err := rig.AwaitService(ctx, p, 1, func(ctx context.Context) error { return b.placed(ctx, dsn, c.Name) }); err != nil {
		return nil, err
	}
	writing, stop := context.WithCancel(ctx)
	written := make(chan error, 1)
	go func() { written <- b.write(writing) }()
	defer stop()
	load, err := newLoad(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer load.close()
	if _, err := load.run(ctx, min(b.length, time.Second), transaction); err != nil { // opens connections
		return nil, err
	}
	before, err := b.primary(ctx, p)
	if err != nil {
		return nil, err
	}
	took, err := load.run(ctx, b.length, transaction)
	if err != nil {
		return nil, err
	}
	after, err := b.primary(ctx, p)
	if err != nil {
		return nil, err
	}
	stop()
	if err := <-written; err != nil {
		return nil, fmt.Errorf("the writer: %w", err)
	}
	slices.Sort(took)
	n, wall := float64(len(took)), after.at.Sub(before.at).Seconds()
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return &rig.Sample{
		Values: map[string]float64{
			medianMS: ms(took[len(took)/2]), p99MS: ms(took[(len(took)*99+99)/100-1]),
			statements: float64(after.statements-before.statements) / n,
			cpuMicros:  float64((after.cpu - before.cpu).Microseconds()) / n,
		},
		Rate:       n / wall,
		Busy:       (after.proxy - before.proxy).Seconds() / wall,
		LoadBusy:   (after.ours - before.ours - after.proxy + before.proxy).Seconds() / wall,
		OthersBusy: max(0, (after.all-before.all-after.ours+before.ours).Seconds()/wall),
	}, nil
}

// placed waits until reads go where they will go.
func (b *bench) placed(ctx context.Context, dsn, mode string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	before, err := b.reads(ctx)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, read+"1"); err != nil {
		return err
	}
	after, err := b.reads(ctx)
	if err != nil {
		return err
	}
	if mode != "off" && after > before {
		return errors.New("reads do not go to the standby yet")
	}
	return nil
}

// reads is how many of the load's reads the primary has executed.
func (b *bench) reads(ctx context.Context) (n int64, err error) {
	err = b.admin.QueryRow(ctx, `SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query LIKE $1 || '%'`, read).Scan(&n)
	return n, err
}

// state is what the primary has done so far.
type state struct {
	statements int64 // without the writer's and the bench's own
	cpu        time.Duration
	at         time.Time
	// Processor time of the proxy, of all that this bench has started and itself,
	// and of the machine.
	proxy, ours, all time.Duration
}

func (b *bench) primary(ctx context.Context, p *rig.Process) (s state, err error) {
	if err := b.admin.QueryRow(ctx, `SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query NOT LIKE 'UPDATE counters%' AND query NOT LIKE '%pg_stat_statements%'`).Scan(&s.statements); err != nil {
		return s, err
	}
	for _, of := range []struct {
		pid int
		to  *time.Duration
	}{{b.cluster.Primary().PID(), &s.cpu}, {p.PID(), &s.proxy}, {os.Getpid(), &s.ours}} {
		u, err := rig.CPUOf(of.pid)
		if err != nil {
			return s, err
		}
		*of.to, s.at = u.CPU, u.At
	}
	s.all, err = rig.MachineCPU()
	return s, err
}

// write commits at the primary itself until ctx ends.
func (b *bench) write(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, b.cluster.DSN(b.cluster.Primary().Address))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(writePause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := conn.Exec(context.WithoutCancel(ctx), write); err != nil {
			return err
		}
	}
}

// load is the clients, each with a connection of its own.
type load struct{ conns []*pgx.Conn }

func newLoad(ctx context.Context, dsn string) (*load, error) {
	l := &load{}
	for range clients {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			l.close()
			return nil, err
		}
		l.conns = append(l.conns, conn)
	}
	return l, nil
}

func (l *load) close() {
	for _, c := range l.conns {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = c.Close(ctx)
		cancel()
	}
}

// run lets all clients work for a time, and returns how long each read or
// transaction took. What is late because the one before it was slow counts from
// when it was due.
func (l *load) run(ctx context.Context, length time.Duration, transaction bool) ([]time.Duration, error) {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		all    []time.Duration
		failed error
	)
	began := time.Now()
	for i, conn := range l.conns {
		wg.Go(func() {
			var took []time.Duration
			var err error
			due := began.Add(pause * time.Duration(i) / clients)
			for n := 0; err == nil && due.Before(began.Add(length)); n++ {
				select {
				case <-time.After(time.Until(due)):
				case <-ctx.Done():
				}
				if err = once(ctx, conn, (i*7919+n*31)%10000, transaction); err == nil {
					took = append(took, time.Since(due))
				}
				due = due.Add(pause)
			}
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	return all, failed
}

// once does one read, or one transaction, with the simple protocol as psycopg2.
func once(ctx context.Context, conn *pgx.Conn, id int, transaction bool) error {
	texts := []string{fmt.Sprint(read, id)}
	if transaction {
		texts = []string{"BEGIN"}
		for i := range readsInTx {
			texts = append(texts, fmt.Sprint(read, (id+i)%10000))
		}
		texts = append(texts, "ROLLBACK") // what SQLAlchemy ends a session of reads with
	}
	for _, sql := range texts {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}
