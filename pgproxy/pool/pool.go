// Package pool hands a bounded number of connections to a bounded queue of
// takers, first come, first served. It does no I/O: who gets a slot without a
// connection dials one.
package pool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ErrFull is returned by Get when the queue has no room.
var ErrFull = errors.New("pool queue is full")

// ErrTimeout is returned by Get when no connection became free in time.
var ErrTimeout = errors.New("no connection became free in time")

// Pool shares connections of type T. Create it with New. All methods may be
// called from any goroutine.
type Pool[T comparable] struct {
	mu      sync.Mutex
	size    int
	queue   int
	slots   int // dialling, idle and in use
	idle    []T // last in, first out, so that surplus ones age
	members map[T]bool
	first   *taker[T] // of the queue
	last    *taker[T]
	unused  *taker[T] // linked by next: where everybody waits for a moment, nobody allocates
	waiting atomic.Int32
}

// taker stands in the queue.
type taker[T comparable] struct {
	granted    chan grant[T] // has room for one
	timer      *time.Timer
	prev, next *taker[T]
}

type grant[T comparable] struct {
	conn T
	dial bool
}

// New makes a pool of at most size connections and at most queue waiting takers.
func New[T comparable](size, queue int) *Pool[T] {
	return &Pool[T]{size: size, queue: queue, members: make(map[T]bool)}
}

// Resize changes the limits. Connections above a smaller size go away as they
// are put back.
func (p *Pool[T]) Resize(size, queue int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size, p.queue = size, queue
	p.grantSlots()
}

// Get returns an idle connection, or dial=true: then the caller owns a slot
// and must call Add with a new connection or Cancel. While it waits it calls
// check once a second, and gives up with its error; check may be nil.
func (p *Pool[T]) Get(ctx context.Context, timeout time.Duration, check func() error) (conn T, dial bool, err error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 && p.first == nil {
		conn = p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return conn, false, nil
	}
	if p.slots < p.size {
		p.slots++
		p.mu.Unlock()
		return conn, true, nil
	}
	if timeout <= 0 {
		p.mu.Unlock()
		return conn, false, ErrTimeout
	}
	if int(p.waiting.Load()) >= p.queue {
		p.mu.Unlock()
		return conn, false, ErrFull
	}
	w := p.enqueue(min(timeout, time.Second))
	p.mu.Unlock()
	deadline := time.Now().Add(timeout)
	for err == nil {
		select {
		case g := <-w.granted:
			p.mu.Lock()
			p.recycle(w)
			p.mu.Unlock()
			return g.conn, g.dial, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		case now := <-w.timer.C:
			left := deadline.Sub(now)
			switch {
			case left <= 0:
				err = ErrTimeout
			case check != nil:
				err = check()
			}
			w.timer.Reset(max(0, min(left, time.Second)))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.recycle(w)
	select {
	case g := <-w.granted: // at the last moment
		return g.conn, g.dial, nil
	default:
	}
	p.dequeue(w)
	return conn, false, err
}

// enqueue puts a taker at the end of the queue, whose timer fires after d. mu
// is held.
func (p *Pool[T]) enqueue(d time.Duration) *taker[T] {
	w := p.unused
	if w == nil {
		w = &taker[T]{granted: make(chan grant[T], 1), timer: time.NewTimer(d)}
	} else {
		p.unused, w.next = w.next, nil
		w.timer.Reset(d)
	}
	if w.prev = p.last; w.prev != nil {
		w.prev.next = w
	} else {
		p.first = w
	}
	p.last = w
	p.waiting.Add(1)
	return w
}

// dequeue takes a taker out of the queue. mu is held.
func (p *Pool[T]) dequeue(w *taker[T]) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		p.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		p.last = w.prev
	}
	w.prev, w.next = nil, nil
	p.waiting.Add(-1)
}

// recycle keeps a taker that is out of the queue and has its grant for the next
// one. mu is held.
func (p *Pool[T]) recycle(w *taker[T]) {
	w.timer.Stop()
	w.next, p.unused = p.unused, w
}

// Add makes a freshly dialled connection a member; it is in use by the caller.
func (p *Pool[T]) Add(conn T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members[conn] = true
}

// Cancel gives back a slot whose dial failed.
func (p *Pool[T]) Cancel() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots--
	p.grantSlots()
}

// Put gives a connection to the taker who waits longest, or keeps it idle. It
// returns false when the pool does not want it (no member, or over size); the
// caller then closes it, and calls Remove.
func (p *Pool[T]) Put(conn T) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.members[conn] || p.slots > p.size {
		return false
	}
	if w := p.next(); w != nil {
		w.granted <- grant[T]{conn: conn}
		return true
	}
	p.idle = append(p.idle, conn)
	return true
}

// Remove forgets a connection that is closed, idle or not. Calling it for a
// connection that is no member has no effect.
func (p *Pool[T]) Remove(conn T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.members[conn] {
		return
	}
	delete(p.members, conn)
	for i, c := range p.idle {
		if c == conn {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			break
		}
	}
	p.slots--
	p.grantSlots()
}

// TakeIdle removes one idle connection that surplus accepts, oldest first, and
// makes it in use, so that the caller can close it.
func (p *Pool[T]) TakeIdle(surplus func(T) bool) (conn T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, c := range p.idle {
		if surplus(c) {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			return c, true
		}
	}
	return conn, false
}

// next takes the first taker out of the queue; nil when it is empty. mu is held.
func (p *Pool[T]) next() *taker[T] {
	w := p.first
	if w != nil {
		p.dequeue(w)
	}
	return w
}

func (p *Pool[T]) grantSlots() {
	for p.slots < p.size {
		w := p.next()
		if w == nil {
			return
		}
		p.slots++
		w.granted <- grant[T]{dial: true}
	}
}

// Waiting is the number of takers in the queue, without taking the lock.
func (p *Pool[T]) Waiting() int { return int(p.waiting.Load()) }

// Members lists all connections, in no order.
func (p *Pool[T]) Members() []T {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]T, 0, len(p.members))
	for c := range p.members {
		out = append(out, c)
	}
	return out
}

// Stats are the pool's numbers at one moment.
type Stats struct {
	// Idle connections wait for a taker; Used ones are taken or being dialled.
	Idle, Used int
	// Dialling is how many of the used ones are no connections yet.
	Dialling int
	// Waiting takers stand in the queue.
	Waiting int
	// Size is the largest number of connections.
	Size int
}

// Stats returns the present numbers.
func (p *Pool[T]) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{Idle: len(p.idle), Used: p.slots - len(p.idle), Dialling: p.slots - len(p.members), Waiting: p.Waiting(), Size: p.size}
}
