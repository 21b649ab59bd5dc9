package admit

import (
	"container/heap"
	"context"
	"time"

	"fournines/gateway/balance"
)

const (
	// batchTurn: when both wait, one place in so many goes to batch work, so
	// that it never starves.
	batchTurn = 16
	// looks bounds how many apps are tried for one place when the first in
	// line cannot use it (it has been at that endpoint already, say).
	looks = 8
	// yieldLooks bounds them with those that yield, who must not stand before
	// the one for whom they do.
	yieldLooks = 64
	// standingAfter times its patience is how long a queue may stand before that
	// patience applies: a burst that is over sooner may wait the whole time.
	standingAfter = 4
)

// waiter is a request that waits. All but result is guarded by Controller.mu.
type waiter struct {
	t          *Ticket
	tried      []*balance.Endpoint
	queue      *appQueue
	since      time.Time
	prev, next *waiter
	waits      bool
	result     chan verdict // takes one
}

type verdict struct {
	outcome Outcome
	refused *Refused
}

// appQueue holds one app's waiting requests of one priority, first come first
// served.
type appQueue struct {
	app         *App
	first, last *waiter
	length      int
	since       time.Time // it has not been empty since

	start  float64 // virtual time at which its first request may go
	finish float64 // virtual time at which what it has got so far ends
	at     int     // place in the lane's heap, -1 when it is not there
	parked bool    // it waits for its app's bulkhead, not for a place
}

func (q *appQueue) push(w *waiter, first bool) {
	w.waits = true
	q.length++
	switch {
	case q.first == nil:
		q.first, q.last, q.since = w, w, w.since
	case first:
		w.next, q.first.prev = q.first, w
		q.first = w
	default:
		w.prev, q.last.next = q.last, w
		q.last = w
	}
}

func (q *appQueue) remove(w *waiter) {
	w.waits = false
	q.length--
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.prev, w.next = nil, nil
}

// patience is how long its requests wait now.
func (q *appQueue) patience(cfg *Config, now time.Time) time.Duration {
	if cfg.Target > 0 && now.Sub(q.since) > min(standingAfter*cfg.Target, cfg.Timeout) {
		return min(cfg.Target, cfg.Timeout)
	}
	return cfg.Timeout
}

// lane is the apps that wait at one priority, the one that has got least for its
// weight first: start-time fair queueing. Virtual time is the start of the
// request that was served last; an app's next request starts when its last one
// has ended, but not in the past, so that nobody saves up a right to a burst.
type lane struct {
	queues []*appQueue // a heap by start
	parked map[*appQueue]struct{}
	now    float64
	last   float64 // the latest finish given out
	length int     // requests, parked ones included
	weight float64 // of the apps in the heap
}

// heap.Interface.
func (l *lane) Len() int           { return len(l.queues) }
func (l *lane) Less(i, j int) bool { return l.queues[i].start < l.queues[j].start }
func (l *lane) Swap(i, j int) {
	l.queues[i], l.queues[j] = l.queues[j], l.queues[i]
	l.queues[i].at, l.queues[j].at = i, j
}

// Push and Pop are the heap's; enlist and delist are the lane's.
func (l *lane) Push(x any) {
	q := x.(*appQueue)
	q.at = len(l.queues)
	l.queues = append(l.queues, q)
}

// Pop implements heap.Interface.
func (l *lane) Pop() any {
	last := len(l.queues) - 1
	q := l.queues[last]
	l.queues[last], l.queues = nil, l.queues[:last]
	q.at = -1
	return q
}

// enlist puts q in line for places.
func (l *lane) enlist(q *appQueue) {
	if q.parked {
		q.parked = false
		delete(l.parked, q)
	}
	if q.at >= 0 || q.first == nil {
		return
	}
	q.start = max(l.now, q.finish)
	l.weight += q.app.limits.Load().weight()
	heap.Push(l, q)
}

// delist takes q out of the line.
func (l *lane) delist(q *appQueue) {
	if q.at >= 0 {
		heap.Remove(l, q.at)
		l.reweigh()
	}
	if q.parked {
		q.parked = false
		delete(l.parked, q)
	}
}

// reweigh adds up anew: a weight may have changed since it was added.
func (l *lane) reweigh() {
	l.weight = 0
	for _, q := range l.queues {
		l.weight += q.app.limits.Load().weight()
	}
}

// park lets q wait for its app's bulkhead, unless that has just opened.
func (l *lane) park(q *appQueue) {
	l.delist(q)
	q.app.parked.Store(true)
	if q.app.open() {
		l.enlist(q) // app.parked stays; it costs a look
		return
	}
	q.parked = true
	if l.parked == nil {
		l.parked = map[*appQueue]struct{}{}
	}
	l.parked[q] = struct{}{}
}

// wait puts t in line and waits for its turn.
func (c *Controller) wait(ctx context.Context, t *Ticket, tried []*balance.Endpoint) (Outcome, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	cfg := c.cfg.Load()
	w := &waiter{t: t, tried: tried, queue: &t.App.queues[t.Priority], since: time.Now(), result: make(chan verdict, 1)}
	c.mu.Lock()
	refused := c.join(w, cfg)
	c.mu.Unlock()
	if refused != nil {
		return 0, refused
	}
	select {
	case v := <-w.result: // the usual case costs no timer
		return c.settle(w, v)
	default:
	}
	timer := time.NewTimer(cfg.Timeout)
	defer timer.Stop()
	select {
	case v := <-w.result:
		return c.settle(w, v)
	case <-timer.C:
	case <-ctx.Done():
	}
	c.mu.Lock()
	left := w.waits
	if left {
		c.remove(w)
		if ctx.Err() == nil {
			reason := ReasonTimeout
			if !t.App.open() {
				reason = ReasonBulkhead
			}
			refused = c.refuse(w.queue, t.Priority, reason, w.since.Add(cfg.Timeout))
		}
	}
	c.mu.Unlock()
	switch {
	case refused != nil:
		return 0, refused
	case left:
		return 0, context.Cause(ctx)
	}
	v := <-w.result // it came at the same moment
	if ctx.Err() != nil {
		t.Slot.Release()
		return 0, context.Cause(ctx)
	}
	return c.settle(w, v)
}

func (c *Controller) settle(w *waiter, v verdict) (Outcome, error) {
	if v.refused != nil {
		return 0, v.refused
	}
	c.m.wait[w.t.Priority].Observe(time.Since(w.since).Seconds())
	return v.outcome, nil
}

// join puts w in line, or says why not. c.mu is held.
func (c *Controller) join(w *waiter, cfg *Config) *Refused {
	q, p, now := w.queue, w.t.Priority, w.since
	l := &c.lanes[p]
	if !w.t.entered { // a second attempt has been through all this
		closed := !q.app.open()
		limit := q.app.limits.Load().MaxQueue
		if limit <= 0 {
			limit = cfg.AppQueue
		}
		total := cfg.MaxQueue
		if p == Batch {
			total /= 2
		}
		switch {
		case closed && q.length >= limit:
			return c.refuse(q, p, ReasonBulkhead, now)
		case q.length >= limit:
			return c.refuse(q, p, ReasonAppQueue, now)
		case cfg.MaxQueue <= 0 || int(c.waiting.Load()) >= total && !c.displace(q, p, now):
			return c.refuse(q, p, ReasonQueue, now)
		}
		// Whoever is the first to want a place waits: to refuse him as well would
		// leave nobody from whom to learn how fast places come free.
		if expect, ok := c.expect(q, p, now); ok && !closed && c.wanted() && expect > q.patience(cfg, now) {
			return c.refuse(q, p, ReasonWait, now)
		}
	}
	c.waiting.Add(1)
	if !c.wanted() {
		c.drain.begin(now)
	}
	l.length++
	q.push(w, w.t.entered)
	if !q.parked {
		l.enlist(q)
	}
	// A place may have come free between the failed attempt and now.
	c.dispatch(now)
	return nil
}

// displace makes room for a request in q by refusing one that has less right to
// be there: batch work, or the last one of the app that has most waiting for its
// weight. c.mu is held.
func (c *Controller) displace(q *appQueue, p Priority, now time.Time) bool {
	longest := func(l *lane, more float64) (victim *appQueue) {
		look := func(o *appQueue) {
			if n := float64(o.length) / o.app.limits.Load().weight(); n > more && o.last != nil && !o.last.t.entered {
				victim, more = o, n
			}
		}
		for _, o := range l.queues {
			look(o)
		}
		for o := range l.parked {
			look(o)
		}
		return victim
	}
	var victim *appQueue
	if p == Interactive {
		victim = longest(&c.lanes[Batch], 0)
	}
	from := Batch
	if victim == nil {
		from = p
		victim = longest(&c.lanes[p], float64(q.length+1)/q.app.limits.Load().weight())
	}
	if victim == nil || victim == q {
		return false
	}
	w := victim.last
	c.remove(w)
	w.result <- verdict{refused: c.refuse(victim, from, ReasonDisplaced, now)}
	return true
}

// remove takes w out of line. c.mu is held.
func (c *Controller) remove(w *waiter) {
	l := &c.lanes[w.t.Priority]
	w.queue.remove(w)
	l.length--
	c.waiting.Add(-1)
	if w.queue.first == nil {
		l.delist(w.queue)
	}
}

// dispatch gives free places to those who wait. c.mu is held.
func (c *Controller) dispatch(now time.Time) {
	c.survey(now)
	for c.waiting.Load() > 0 {
		first, second := &c.lanes[Interactive], &c.lanes[Batch]
		if c.turns >= batchTurn-1 {
			first, second = second, first
		}
		if !c.serve(first, now) && !c.serve(second, now) {
			return
		}
	}
}

// serve finds somebody in l for a free place, and returns false when there is no
// place or nobody who could use it. c.mu is held.
func (c *Controller) serve(l *lane, now time.Time) (served bool) {
	var aside []*appQueue
	defer func() {
		for _, q := range aside {
			l.enlist(q)
		}
	}()
	cfg := c.cfg.Load()
	others := 0
	for len(l.queues) > 0 && others < looks && len(aside) < yieldLooks {
		q := l.queues[0]
		w := q.first
		if now.Sub(w.since) > q.patience(cfg, now) {
			// Whoever has waited that long is as good as gone.
			c.remove(w)
			w.result <- verdict{refused: c.refuse(q, w.t.Priority, ReasonStanding, now)}
			continue
		}
		if !w.t.entered && !q.app.enter() {
			l.park(q)
			continue
		}
		kind := w.t.Kind
		kind.Yields = q.app.recent.yields
		switch c.pool.Take(w.tried, kind, &w.t.Slot) {
		case balance.Took:
			c.serveFirst(l, q, now)
			return true
		case balance.Exhausted:
			w.t.entered = true
			c.remove(w)
			w.result <- verdict{outcome: Exhausted}
			return true
		}
		if !w.t.entered {
			q.app.leave()
		}
		if len(w.tried) == 0 && !w.t.Kind.Streams && !kind.Yields {
			return false // what it cannot use nobody can
		}
		if !kind.Yields {
			others++
		}
		l.delist(q)
		aside = append(aside, q)
	}
	return false
}

// serveFirst hands the place that the first of q has got over to it.
func (c *Controller) serveFirst(l *lane, q *appQueue, now time.Time) {
	w := q.first
	cost := w.t.cost()
	l.now = q.start
	q.finish = q.start + cost/q.app.limits.Load().weight()
	l.last = max(l.last, q.finish)
	w.t.entered = true
	c.remove(w)
	if q.first != nil {
		q.start = q.finish
		heap.Fix(l, q.at)
	} else if len(l.queues) == 0 {
		l.now = l.last // a busy time has ended: nobody has a debt
	}
	if w.t.Priority == Batch {
		c.turns = 0
	} else if c.lanes[Batch].length > 0 {
		c.turns++
	}
	c.drain.served(now)
	c.m.admitted(q.app, cost)
	w.result <- verdict{outcome: Admitted}
}

// unpark puts the app's parked requests back in line. c.mu is held.
func (c *Controller) unpark(a *App) {
	a.parked.Store(false)
	for p := range a.queues {
		if q := &a.queues[p]; q.parked {
			c.lanes[p].enlist(q)
		}
	}
}
