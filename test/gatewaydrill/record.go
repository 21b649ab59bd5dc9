package gatewaydrill

import (
	"context"
	"sync"
	"time"

	"fournines/drill"
)

// record is what clients got from a load.
type record struct {
	stop    context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	samples []drill.Sample
}

// record puts the cluster under load until ctx ends or end is called. beside
// runs as long as the load does.
func (c *Cluster) record(ctx context.Context, load drill.Load, beside func(context.Context)) *record {
	load.URL = c.URL()
	ctx, stop := context.WithCancel(ctx)
	r := &record{stop: stop}
	r.running.Go(func() {
		load.Run(ctx, func(s drill.Sample) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.samples = append(r.samples, s)
		})
	})
	r.running.Go(func() { beside(ctx) })
	return r
}

// end ends the load, waits until all that runs for it has ended, and returns
// when the load was ended. A further call changes nothing.
func (r *record) end() time.Time {
	r.stop()
	at := time.Now()
	r.running.Wait()
	return at
}

// after returns the samples that came after the first n.
func (r *record) after(n int) []drill.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.samples[n:]
}
