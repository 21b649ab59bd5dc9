// Package fence learns how far the primary's WAL has come, for many readers at
// little cost. Whoever needs to know joins the next question, and one answer
// serves all who joined: it covers whatever was acknowledged before any of them
// asked. Questions do not wait for the answers to earlier ones, so that a
// primary far away costs a reader one round trip and not two.
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

// Line is a connection on which the question is put.
type Line interface {
	// Current reports that the line leads to whom one has to ask now.
	Current() bool
	// Ask sends the question and waits for nothing but room to write.
	Ask(deadline time.Time) error
	// Answer returns the answer to the oldest question without one.
	Answer(deadline time.Time) (Position, error)
	// Close makes Answer return.
	Close()
}

// ErrStopped is returned to those who ask after Run has ended.
var ErrStopped = errors.New("nobody asks for positions any more")

const (
	// gap is the least time between two questions while the answer to the first
	// is under way. It bounds what a primary far away is asked, and it is all
	// that a reader may wait longer than one round trip. Where an answer takes
	// less than this, one question follows the answer to the one before.
	gap = time.Millisecond
	// maxUnderWay is how many answers may be due.
	maxUnderWay = 64
)

// Asker asks. Create it with New; Run does the work.
type Asker struct {
	dial    func(ctx context.Context) (Line, error)
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

// New makes an Asker that puts its questions on a line that dial opens. Opening
// one and an answer may each take as long as timeout.
func New(dial func(ctx context.Context) (Line, error), timeout time.Duration) *Asker {
	return &Asker{dial: dial, timeout: timeout, wake: make(chan struct{}, 1)}
}

// Run puts the questions until ctx ends.
func (a *Asker) Run(ctx context.Context) error {
	var on *wire
	defer func() {
		a.stop()
		on.close()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
		on.pause(ctx)
		r := a.take()
		if r == nil {
			continue
		}
		if !on.usable() {
			on.close()
			var err error
			if on, err = a.open(ctx); err != nil {
				r.end(Position{}, err)
				continue
			}
		}
		a.questions.Add(1)
		on.ask(r)
	}
}

// take returns the question that has to be put. Readers from now on join the
// one after it.
func (a *Asker) take() *round {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.next
	a.next = nil
	return r
}

func (a *Asker) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	if a.next != nil {
		a.next.end(Position{}, ErrStopped)
		a.next = nil
	}
}

func (r *round) end(pos Position, err error) {
	r.pos, r.err = pos, err
	close(r.done)
}

// wire is a line with the questions on it. A nil wire is none.
type wire struct {
	a        *Asker
	line     Line
	rounds   chan *round // in the order of their answers
	due      atomic.Int32
	answered chan struct{} // there was an answer since it was looked at
	broken   chan struct{} // closed when no answer comes any more
	ended    chan struct{}
	asked    time.Time // the newest question
}

func (a *Asker) open(ctx context.Context) (*wire, error) {
	dctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	line, err := a.dial(dctx)
	if err != nil {
		return nil, err
	}
	w := &wire{a: a, line: line, rounds: make(chan *round, maxUnderWay), answered: make(chan struct{}, 1), broken: make(chan struct{}), ended: make(chan struct{})}
	go w.listen()
	return w, nil
}

// listen hands the answers to those who wait for them.
func (w *wire) listen() {
	defer close(w.ended)
	var err error
	for r := range w.rounds {
		var pos Position
		if err == nil {
			if pos, err = w.line.Answer(r.asked.Add(w.a.timeout)); err != nil {
				close(w.broken)
			}
		}
		if err == nil {
			r.pos = pos // before others find it in last
			w.a.last.Store(r)
		}
		r.end(pos, err)
		w.due.Add(-1)
		select {
		case w.answered <- struct{}{}:
		default:
		}
	}
}

// usable reports that a question may be put on the wire.
func (w *wire) usable() bool {
	if w == nil {
		return false
	}
	select {
	case <-w.broken:
		return false
	default:
		return w.line.Current()
	}
}

// ask puts a question. An error is the listener's to find: it reads what is left.
func (w *wire) ask(r *round) {
	r.asked = time.Now()
	w.asked = r.asked
	w.due.Add(1)
	if w.line.Ask(r.asked.Add(w.a.timeout)) != nil {
		w.line.Close()
	}
	w.rounds <- r // has room: pause has seen to it
}

// pause waits until the next question may be put.
func (w *wire) pause(ctx context.Context) {
	if w == nil {
		return
	}
	timer := time.NewTimer(gap - time.Since(w.asked))
	defer timer.Stop()
	for early := true; w.due.Load() > 0 && (early || w.due.Load() >= maxUnderWay); {
		select {
		case <-timer.C:
			early = false
		case <-w.answered:
		case <-w.broken:
			return
		case <-ctx.Done():
			return
		}
	}
}

// close ends the line and with it all questions that have no answer yet.
func (w *wire) close() {
	if w == nil {
		return
	}
	w.line.Close()
	close(w.rounds)
	<-w.ended
}

// Position returns a position that the primary had after the call began. It
// waits for the answer, at most three timeouts long.
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
