// Package admit decides which request gets the next free place at a Dify
// instance, who waits for one, and who is refused at once. Waiting is fair
// between apps by weight (start-time fair queueing), bounded per app and in all,
// and bounded in time; batch work waits behind interactive work and is refused
// before it. While places are free it costs a few atomic operations.
package admit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"fournines/gateway/balance"
)

// Priority orders requests that wait.
type Priority uint8

// The priorities.
const (
	Interactive Priority = iota // somebody looks at a screen
	Batch                       // nobody does: ingestion, uploads, jobs
	priorities  = 2
)

// String returns the priority's name, a bounded metric label.
func (p Priority) String() string {
	if p == Batch {
		return "batch"
	}
	return "interactive"
}

type contextKey struct{}

// WithPriority returns a context whose request has at most priority p: Batch
// lowers, Interactive changes nothing.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// ContextPriority returns what WithPriority set, Interactive without it.
func ContextPriority(ctx context.Context) Priority {
	p, _ := ctx.Value(contextKey{}).(Priority)
	return p
}

// Config bounds the waiting.
type Config struct {
	// MaxQueue bounds how many requests wait in all, Timeout how long one does.
	MaxQueue int
	Timeout  time.Duration
	// Target replaces Timeout for an app whose queue has not been empty for
	// standingAfter times as long: a queue that stands only adds delay.
	Target time.Duration
	// AppQueue bounds how many requests of one app wait.
	AppQueue int
	// MaxApps bounds how many apps that nobody configured have a queue of their
	// own; the rest share one.
	MaxApps int
}

// Limits are what one app may use.
type Limits struct {
	// Weight is its share of the places when they are scarce; 0 counts as 1.
	Weight float64
	// MaxInFlight bounds its requests in work; 0 is no bound.
	MaxInFlight int64
	// MaxQueue bounds how many of its requests wait; 0 is Config.AppQueue.
	MaxQueue int
	// Priority is the best its requests can have.
	Priority Priority
}

func (l *Limits) weight() float64 {
	if l.Weight <= 0 {
		return 1
	}
	return l.Weight
}

// Controller admits requests to a pool's endpoints.
type Controller struct {
	pool    *balance.Pool
	m       *metrics
	cfg     atomic.Pointer[Config]
	waiting atomic.Int64 // read without the lock by who may pass; nearly always 0

	mu       sync.Mutex // guards the lanes and the queues of all apps
	lanes    [priorities]lane
	turns    int       // places given out since batch work had one
	drain    drain     // how fast those who wait get places
	surveyed time.Time // when survey looked last

	apps registry
}

// New returns a controller in front of pool. The pool must call Freed.
func New(cfg Config, pool *balance.Pool) *Controller {
	c := &Controller{pool: pool, m: newMetrics()}
	c.apps.init()
	c.cfg.Store(&cfg)
	return c
}

// Update replaces settings and configured apps; who waits goes on waiting.
func (c *Controller) Update(cfg Config, apps map[string]Limits) {
	c.cfg.Store(&cfg)
	c.apps.configure(apps)
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.lanes {
		for q := range c.lanes[p].parked {
			c.unpark(q.app)
		}
	}
	c.dispatch(time.Now())
}

// Ticket is one request's way through admission. Its zero value is new; it
// belongs to one goroutine and is not copied after first use.
type Ticket struct {
	App      *App
	Kind     balance.Kind
	Priority Priority
	// Cost is the work to expect, in the unit of an ordinary request; 0 counts
	// as 1. A second attempt costs nothing.
	Cost float64
	// Slot is the place that the request has at an endpoint.
	Slot balance.Slot

	entered bool // counted in App.inFlight
}

// cost is what the next place costs the app.
func (t *Ticket) cost() float64 {
	switch {
	case t.entered:
		return 0
	case t.Cost <= 0:
		return 1
	}
	return t.Cost
}

// Outcome tells what Acquire got.
type Outcome uint8

// The outcomes.
const (
	Admitted  Outcome = iota // Ticket.Slot holds a place
	Exhausted                // every endpoint that may be used has been tried
)

// Acquire takes a place at an endpoint outside tried for t, which has none, and
// waits for one when it must. It fails with *Refused, or with the cause of ctx.
func (c *Controller) Acquire(ctx context.Context, t *Ticket, tried []*balance.Endpoint) (Outcome, error) {
	if c.waiting.Load() == 0 {
		if t.entered || t.App.enter() {
			switch c.pool.Take(tried, t.Kind, &t.Slot) {
			case balance.Took:
				c.m.admitted(t.App, t.cost())
				t.entered = true
				return Admitted, nil
			case balance.Exhausted:
				t.entered = true
				return Exhausted, nil
			}
			if !t.entered {
				t.App.leave()
			}
		}
	}
	return c.wait(ctx, t, tried)
}

// Close ends the request: its place, when it still has one, and its share of
// its app's bulkhead are free again.
func (c *Controller) Close(t *Ticket) {
	t.Slot.Release()
	if !t.entered {
		return
	}
	t.entered = false
	t.App.leave()
	if t.App.parked.Load() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.unpark(t.App)
		c.dispatch(time.Now())
	}
}

// Freed looks for whom a place that may have come free can serve. It is safe on
// a nil controller, which a pool may call while it is being made.
func (c *Controller) Freed() {
	if c == nil || c.waiting.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dispatch(time.Now())
}

// Waiting returns how many requests wait.
func (c *Controller) Waiting() int { return int(c.waiting.Load()) }
