//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"fournines/bench/result"
	"fournines/bench/rig"
)

// The rows.
const (
	metricRequests    = "requests_per_cpu_second"
	metricCPUPerEvent = "sse_cpu_us_per_event"
	metricAddedP99    = "sse_added_p99_ms"
	metricIdle        = "sse_idle_kib_per_stream"
	metricChurn       = "connection_churn_per_cpu_second"
)

// measurements are all that can be measured at a bench, which may be nil when
// only the names of the rows are wanted.
func measurements(b *bench) []rig.Measurement {
	return []rig.Measurement{
		{
			Name: "requests", Rows: []rig.Row{{Metric: metricRequests, Better: result.Higher}},
			Run: func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
				return b.requests(ctx, c, kindRequests, metricRequests, b.sizes.connections)
			},
		}, {
			Name: "events", Rows: []rig.Row{{Metric: metricCPUPerEvent, Better: result.Lower}, {Metric: metricAddedP99, Better: result.Lower}},
			Run: b.events, AddedP99: metricAddedP99,
		}, {
			Name: "idle streams", Rows: []rig.Row{{Metric: metricIdle, Better: result.Lower}},
			Run: b.idle,
		}, {
			Name: "churn", Rows: []rig.Row{{Metric: metricChurn, Better: result.Higher}},
			Run: func(ctx context.Context, c *rig.Contender) (*rig.Sample, error) {
				return b.requests(ctx, c, kindChurn, metricChurn, b.sizes.churn)
			},
		},
	}
}

// run measures everything that the order asks for.
func run(ctx context.Context, o *rig.Order, progress io.Writer) (_ *result.Suite, notes string, err error) {
	r, err := rig.NewRunner(ctx, "gateway", o, ours(o.Program), peers, progress)
	if err != nil {
		return nil, "", err
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
	where := "Nothing was pinned: there is one processor."
	if b.proxyCPU != nil {
		where = fmt.Sprintf("Proxies ran on processor %d, with one worker or thread each; client and backend on processor %d.", b.proxyCPU[0], b.loadCPU[0])
	}
	return suite, r.Notes(where, "client and backend"), nil
}
