package pgproxy

import (
	"sync"
	"sync/atomic"
	"time"

	"fournines/pgproxy/primary"
)

// Pauses after answers of a standby that was too old: each further one doubles
// the pause.
const (
	firstPause   = time.Millisecond
	longestPause = 500 * time.Millisecond
)

// standbys remembers which standbys were too old a moment ago, so that a read
// does not run twice more often than needed. The zero value is ready.
type standbys struct {
	turn   atomic.Uint64
	states sync.Map // *primary.Target → *standbyState
}

type standbyState struct {
	fails atomic.Uint32
	until atomic.Int64  // unix nanoseconds
	seen  atomic.Uint64 // the highest position that any connection has heard of
}

func (b *standbys) state(t *primary.Target) *standbyState {
	if s, ok := b.states.Load(t); ok {
		return s.(*standbyState)
	}
	s, _ := b.states.LoadOrStore(t, new(standbyState))
	return s.(*standbyState)
}

// usable reports that no pause is under way.
func (b *standbys) usable(t *primary.Target, now time.Time) bool {
	return now.UnixNano() >= b.state(t).until.Load()
}

// nearly reports that a standby is worth waiting for: as far as is known it has
// not replayed the position yet, and it was not too old the last time.
func (b *standbys) nearly(t *primary.Target, need uint64) bool {
	s := b.state(t)
	return s.seen.Load() < need && s.fails.Load() == 0
}

// judged notes how far a standby was, and whether that was too old.
func (b *standbys) judged(t *primary.Target, seen uint64, behind bool) {
	s := b.state(t)
	for old := s.seen.Load(); old < seen && !s.seen.CompareAndSwap(old, seen); old = s.seen.Load() {
	}
	if !behind {
		if s.fails.Load() != 0 {
			s.fails.Store(0)
		}
		return
	}
	n := s.fails.Add(1)
	pause := longestPause
	if n < 10 {
		pause = firstPause << (n - 1)
	}
	s.until.Store(time.Now().Add(pause).UnixNano())
}

// keep forgets all but the given standbys.
func (b *standbys) keep(list []*primary.Target) {
	b.states.Range(func(t, _ any) bool {
		for _, k := range list {
			if k == t {
				return true
			}
		}
		b.states.Delete(t)
		return true
	})
}
