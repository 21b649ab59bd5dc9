package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"fournines/pgproxy/primary"
)

// Limits of a pause. An administrator who forgets it, or whose connection
// breaks, must not stop the application for long.
const (
	// DefaultPauseWait is how long running transactions may go on.
	DefaultPauseWait = 5 * time.Second
	// MaxPauseWait is the most that can be asked for.
	MaxPauseWait = 20 * time.Second
	// DefaultPauseLease is after what time a pause ends by itself.
	DefaultPauseLease = 30 * time.Second
	// MaxPauseLease is the most that can be asked for.
	MaxPauseLease = 5 * time.Minute
)

// Errors of Pause and Resume.
var (
	ErrPaused    = errors.New("already paused")
	ErrNotPaused = errors.New("not paused")
	// ErrStillRunning: not all transactions ended in time; nothing is paused any more.
	ErrStillRunning = errors.New("transactions still run")
)

// PauseOptions say what is paused, and for how long.
type PauseOptions struct {
	// Database whose new transactions are held; "" is all.
	Database string
	// Wait is how long running transactions may go on; 0 to MaxPauseWait. When
	// it has passed and one still runs, the pause ends with ErrStillRunning.
	Wait time.Duration
	// Lease is after what time the pause ends by itself; at most MaxPauseLease.
	Lease time.Duration
	// UntilPrimary also ends it as soon as another primary is known, or the same
	// one in a new reign.
	UntilPrimary bool
}

// gate holds new transactions while it is closed.
type gate struct {
	database string
	until    time.Time
	opened   chan struct{} // closed when the pause ends
	once     sync.Once
	lease    *time.Timer
}

// gates are the pauses in force. Who begins a transaction asks at, before and
// after it has taken a server connection: so either it sees the gate, or who
// closed the gate sees the connection in use.
type gates struct {
	closed atomic.Pointer[map[string]*gate] // by database; nil when there is none

	mu      sync.Mutex
	pauses  atomic.Uint64
	expired atomic.Uint64
}

// at returns the gate that holds a database's new transactions, or nil.
func (g *gates) at(database string) *gate {
	m := g.closed.Load()
	if m == nil {
		return nil
	}
	if all := (*m)[""]; all != nil {
		return all
	}
	return (*m)[database]
}

// list returns the gates in force, those of all databases first.
func (g *gates) list() []*gate {
	m := g.closed.Load()
	if m == nil {
		return nil
	}
	var out []*gate
	for _, x := range *m {
		out = append(out, x)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].database < out[j].database })
	return out
}

func (g *gates) put(x *gate) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := map[string]*gate{}
	if m := g.closed.Load(); m != nil {
		maps.Copy(next, *m)
	}
	if old := next[x.database]; old != nil {
		return fmt.Errorf("%w until %s; resume first", ErrPaused, old.until.Format(time.TimeOnly))
	}
	next[x.database] = x
	g.closed.Store(&next)
	g.pauses.Add(1)
	return nil
}

// open ends a pause, once, and reports whether this call did.
func (g *gates) open(x *gate) (did bool) {
	x.once.Do(func() {
		did = true
		g.mu.Lock()
		defer g.mu.Unlock()
		next := maps.Clone(*g.closed.Load())
		delete(next, x.database)
		if len(next) == 0 {
			g.closed.Store(nil)
		} else {
			g.closed.Store(&next)
		}
		x.lease.Stop()
		close(x.opened)
	})
	return did
}

// Pause holds new transactions, lets running ones finish, and returns when no
// server connection is in a transaction: nil, and the pause lasts until Resume,
// the end of its lease or, with UntilPrimary, another primary. On an error,
// which may be that of ctx, nothing is paused.
//
// Clients that are held wait within the bounds of Hold, as in a failover. Reads
// on standbys go on.
func (p *Proxy) Pause(ctx context.Context, o PauseOptions) error {
	if o.Wait < 0 || o.Wait > MaxPauseWait {
		return fmt.Errorf("wait: %v is outside of 0s to %v", o.Wait, MaxPauseWait)
	}
	if o.Lease <= 0 || o.Lease > MaxPauseLease {
		return fmt.Errorf("lease: %v is outside of 1ms to %v", o.Lease, MaxPauseLease)
	}
	reign := p.tracker.View().Primary
	x := &gate{database: o.Database, until: time.Now().Add(o.Lease), opened: make(chan struct{})}
	x.lease = time.AfterFunc(o.Lease, func() {
		if p.gates.open(x) {
			p.gates.expired.Add(1)
			p.log.Warn("the lease of the pause has ended; transactions go on", "database", o.Database, "lease", o.Lease)
		}
	})
	if err := p.gates.put(x); err != nil {
		x.lease.Stop()
		return err
	}
	if p.isDraining() {
		p.gates.open(x)
		return errStopping
	}
	p.log.Info("paused: new transactions are held", "database", o.Database, "lease", o.Lease)
	if err := p.awaitQuiet(ctx, x, o.Wait); err != nil {
		p.gates.open(x)
		p.log.Warn("resumed, because the pause did not come about", "database", o.Database, "err", err)
		return err
	}
	if o.UntilPrimary {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.draining { // Run waits for the group already
			return errStopping
		}
		p.wg.Go(func() { p.openAtSuccessor(x, reign) })
	}
	return nil
}

// Resume ends the pause of a database, or with "" the pause of all.
func (p *Proxy) Resume(database string) error {
	for _, x := range p.gates.list() {
		if x.database == database && p.gates.open(x) {
			p.log.Info("resumed", "database", database)
			return nil
		}
	}
	return ErrNotPaused
}

// awaitQuiet waits until no server connection works for anybody.
func (p *Proxy) awaitQuiet(ctx context.Context, x *gate, wait time.Duration) error {
	const look = 2 * time.Millisecond
	limit := time.NewTimer(wait)
	defer limit.Stop()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		n := p.busy(x.database)
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-x.opened:
			return errors.New("the pause was ended meanwhile")
		case <-limit.C:
			return fmt.Errorf("%w: %d after %v", ErrStillRunning, n, wait)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// busy counts the server connections of a database, or of all, that work for
// somebody: all that are out of their pools, but for those that are tied to a
// client which asks for nothing.
func (p *Proxy) busy(database string) int {
	var n int
	var sessions []*session
	p.mu.Lock()
	for k, pl := range p.pools {
		if database == "" || k.database == database {
			n += pl.Stats().Used
		}
	}
	for _, s := range p.sessions {
		if database == "" || s.database == database {
			sessions = append(sessions, s)
		}
	}
	p.mu.Unlock()
	for _, s := range sessions {
		s.mu.Lock()
		if s.srv != nil && !s.srv.target.Standby && s.idle() {
			n--
		}
		s.mu.Unlock()
	}
	return max(n, 0)
}

// openAtSuccessor ends a pause when the reign that it began in has a successor.
// It asks the servers more often than the probes do, since everybody waits.
func (p *Proxy) openAtSuccessor(x *gate, reign *primary.Target) {
	const look = 50 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		v := p.tracker.View()
		if v.Primary != nil && v.Primary != reign {
			if p.gates.open(x) {
				p.log.Info("resumed: there is another primary", "database", x.database, "server", v.Primary.Endpoint.Name)
			}
			return
		}
		select {
		case <-x.opened:
			return
		case <-v.Changed:
		case <-tick.C:
			p.tracker.KickAll()
		}
	}
}

// passGate holds the session while its database is paused.
func (p *Proxy) passGate(s *session, w *waiter) error {
	for x := p.gates.at(s.database); x != nil; x = p.gates.at(s.database) {
		if err := p.hold(s, w, x.opened, "the database is paused by its administrator", holdLook); err != nil {
			return err
		}
	}
	return nil
}
