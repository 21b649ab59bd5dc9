// Package fence learns how far the primary's WAL has come, for many readers at
// little cost. Whoever needs to know joins the next question, and one answer
// serves all who joined: it covers whatever was acknowledged before any of them
// asked.
package fence

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// SQL is the question. An acknowledged commit is flushed, so the flushed
// position covers it. Not so with synchronous_commit off: then what has been
// inserted counts, as far as the server's default says so.
const SQL = `SELECT CASE WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off'` +
	` THEN pg_catalog.pg_current_wal_insert_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END`

// Position is a place in the WAL of one primary's reign.
type Position struct {
	// LSN is the number of bytes from the beginning of the WAL.
	LSN uint64
	// Generation is the reign in which the primary said it. Positions of
	// different reigns cannot be compared.
	Generation uint64
}

// ErrStopped is returned to those who ask after Run has ended.
var ErrStopped = errors.New("nobody asks for positions any more")

// Asker asks. Create it with New; Run does the work.
type Asker struct {
	ask     func(ctx context.Context) (Position, error)
	timeout time.Duration

	mu      sync.Mutex
	next    *round // the question that has not been sent yet
	stopped bool
	wake    chan struct{}
	last    atomic.Pointer[round] // the newest one that was answered

	questions atomic.Uint64
}

// round is one question.
type round struct {
	done  chan struct{}
	asked time.Time
	pos   Position
	err   error
}

// New makes an Asker that puts its question with ask, one at a time, each
// bounded by timeout.
func New(ask func(ctx context.Context) (Position, error), timeout time.Duration) *Asker {
	return &Asker{ask: ask, timeout: timeout, wake: make(chan struct{}, 1)}
}

// Run puts the questions until ctx ends.
func (a *Asker) Run(ctx context.Context) error {
	defer a.stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
		a.mu.Lock()
		r := a.next
		a.next = nil
		a.mu.Unlock()
		if r == nil {
			continue
		}
		a.questions.Add(1)
		actx, cancel := context.WithTimeout(ctx, a.timeout)
		r.asked = time.Now()
		r.pos, r.err = a.ask(actx)
		cancel()
		if r.err == nil {
			a.last.Store(r)
		}
		close(r.done)
	}
}

func (a *Asker) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	if a.next != nil {
		a.next.err = ErrStopped
		close(a.next.done)
		a.next = nil
	}
}

// Position returns a position that the primary had after the call began. It
// waits for the answer, at most two timeouts long.
func (a *Asker) Position(ctx context.Context) (Position, error) {
	a.mu.Lock()
	if a.stopped {
		a.mu.Unlock()
		return Position{}, ErrStopped
	}
	r := a.next
	if r == nil {
		r = &round{done: make(chan struct{})}
		a.next = r
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	a.mu.Unlock()
	select {
	case <-r.done:
		return r.pos, r.err
	case <-ctx.Done():
		return Position{}, context.Cause(ctx)
	}
}

// Recent returns a position that the primary had at most maxAge ago. It asks
// when none is known.
func (a *Asker) Recent(ctx context.Context, maxAge time.Duration) (Position, error) {
	if r := a.last.Load(); r != nil && time.Since(r.asked) <= maxAge {
		return r.pos, nil
	}
	return a.Position(ctx)
}

// Questions is how many questions were put so far.
func (a *Asker) Questions() uint64 { return a.questions.Load() }
