package balance

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ErrOverloaded says that all endpoints are full and so is the queue, or that
// a place did not come free in time.
var ErrOverloaded = errors.New("all endpoints are busy")

// queue holds the requests that wait for a free place, first come first served.
type queue struct {
	length  atomic.Int64 // read without the lock by Release, nearly always 0
	mu      sync.Mutex
	waiters []chan struct{}
}

// Waiting returns how many requests wait for a free endpoint.
func (p *Pool) Waiting() int { return int(p.queue.length.Load()) }

func (q *queue) join(limit int) (chan struct{}, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiters) >= limit {
		return nil, false
	}
	w := make(chan struct{}, 1)
	q.waiters = append(q.waiters, w)
	q.length.Store(int64(len(q.waiters)))
	return w, true
}

// leave removes w; when it had been woken meanwhile, the wake goes to the next.
func (q *queue) leave(w chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, other := range q.waiters {
		if other == w {
			q.waiters = append(q.waiters[:i], q.waiters[i+1:]...)
			q.length.Store(int64(len(q.waiters)))
			return
		}
	}
	q.popLocked()
}

func (q *queue) popLocked() {
	if len(q.waiters) == 0 {
		return
	}
	q.waiters[0] <- struct{}{}
	q.waiters = q.waiters[1:]
	q.length.Store(int64(len(q.waiters)))
}

func (q *queue) wakeOne() {
	if q.length.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.popLocked()
}

func (q *queue) wakeAll() {
	if q.length.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiters) > 0 {
		q.popLocked()
	}
}

// wait queues until an endpoint has a free place. Being woken is a hint: the
// place may be gone again, then the request queues anew in what is left of its
// time.
func (p *Pool) wait(ctx context.Context, tried []*Endpoint) (*Endpoint, error) {
	timer := time.NewTimer(p.snap.Load().cfg.QueueTimeout)
	defer timer.Stop()
	for {
		w, ok := p.queue.join(p.snap.Load().cfg.MaxQueue)
		if !ok {
			return nil, ErrOverloaded
		}
		// A place may have come free between the failed choice and joining.
		s := p.snap.Load()
		if e := s.pick(tried); e != nil {
			if n := e.inFlight.Add(1); s.cfg.MaxInFlight <= 0 || n <= s.cfg.MaxInFlight {
				p.queue.leave(w)
				return e, nil
			}
			e.inFlight.Add(-1)
		} else if s.exhausted(tried) {
			p.queue.leave(w)
			return nil, nil
		}
		select {
		case <-w:
		case <-timer.C:
			p.queue.leave(w)
			return nil, ErrOverloaded
		case <-ctx.Done():
			p.queue.leave(w)
			return nil, context.Cause(ctx)
		}
	}
}
