package cache

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// maxScopes bounds the data sets and apps that are known at a time. The one that
// has not been used for longest goes, with its entries.
const maxScopes = 1 << 16

// scope is a set of entries that lose their worth together: those of a data set,
// of an app, or all. An entry counts while its scopes have the generation that
// they had when its answer was asked for, so an answer on its way when a write
// comes is never kept as one from after it.
type scope struct {
	name string

	gen  atomic.Uint64
	used atomic.Int64 // when it was last looked for; times are in nanoseconds since the cache's start
	// confirmed is when the last question to Redis was sent that knew of no
	// write but those that gen counts; 0 is never. Without Redis it is for ever.
	confirmed atomic.Int64
	settles   atomic.Int64 // until when nothing is kept, as this gateway knows
	settling  atomic.Bool  // the same as Redis knows
	failed    atomic.Int64 // until when the instances are not asked when there is a stale answer

	mu     sync.Mutex
	token  string // the last write that is known, as it is called in Redis
	known  bool   // Redis has said so, or was told
	asking *asking
	final  *time.Timer // the second notice of a write
}

// asking is one question to Redis.
type asking struct {
	sent int64
	done chan struct{}
}

// names of scopes.
const everything = "all"

func dataSetScope(id string) string { return "d:" + id }
func appScope(id string) string     { return "k:" + id }

// numScopes is how many an entry is in.
const numScopes = 3

type scopes [numScopes]*scope

// dataSet is the scope of the data set.
func (s *scopes) dataSet() *scope { return s[1] }

// generations are those of an entry's scopes.
type generations [numScopes]uint64

func (s *scopes) generations() (g generations) {
	for i, sc := range s {
		g[i] = sc.gen.Load()
	}
	return g
}

// touch notes that they are in use, a second more or less.
func (s *scopes) touch(now int64) {
	for _, sc := range s {
		if now-sc.used.Load() > int64(time.Second) {
			sc.used.Store(now)
		}
	}
}

// since tells whether all have been confirmed since t.
func (s *scopes) since(t int64) bool {
	for _, sc := range s {
		if sc.confirmed.Load() < t {
			return false
		}
	}
	return true
}

// settling tells whether one of them is not cached now.
func (s *scopes) settling(now int64) bool {
	for _, sc := range s {
		if sc.settling.Load() || sc.settles.Load() > now {
			return true
		}
	}
	return false
}

// known tells whether the last write of each is known, so that one after it
// will be noticed.
func (s *scopes) known() bool {
	for _, sc := range s {
		sc.mu.Lock()
		known := sc.known
		sc.mu.Unlock()
		if !known {
			return false
		}
	}
	return true
}

// book has all scopes by name.
type book struct {
	shared bool // there is a Redis
	mu     sync.Mutex
	all    map[string]*scope
	max    int
}

// find returns the scope, a new one when it is not known.
func (b *book) find(name string, now int64) *scope {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.all[name]
	if s == nil {
		if len(b.all) >= b.max {
			b.forget()
		}
		s = &scope{name: name}
		if !b.shared {
			s.known = true
			s.confirmed.Store(math.MaxInt64)
		}
		b.all[name] = s
	}
	s.used.Store(now)
	return s
}

// look returns the scope when it is known.
func (b *book) look(name string) *scope {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[name]
}

// forgetSample is how many scopes forget chooses from.
const forgetSample = 16

// forget drops a scope that has not been used for long; its entries still point
// to it and must not count any more.
func (b *book) forget() {
	var oldest *scope
	n := 0
	for name, s := range b.all { // Go begins anywhere
		if name != everything && (oldest == nil || s.used.Load() < oldest.used.Load()) {
			oldest = s
		}
		if n++; n == forgetSample {
			break
		}
	}
	if oldest != nil {
		oldest.gen.Add(1)
		delete(b.all, oldest.name)
	}
}

// each calls f with every scope.
func (b *book) each(f func(*scope)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.all {
		f(s)
	}
}
