//go:build linux

// Command imports measures what a bulk import of knowledge does to the reads of
// chats: their p95 while nothing else happens and while writers insert as fast as
// they can, through pgproxy with a standby and on a single server without.
// `make bench-import` runs it.
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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/bench/postgres"
	"fournines/bench/result"
	"fournines/bench/rig"
	"fournines/internal/process"
)

//go:embed peers
var files embed.FS

// The rows.
const (
	metricIdle     = "chat_read_p95_idle_ms"
	metricImport   = "chat_read_p95_import_ms"
	metricSlowdown = "chat_read_p95_slowdown"
	metricRows     = "imported_rows_per_second"
)

const (
	readers  = 8                     // chats at a time
	pause    = 20 * time.Millisecond // between two reads of one chat
	writers  = 4                     // of the import
	perBatch = 50                    // segments of one transaction
	direct   = "single server"
	importer = "importer" // the user of the writers
)

// schema is a part of Dify's: what a chat reads and what an import writes.
var schema = []string{
	`CREATE TABLE messages (id bigserial PRIMARY KEY, conversation_id int NOT NULL, query text, answer text, created_at timestamp DEFAULT now())`,
	`INSERT INTO messages (conversation_id, query, answer) SELECT g % 2000, repeat('q', 100), repeat('a', 500) FROM generate_series(1, 40000) g`,
	`CREATE INDEX ON messages (conversation_id, created_at)`,
	`CREATE TABLE segments (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), document int NOT NULL, position int, content text, keywords tsvector)`,
	`CREATE INDEX ON segments (document, position)`,
	`CREATE INDEX ON segments USING gin (keywords)`,
	`GRANT INSERT ON segments TO ` + importer,
	`ANALYZE messages`,
}

const (
	read   = `SELECT id, query, answer, created_at FROM messages WHERE conversation_id = $1 ORDER BY created_at DESC LIMIT 20`
	insert = `INSERT INTO segments (document, position, content, keywords) SELECT $1::int, g, t, to_tsvector('english', t) FROM (SELECT g, (SELECT string_agg(md5(g::text || w || $1::int), ' ') FROM generate_series(1, 30) w) AS t FROM generate_series(1, $2::int) g) x`
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := rig.ParseOrder("import", args, rig.Metrics(measurements(0)), []string{direct}, stderr)
	if err != nil {
		return err
	}
	ours := &rig.Contender{
		Name: "ours", Title: "ours", Program: o.Program,
		Files: map[string]string{"fournines.yaml.tmpl": "pgproxy.yaml"}, Argv: []string{"pgproxy", "--config", "{dir}/pgproxy.yaml"},
	}
	r, err := rig.NewRunner(ctx, "import", o, ours, nil, stderr)
	if err != nil {
		return err
	}
	if slices.Contains(o.Peers, direct) {
		r.Enter(&rig.Contender{Name: "direct", Title: direct})
	}
	length := 10 * time.Second
	if o.Quick {
		length = 2 * time.Second
	}
	suite, err := r.Run(ctx, measurements(length))
	if err != nil {
		return err
	}
	notes := r.Notes(fmt.Sprintf("Each server had one processor of its own, shared with the clients and with pgproxy: %d chats read every %v, %d writers imported.", readers, pause, writers), "clients and servers")
	if err := suite.Write(o.Output, notes); err != nil {
		return err
	}
	fmt.Fprint(stdout, suite.Markdown(), "\n", notes)
	return nil
}

func measurements(length time.Duration) []rig.Measurement {
	return []rig.Measurement{{
		Name: "import",
		Rows: []rig.Row{{Metric: metricIdle, Better: result.Lower}, {Metric: metricImport, Better: result.Lower}, {Metric: metricSlowdown, Better: result.Lower}, {Metric: metricRows, Better: result.Higher}},
		Run:  func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) { return measure(ctx, c, length) },
	}}
}

// settings fill the template in peers/.
type settings struct {
	Listen                       netip.AddrPort
	Servers                      []*postgres.Server
	User, Importer, PasswordFile string
}

// measure starts servers and, for ours, a standby and the proxy; it reads alone
// for the given time, and then beside an import.
func measure(ctx context.Context, c *rig.Contender, length time.Duration) (_ *rig.Sample, err error) {
	dir, err := os.MkdirTemp("", "fournines-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cpus, err := rig.Processors()
	if err != nil {
		return nil, err
	}
	var free rig.Addresses
	options := postgres.Options{Dir: dir, CPUs: cpus, Users: []string{importer}}
	if c.Program != "" {
		options.Standbys = 1
	}
	cluster, err := postgres.Start(ctx, &free, options)
	if err != nil {
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	defer cluster.Close()
	at := cluster.Primary().Address
	if err := prepare(ctx, cluster.DSN(at)); err != nil {
		return nil, err
	}
	if err := cluster.AwaitStandbys(ctx); err != nil {
		return nil, err
	}
	if c.Program != "" {
		own := filepath.Join(dir, "ours")
		if err := process.MkdirAll(own, 0o755, cluster.Owner); err != nil {
			return nil, err
		}
		if at, err = free.Free(); err != nil {
			return nil, err
		}
		p, err := c.Start(own, nil, files, settings{Listen: at, Servers: cluster.Servers, User: postgres.User, Importer: importer, PasswordFile: cluster.PasswordFile})
		if err != nil {
			return nil, err
		}
		defer p.Stop()
		if err := rig.AwaitService(ctx, p, 3, func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, cluster.DSN(at))
			if err != nil {
				return err
			}
			return conn.Close(ctx)
		}); err != nil {
			return nil, err
		}
	}
	dsn := cluster.DSN(at)
	idle, err := chats(ctx, dsn, length)
	if err != nil {
		return nil, fmt.Errorf("reads: %w", err)
	}
	importing, stop := context.WithCancel(ctx)
	defer stop()
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		rows   int
		failed error
	)
	began := time.Now()
	for i := range writers {
		wg.Go(func() {
			n, err := write(importing, cluster.DSNFor(importer, at), i)
			mu.Lock()
			defer mu.Unlock()
			rows, failed = rows+n, errors.Join(failed, err)
		})
	}
	busy, err := chats(ctx, dsn, length)
	took := time.Since(began)
	stop()
	wg.Wait()
	if err := errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("beside the import: %w", err)
	}
	return &rig.Sample{Values: map[string]float64{
		metricIdle: idle, metricImport: busy, metricSlowdown: busy / idle, metricRows: float64(rows) / took.Seconds(),
	}}, nil
}

func prepare(ctx context.Context, dsn string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range schema {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", strings.Fields(sql)[0], err)
		}
	}
	return nil
}

// chats reads as several chats do, each on a connection of its own, and returns
// the p95 of a read in ms. A read that is late because the one before it was
// slow counts from when it was due.
func chats(ctx context.Context, dsn string, length time.Duration) (float64, error) {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		all    []float64
		failed error
	)
	for i := range readers {
		wg.Go(func() {
			took, err := chat(ctx, dsn, i, length)
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	if failed != nil || len(all) == 0 {
		return 0, errors.Join(failed, ctx.Err())
	}
	slices.Sort(all)
	return all[(len(all)*95+99)/100-1], nil
}

func chat(ctx context.Context, dsn string, seed int, length time.Duration) (took []float64, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	end := time.Now().Add(length)
	due := time.Now().Add(pause * time.Duration(seed) / readers)
	for n := 0; due.Before(end); n++ {
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		rows, err := conn.Query(ctx, read, (seed*7919+n*31)%2000)
		if err != nil {
			return nil, err
		}
		got := 0
		for rows.Next() {
			got++
		}
		if err := rows.Err(); err != nil {
			return nil, err
		}
		if got != 20 {
			return nil, fmt.Errorf("a conversation has %d messages, not 20", got)
		}
		took = append(took, float64(time.Since(due).Microseconds())/1000)
		due = due.Add(pause)
	}
	return took, nil
}

// write inserts batches until ctx ends, and returns how many rows are committed.
func write(ctx context.Context, dsn string, writer int) (rows int, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for document := writer; ; document += writers {
		if _, err := conn.Exec(ctx, insert, document, perBatch); err != nil {
			if ctx.Err() != nil {
				return rows, nil
			}
			return rows, err
		}
		rows += perBatch
	}
}
