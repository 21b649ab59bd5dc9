// Package cache keeps answers to retrievals. An entry belongs to one API key and
// one question; it is void as soon as a write to its data set is known, and every
// gateway knows of every other one's writes within a stated time or does not
// answer from memory. DESIGN.md of the gateway has the rules and why.
package cache

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Entry is an answer. It is shared: nobody may change it.
type Entry struct {
	Header http.Header
	Body   []byte

	dataset, app string
	scopes       scopes
	gens         generations
	asked        int64 // when its request began; ages count from here
	hits         atomic.Int64
}

// entryOverhead is about what an entry takes beside its header and body.
const entryOverhead = 512

func (e *Entry) weight() uint32 {
	n := entryOverhead + len(e.Body) + len(e.dataset) + len(e.app)
	for name, values := range e.Header {
		n += len(name) + 48
		for _, v := range values {
			n += len(v) + 16
		}
	}
	return uint32(min(n, 1<<31))
}

// Cache holds entries. Its methods are safe for concurrent use.
type Cache struct {
	cfg   atomic.Pointer[Config]
	redis *redis.ClusterClient // nil: this gateway is alone
	m     *metrics
	start time.Time
	store *otter.Cache[Key, *Entry]
	book  book

	flightMu sync.Mutex
	flights  map[Key]*flight

	pendMu  sync.Mutex
	pending map[string]time.Duration // what Redis has not been told, with its settling time

	counts  [len(results)]atomic.Int64
	evicted atomic.Int64

	askAgain atomic.Int64 // Redis is left alone until then
	life     context.Context
	end      context.CancelFunc
	workMu   sync.Mutex
	closed   bool
	work     sync.WaitGroup // questions to Redis and second notices
}

// New makes an empty cache; client may be nil.
func New(cfg Config, client *redis.ClusterClient, reg prometheus.Registerer) (*Cache, error) {
	c := &Cache{
		redis: client, start: time.Now(), flights: map[Key]*flight{}, pending: map[string]time.Duration{},
		book: book{shared: client != nil, all: map[string]*scope{}, max: maxScopes},
	}
	c.cfg.Store(&cfg)
	c.life, c.end = context.WithCancel(context.Background())
	var err error
	if c.m, err = newMetrics(reg, c); err != nil {
		return nil, err
	}
	c.store, err = otter.New(&otter.Options[Key, *Entry]{
		MaximumWeight: uint64(cfg.MaxBytes),
		Weigher:       func(_ Key, e *Entry) uint32 { return e.weight() },
		OnAtomicDeletion: func(e otter.DeletionEvent[Key, *Entry]) {
			if e.Cause == otter.CauseOverflow {
				c.evicted.Add(1)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return c, nil
}

// now is the time since the cache was made, in nanoseconds; never 0.
func (c *Cache) now() int64 { return int64(time.Since(c.start)) + 1 }

// begin makes Close wait for a piece of work; false when the cache is closed.
func (c *Cache) begin() bool {
	c.workMu.Lock()
	defer c.workMu.Unlock()
	if c.closed {
		return false
	}
	c.work.Add(1)
	return true
}

// Update replaces the settings. Entries stay as far as the new size allows.
func (c *Cache) Update(cfg Config) {
	old := c.cfg.Swap(&cfg)
	if old.MaxBytes != cfg.MaxBytes {
		c.store.SetMaximum(uint64(cfg.MaxBytes))
	}
	if !cfg.Enabled {
		c.store.InvalidateAll()
	}
	if cfg.Enabled && !old.Enabled {
		c.book.each(func(s *scope) { s.gen.Add(1) }) // nobody has watched the writes
	}
}

// sweepEvery is how often what nobody may get any more is dropped.
const sweepEvery = 30 * time.Second

// Run hears of other gateways' writes, tells what Redis could not be told, and
// drops what is too old, until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if c.redis != nil {
		wg.Go(func() { c.listen(ctx) })
	}
	sweep, again := time.NewTicker(sweepEvery), time.NewTicker(tellAgain)
	defer sweep.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return nil
		case <-sweep.C:
			c.sweep()
		case <-again.C:
			if c.unsaid() > 0 {
				c.tellPending(ctx)
			}
		}
	}
}

// Close ends what requests have begun; none may come any more. What Redis has
// not been told by then is tried once more.
func (c *Cache) Close() {
	c.workMu.Lock()
	c.closed = true
	c.workMu.Unlock()
	c.book.each(func(s *scope) {
		s.mu.Lock()
		if s.final != nil && s.final.Stop() {
			c.work.Done()
			c.pend(s.name, 0) // what it would have said
		}
		s.mu.Unlock()
	})
	if c.redis != nil && c.unsaid() > 0 {
		c.tellPending(context.Background())
	}
	c.end()
	c.work.Wait()
}

// sweep drops entries that are void or too old to be given even as stale.
func (c *Cache) sweep() {
	cfg, now := c.cfg.Load(), c.now()
	for key, e := range c.store.All() {
		if e.gens != e.scopes.generations() || now-e.asked > int64(cfg.TTL+cfg.StaleIfError) {
			c.store.Invalidate(key)
		}
	}
}

// Wrote makes the answers from the data set void, after a write to it that may
// have been carried out and before its answer goes out; dataset "" is every one.
func (c *Cache) Wrote(ctx context.Context, dataset string) {
	cfg := c.cfg.Load()
	if !cfg.Enabled {
		return
	}
	name := everything
	if dataset != "" {
		name = dataSetScope(dataset)
	}
	c.invalidate(ctx, name, "write", cfg.Settle)
	c.again(name, max(cfg.Settle, time.Second))
}

// again tells a write once more when it has settled: what a worker did after it
// then shows, and a Redis whose new master had not heard of it learns of it.
func (c *Cache) again(name string, after time.Duration) {
	s := c.book.find(name, c.now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final != nil && s.final.Stop() {
		c.work.Done()
	}
	if !c.begin() {
		s.final = nil
		return
	}
	s.final = time.AfterFunc(after, func() {
		defer c.work.Done()
		c.invalidate(c.life, name, "settled", 0)
	})
}

// Settling keeps the data set out of the cache for Settle from now: its index is
// being made.
func (c *Cache) Settling(ctx context.Context, dataset string) {
	cfg, name := c.cfg.Load(), dataSetScope(dataset)
	s := c.book.find(name, c.now())
	s.settles.Store(max(s.settles.Load(), c.now()+int64(cfg.Settle)))
	if c.redis != nil && cfg.Settle >= time.Millisecond {
		ctx, cancel := context.WithTimeout(ctx, tellTimeout)
		defer cancel()
		if c.redis.Set(ctx, settleKey(name), 1, cfg.Settle).Err() != nil {
			c.m.failures.Inc()
		}
	}
	c.again(name, max(cfg.Settle, time.Second))
}

// Settled makes the data set's answers void because its index has been made.
func (c *Cache) Settled(ctx context.Context, dataset string) {
	c.invalidate(ctx, dataSetScope(dataset), "settled", 0)
}

// Purged says what a purge did.
type Purged struct {
	// Entries dropped at this gateway; others drop theirs within maxStaleness.
	Entries int `json:"entries"`
	// Shared tells whether Redis took it; else the other gateways learn of it
	// when Redis is back.
	Shared bool `json:"shared"`
}

// Purge drops the entries of a data set, of an app (its name, or the id of its
// key), or all when both are empty, at all gateways.
func (c *Cache) Purge(ctx context.Context, dataset, app string) Purged {
	name := everything
	switch {
	case dataset != "":
		name = dataSetScope(dataset)
	case app != "":
		name = appScope(app)
	}
	var p Purged
	for key, e := range c.store.All() {
		if (dataset == "" || e.dataset == dataset) && (app == "" || e.app == app) {
			c.store.Invalidate(key)
			p.Entries++
		}
	}
	c.invalidate(ctx, name, "purge", 0)
	c.pendMu.Lock()
	_, waits := c.pending[name]
	c.pendMu.Unlock()
	p.Shared = c.redis != nil && !waits
	return p
}

// Top is one entry, as operators see it: neither question nor answer.
type Top struct {
	// Key are the first digits of the hash of API key and question.
	Key     string `json:"key"`
	Dataset string `json:"dataset"`
	// App is the app's name, or the id of its key.
	App        string  `json:"app"`
	Hits       int64   `json:"hits"`
	Bytes      uint32  `json:"bytes"`
	AgeSeconds float64 `json:"ageSeconds"`
	// State is "fresh", "expired" (given only while the instances fail) or "void".
	State string `json:"state"`
}

// Top returns up to n entries with the most hits since they were stored.
func (c *Cache) Top(n int) []Top {
	cfg, now := c.cfg.Load(), c.now()
	all := []Top{}
	for key, e := range c.store.All() {
		t := Top{
			Key: key.String(), Dataset: e.dataset, App: e.app, Hits: e.hits.Load(), Bytes: e.weight(),
			AgeSeconds: time.Duration(now - e.asked).Seconds(), State: "fresh",
		}
		switch {
		case e.gens != e.scopes.generations():
			t.State = "void"
		case now-e.asked > int64(cfg.TTL):
			t.State = "expired"
		}
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b Top) int { return int(b.Hits - a.Hits) })
	return all[:min(n, len(all))]
}

// Stats is how the cache does, since the gateway was started.
type Stats struct {
	Enabled  bool  `json:"enabled"`
	Entries  int   `json:"entries"`
	Bytes    int64 `json:"bytes"`
	MaxBytes int64 `json:"maxBytes"`
	// Results counts retrievals by Result.
	Results map[Result]int64 `json:"results"`
	// HitRate is the share of hits and shared answers among all that could have
	// been one: bypass, absent and stale are not counted. 0 without any.
	HitRate   float64 `json:"hitRate"`
	Evictions int64   `json:"evictions"`
	// Pending are invalidations that Redis has not been told of yet.
	Pending int `json:"pendingInvalidations"`
	// Alone tells that there is no Redis: writes at other gateways go unnoticed.
	Alone bool `json:"alone"`
}

// Stats returns them.
func (c *Cache) Stats() Stats {
	cfg := c.cfg.Load()
	s := Stats{
		Enabled: cfg.Enabled, Entries: c.store.EstimatedSize(), Bytes: int64(c.store.WeightedSize()), MaxBytes: cfg.MaxBytes,
		Results: map[Result]int64{}, Evictions: c.evicted.Load(), Pending: c.unsaid(), Alone: c.redis == nil,
	}
	for i, r := range results {
		s.Results[r] = c.counts[i].Load()
	}
	if hits, misses := s.Results[Hit]+s.Results[Shared], s.Results[Miss]; hits > 0 {
		s.HitRate = float64(hits) / float64(hits+misses)
	}
	return s
}
