package redisproxy

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/route"
	"fournines/redisproxy/upstream"
)

// cluster keeps the proxy's view of the nodes: an immutable map of slots and
// the command table, both swapped whole.
type cluster struct {
	seeds   []string
	pool    *upstream.Pool
	log     *slog.Logger
	m       *metrics
	refresh time.Duration

	slots   atomic.Pointer[route.Map]
	table   atomic.Pointer[route.Table]
	learned atomic.Bool // the table is the server's own
	// replicas tells which may answer reads; nil when none may.
	replicas *replicas
	trigger  chan struct{}
	silent   bool // no node answered the last look; used by run only

	mu      sync.Mutex
	changed chan struct{} // closed at the next change of slots
}

const (
	// viewTimeout bounds one question about the cluster.
	viewTimeout = time.Second
	// viewNodes is how many nodes are asked at a time.
	viewNodes = 6
	// refreshPause separates looks while commands are held.
	refreshPause = 50 * time.Millisecond
)

func newCluster(seeds []string, pool *upstream.Pool, refresh time.Duration, log *slog.Logger, m *metrics) *cluster {
	c := &cluster{
		seeds: seeds, pool: pool, refresh: refresh, log: log, m: m,
		trigger: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	c.table.Store(marked(route.Builtin()))
	c.slots.Store(route.Merge())
	return c
}

// run looks at the cluster regularly and when asked to, until ctx ends.
func (c *cluster) run(ctx context.Context) {
	for {
		ok := c.look(ctx)
		wait := c.refresh
		if !ok {
			wait = 4 * refreshPause
		}
		timer := time.NewTimer(refreshPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-c.trigger:
			timer.Stop()
		}
	}
}

// ask makes run look at the cluster soon.
func (c *cluster) ask() {
	select {
	case c.trigger <- struct{}{}:
	default:
	}
}

// next returns the current map and a channel that is closed when another one
// has replaced it.
func (c *cluster) next() (*route.Map, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots.Load(), c.changed
}

func (c *cluster) set(m *route.Map) {
	c.mu.Lock()
	old := c.slots.Load()
	c.slots.Store(m)
	if !m.Equal(old) {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	c.mu.Unlock()
	c.m.missing.Set(float64(m.Missing))
	c.m.masters.Set(float64(len(m.Masters)))
	if !m.Equal(old) {
		c.log.Info("slot map changed", "masters", strings.Join(m.Masters, " "), "missing", m.Missing)
	}
}

// moved notes what a MOVED answer said and asks for a full look.
func (c *cluster) moved(slot int, addr string) {
	c.mu.Lock()
	m := c.slots.Load()
	if m.Owner(slot) != addr {
		c.slots.Store(m.WithOwner(slot, addr))
		close(c.changed)
		c.changed = make(chan struct{})
	}
	c.mu.Unlock()
	c.ask()
}

// look asks several nodes at once and merges what they say.
func (c *cluster) look(ctx context.Context) bool {
	known := c.slots.Load()
	seen := make(map[string]bool)
	var addrs []string
	for _, n := range known.Nodes {
		if !seen[n.Addr] {
			seen[n.Addr] = true
			addrs = append(addrs, n.Addr)
		}
	}
	for _, a := range c.seeds {
		if !seen[a] && len(known.Nodes) < 3 {
			seen[a] = true
			addrs = append(addrs, a)
		}
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	if len(addrs) > viewNodes {
		addrs = addrs[:viewNodes]
	}
	views := make([][]route.Node, len(addrs))
	errs := make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() { views[i], errs[i] = c.view(ctx, a) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return false
	}
	m := route.Merge(views...)
	if len(m.Masters) == 0 {
		c.m.refreshes.WithLabelValues("failed").Inc()
		if !c.silent { // once, not four times a second
			c.silent = true
			c.log.Warn("no node of the cluster answers", "nodes", strings.Join(addrs, " "), "err", errors.Join(errs...))
		}
		if len(known.Nodes) > 0 {
			// Everybody we knew is gone; start from the seeds next time.
			c.slots.CompareAndSwap(known, withoutNodes(known))
		}
		return false
	}
	c.m.refreshes.WithLabelValues("ok").Inc()
	if c.silent {
		c.silent = false
		c.log.Info("the cluster answers again")
	}
	c.set(m)
	members := make(map[string]bool)
	for _, n := range m.Nodes {
		members[n.Addr] = true
	}
	for _, a := range c.seeds {
		members[a] = true
	}
	for _, a := range m.Masters {
		members[a] = true
	}
	c.pool.Retain(func(addr string) bool { return members[addr] })
	for _, a := range m.Masters {
		// Shared connections probe their node: a hung one is found even when
		// only blocked clients use it.
		c.pool.Node(a).Warm(2)
	}
	if !c.learned.Load() {
		c.learnTable(ctx, m.Masters[0])
	}
	if c.replicas != nil {
		c.replicas.look(ctx, m)
	}
	return m.Missing == 0
}

func withoutNodes(m *route.Map) *route.Map {
	n := *m
	n.Nodes = nil
	return &n
}

func (c *cluster) view(ctx context.Context, addr string) ([]route.Node, error) {
	v, err := c.question(ctx, addr, "CLUSTER", "NODES")
	if err != nil {
		return nil, err
	}
	return route.ParseNodes(string(v.Str), addr)
}

// question asks one node something over a connection of its own.
func (c *cluster) question(ctx context.Context, addr string, args ...string) (resp.Value, error) {
	d, err := c.pool.Node(addr).Control(ctx)
	if err != nil {
		return resp.Value{}, err
	}
	raw, err := d.Do(resp.AppendCommandStrings(nil, args...), nil, 1, viewTimeout)
	if err != nil {
		d.Close()
		return resp.Value{}, err
	}
	d.Release()
	v, _, err := resp.Parse(raw)
	if err != nil {
		return v, err
	}
	if v.Kind == resp.Error {
		return v, errors.New(addr + ": " + string(v.Str))
	}
	return v, nil
}

func (c *cluster) learnTable(ctx context.Context, addr string) {
	v, err := c.question(ctx, addr, "COMMAND")
	if err != nil {
		return
	}
	t, err := route.ParseCommands(v)
	if err != nil {
		c.log.Warn("unreadable command table; the built-in one of Redis 7.0 stays", "err", err)
	} else {
		c.table.Store(marked(t))
	}
	c.learned.Store(true)
}
