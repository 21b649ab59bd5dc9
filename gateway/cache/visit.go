package cache

import (
	"context"
	"net/http"
	"slices"
	"time"
)

// Question is a retrieval.
type Question struct {
	Key     Key
	Dataset string
	// App is the app's name, or the id of its key.
	App     string
	Control Control
}

// Result says how a retrieval was answered; metrics, the access log, traces and
// the answer's header have these words.
type Result string

// The results.
const (
	Hit    Result = "hit"    // from memory
	Shared Result = "shared" // by the answer to the same question, which was being asked
	Miss   Result = "miss"   // by an instance
	Stale  Result = "stale"  // from memory, because the instances fail
	Bypass Result = "bypass" // by an instance, because the cache may not answer now
	Absent Result = "absent" // not: the client wanted no instance to be asked
)

var results = [...]Result{Hit, Shared, Miss, Stale, Bypass, Absent}

// flight is a question that is being asked.
type flight struct {
	gens  generations
	begun int64
	done  chan struct{}
	// Set before done is closed.
	entry *Entry // nil: the answer cannot be shared
	left  bool   // its client went before the answer came
}

// Visit is one question's way through the cache. Either Entry answers it, or it
// is to be asked of an instance and the visit to be ended with End.
type Visit struct {
	// Result is Hit, Shared, Stale or Absent when nobody is to be asked, Miss
	// or Bypass else.
	Result Result
	Entry  *Entry

	c      *Cache
	q      *Question
	scopes scopes
	gens   generations
	asked  int64
	keep   bool // the answer may be kept
	stale  *Entry
	flight *flight // which this visit ends; nil for none
}

// Visit looks whether the cache answers q; it waits for Redis, and for the
// answer to the same question when that is being asked. It fails with the end of
// ctx only.
func (c *Cache) Visit(ctx context.Context, q *Question) (*Visit, error) {
	cfg := c.cfg.Load()
	alone := false
	for {
		v := &Visit{c: c, q: q, asked: c.now()}
		e, _ := c.store.GetIfPresent(q.Key)
		if e != nil && e.gens != e.scopes.generations() {
			c.store.Invalidate(q.Key)
			e = nil
		}
		if e != nil {
			v.scopes = e.scopes
			v.scopes.touch(v.asked)
		} else {
			v.scopes = scopes{
				c.book.find(everything, v.asked), c.book.find(dataSetScope(q.Dataset), v.asked), c.book.find(appScope(q.App), v.asked),
			}
		}
		notBefore := v.asked - int64(cfg.MaxStaleness)
		if !v.scopes.since(notBefore) {
			c.confirm(ctx, &v.scopes, notBefore)
		} else if c.redis != nil && cfg.MaxStaleness > 0 {
			c.renew(&v.scopes, v.asked-int64(cfg.MaxStaleness)/2)
		}
		// In this order: who learns of a write changes the generation first and
		// confirms the scope then, so generations read after it know the write.
		confirmed := v.scopes.since(notBefore)
		v.gens = v.scopes.generations()
		settling := v.scopes.settling(v.asked)
		if e != nil && e.gens != v.gens {
			e = nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		wait := c.decide(v, cfg, e, confirmed, settling, alone)
		if wait == nil {
			return v, nil
		}
		select {
		case <-wait.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if wait.entry != nil {
			v.Result, v.Entry = Shared, wait.entry
			return v, nil
		}
		// When its client left, the next one asks for all. When its answer cannot
		// be shared, waiting for another one would be no better.
		alone = !wait.left
	}
}

// decide fills in v, or returns the flight to wait for.
func (c *Cache) decide(v *Visit, cfg *Config, e *Entry, confirmed, settling, alone bool) *flight {
	q, ctl := v.q, &v.q.Control
	if e != nil {
		age := time.Duration(v.asked - e.asked)
		tooOld := ctl.NoCache || ctl.NoStore || ctl.HasMaxAge && age > ctl.MaxAge
		if confirmed && !settling && age <= cfg.TTL && !tooOld {
			e.hits.Add(1)
			v.Result, v.Entry = Hit, e
			return nil
		}
		staleFor := cfg.StaleIfError
		if ctl.HasStaleIfError {
			staleFor = min(staleFor, ctl.StaleIfError)
		}
		if age <= cfg.TTL+staleFor && !tooOld {
			v.stale = e
		}
	}
	if ctl.OnlyIfCached {
		v.Result = Absent
		return nil
	}
	if v.stale != nil && c.failing(v.scopes.dataSet(), cfg) {
		v.stale.hits.Add(1)
		v.Result, v.Entry = Stale, v.stale
		return nil
	}
	if settling || ctl.NoStore || !v.scopes.known() {
		v.Result = Bypass
		return nil
	}
	v.keep = true
	v.Result = Miss
	if !confirmed {
		v.Result = Bypass
	}
	if ctl.NoCache || alone {
		return nil
	}
	c.flightMu.Lock()
	defer c.flightMu.Unlock()
	f := c.flights[q.Key]
	// An answer that is being asked for is as old as its question. While Redis
	// is away it must not be older than what may go unnoticed.
	if f != nil && f.gens == v.gens && (confirmed || v.asked-f.begun <= int64(cfg.MaxStaleness)) {
		return f
	}
	v.flight = &flight{gens: v.gens, begun: v.asked, done: make(chan struct{})}
	c.flights[q.Key] = v.flight
	return nil
}

// failing tells whether the data set's instances failed so lately that they are
// left alone. One request at a time gets false after that, to try.
func (c *Cache) failing(s *scope, cfg *Config) bool {
	until := s.failed.Load()
	if until == 0 {
		return false
	}
	now := c.now()
	return now < until || !s.failed.CompareAndSwap(until, now+int64(cfg.RetryAfter))
}

// renew asks Redis, without waiting, about scopes not confirmed since t: what is
// asked for often is confirmed before it must be.
func (c *Cache) renew(s *scopes, t int64) {
	for _, sc := range s {
		if sc.confirmed.Load() < t {
			c.ask(sc, t)
		}
	}
}

// HasStale tells whether there is an answer to fall back on, and for how long to
// wait for a better one.
func (v *Visit) HasStale() (time.Duration, bool) { return v.c.cfg.Load().StaleAfter, v.stale != nil }

// Failed notes that the instances failed, and returns the stale answer to give
// instead, nil without one. The visit ends.
func (v *Visit) Failed() *Entry {
	if after := v.c.cfg.Load().RetryAfter; after > 0 && v.stale != nil {
		v.scopes.dataSet().failed.Store(v.c.now() + int64(after))
	}
	v.End()
	if v.stale != nil {
		v.Result, v.Entry = Stale, v.stale
		v.stale.hits.Add(1)
	}
	return v.stale
}

// Keeps tells whether an answer of n bytes (-1: unknown) is to be read in whole
// to be kept.
func (v *Visit) Keeps(status int, h http.Header, n int64) bool {
	if !v.keep || !Storable(status, h) {
		return false
	}
	if most := v.c.cfg.Load().MaxEntryBytes; n > most {
		v.c.m.stores.WithLabelValues("too_large").Inc()
		return false
	}
	return true
}

// MaxBytes is how large an answer may be to be kept.
func (v *Visit) MaxBytes() int64 { return v.c.cfg.Load().MaxEntryBytes }

// Succeeded notes that an instance answered.
func (v *Visit) Succeeded() { v.scopes.dataSet().failed.Store(0) }

// Keep keeps an answer and gives it to those who wait for it. h and body must not
// be changed any more. The visit ends.
func (v *Visit) Keep(h http.Header, body []byte) {
	e := &Entry{
		Header: h, Body: body, dataset: v.q.Dataset, app: v.q.App, scopes: v.scopes, gens: v.gens, asked: v.asked,
	}
	// Those who wait came before any write that is known now has been
	// acknowledged, or have seen no other generation.
	if v.flight != nil {
		v.flight.entry = e
	}
	outcome := "stored"
	if e.gens == v.scopes.generations() {
		v.c.store.Set(v.q.Key, e)
	} else {
		outcome = "overtaken"
	}
	v.c.m.stores.WithLabelValues(outcome).Inc()
	v.End()
}

// TooLarge notes an answer that turned out to be larger than MaxBytes.
func (v *Visit) TooLarge() { v.c.m.stores.WithLabelValues("too_large").Inc() }

// Left ends the visit because its client went.
func (v *Visit) Left() {
	if v.flight != nil {
		v.flight.left = true
	}
	v.End()
}

// End lets those who wait for the answer ask for themselves, unless it has been
// kept. It may be called again.
func (v *Visit) End() {
	f := v.flight
	if f == nil {
		return
	}
	v.flight = nil
	v.c.flightMu.Lock()
	if v.c.flights[v.q.Key] == f {
		delete(v.c.flights, v.q.Key)
	}
	v.c.flightMu.Unlock()
	close(f.done)
}

// Count counts a retrieval that has been answered.
func (c *Cache) Count(r Result) {
	if i := slices.Index(results[:], r); i >= 0 {
		c.counts[i].Add(1)
	}
}

// Age is how old an entry is.
func (c *Cache) Age(e *Entry) time.Duration { return time.Duration(c.now() - e.asked) }
