package difysim

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// core is the one processor that a Python process can use. Its time is given out
// in turns of at most a slice, first come first served, so that requests share it
// as greenlets do.
type core struct {
	slice time.Duration
	burn  bool
	used  prometheus.Counter

	mu   sync.Mutex
	free time.Time // when the time that is given out so far ends
	turn chan struct{}
}

func newCore(cfg CPUConfig, used prometheus.Counter) *core {
	return &core{slice: cfg.Slice, burn: cfg.Mode == CPUBurn, used: used, turn: make(chan struct{}, 1)}
}

// use spends d of the core's time and returns when it is spent, or the error of
// ctx. Time that was given out stays spent.
func (c *core) use(ctx context.Context, d time.Duration) error {
	for d > 0 {
		part := min(d, c.slice)
		if err := c.spend(ctx, part); err != nil {
			return err
		}
		d -= part
	}
	return nil
}

func (c *core) spend(ctx context.Context, d time.Duration) error {
	if c.burn {
		select {
		case c.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-c.turn }()
		for end := time.Now().Add(d); time.Now().Before(end); {
			continue // burning is the purpose
		}
		c.used.Add(d.Seconds())
		return nil
	}
	// Reserving a place on the time line instead of sleeping under a lock keeps
	// the rate exact however late the timers of a loaded machine fire.
	c.mu.Lock()
	now := time.Now()
	if c.free.Before(now) {
		c.free = now
	}
	c.free = c.free.Add(d)
	until := c.free
	c.mu.Unlock()
	c.used.Add(d.Seconds())
	return sleepUntil(ctx, until)
}

func sleepUntil(ctx context.Context, until time.Time) error {
	return sleep(ctx, time.Until(until))
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
