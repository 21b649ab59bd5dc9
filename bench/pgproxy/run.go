//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"fournines/bench/result"
	"fournines/bench/rig"
)

// The rows beside those of rates.
const (
	metricAddedP99 = "added_p99_ms"
	metricCosts    = "cpu_us_per_transaction"
	metricIdle     = "idle_kib_per_client"
	metricClassify = "classify_known_shape_ns"
)

// measurements are all that can be measured at a bench, which may be nil when
// only the names of the rows are wanted.
func measurements(b *bench) []rig.Measurement {
	var size sizes
	if b != nil {
		size = b.sizes
	}
	higher := func(metric string) rig.Row { return rig.Row{Metric: metric, Better: result.Higher} }
	lower := func(metric string) rig.Row { return rig.Row{Metric: metric, Better: result.Lower} }
	// Splitting is measured where it is compared, with the usual number of clients.
	usual := func(c *rig.Contender) bool { return c.Name != splitting }
	proxies := func(c *rig.Contender) bool { return c.Program != "" && usual(c) }
	var all []rig.Measurement
	rate := func(name, metric string, l load) {
		only := usual
		if l.clients == size.clients {
			only = nil
		}
		for _, prepared := range []bool{false, true} {
			name, metric, l := name, metric, l
			if l.prepared = prepared; prepared {
				name, metric = name+", prepared", metric+"_prepared"
			}
			l.seconds = size.seconds
			all = append(all, rig.Measurement{Name: name, Rows: []rig.Row{higher(metric)}, Only: only, Run: func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
				return b.load(ctx, c, l, metric, "")
			}})
		}
	}
	rate("select, 1", "select_only_tps_1_client", load{script: selectOnly, clients: 1})
	rate("select, 50", "select_only_tps_50_clients", load{script: selectOnly, clients: size.clients})
	rate("select, 500", "select_only_tps_500_clients", load{script: selectOnly, clients: size.many})
	rate("tpcb, 50", "tpcb_tps_50_clients", load{script: tpcb, clients: size.clients})
	return append(all,
		rig.Measurement{
			Name: "select, paced", Rows: []rig.Row{lower(metricAddedP99), lower(metricCosts)}, AddedP99: metricAddedP99, Only: proxies,
			Run: func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
				return b.load(ctx, c, load{script: selectOnly, clients: size.clients, seconds: size.seconds, rate: size.rate}, "", metricCosts)
			},
		},
		rig.Measurement{
			Name: "idle clients", Rows: []rig.Row{lower(metricIdle)}, Only: proxies,
			Run: func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) { return b.idleMemory(ctx, c) },
		},
		rig.Measurement{
			Name: "classify", Rows: []rig.Row{lower(metricClassify)}, Only: func(c *rig.Contender) bool { return c.Name == "ours" },
			Run: func(context.Context, *rig.Contender) (*rig.Sample, error) {
				return &rig.Sample{Values: map[string]float64{metricClassify: classify()}}, nil
			},
		},
	)
}

// run measures everything that the order asks for.
func run(ctx context.Context, o *rig.Order, progress io.Writer) (_ *result.Suite, notes string, err error) {
	r, err := rig.NewRunner(ctx, "pgproxy", o, ours("ours", "ours", o.Program), peers, progress)
	if err != nil {
		return nil, "", err
	}
	if slices.Contains(o.Peers, direct) {
		r.Enter(&rig.Contender{Name: direct, Title: direct})
	}
	if slices.Contains(o.Peers, splitting) {
		r.Enter(ours(splitting, "ours with splitting", o.Program))
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
	for _, c := range r.Contenders() {
		if c.Name == "pgbouncer" || c.Name == pgpool {
			c.Owner = b.cluster.Owner // they refuse to be root
		}
	}
	suite, err := r.Run(ctx, measurements(b))
	if err != nil {
		return nil, "", err
	}
	where := fmt.Sprintf("Proxy, servers (a primary and a standby) and pgbench shared all processors. Those who pool had %d server connections, but one for each client in `tpcb_tps_50_clients_prepared`; PgBouncer before 1.21 cannot pool clients with prepared statements, so it had one for each of them in all such rows.", poolSize)
	if o.Quick {
		where += fmt.Sprintf(" **Quick: %d clients instead of 50, %d instead of 500, %d idle ones instead of 5000, %d s each.**", sizes.clients, sizes.many, sizes.idle, sizes.seconds)
	}
	return suite, r.Notes(where, "servers and pgbench"), nil
}
