package admit

import (
	"math"
	"math/rand/v2"
	"time"
)

// Why a request was refused; a bounded metric label.
const (
	ReasonBulkhead  = "bulkhead"  // the app has all the requests in work and waiting that it may have
	ReasonAppQueue  = "app_queue" // the app has all the waiting requests that it may have
	ReasonQueue     = "queue"     // the queue is full
	ReasonDisplaced = "displaced" // it gave its place in the queue to one with more right to it
	ReasonWait      = "wait"      // it would have waited in vain
	ReasonTimeout   = "timeout"   // it has waited in vain
	ReasonStanding  = "standing"  // it has waited longer than the app's standing queue allows
)

var reasons = [...]string{ReasonBulkhead, ReasonAppQueue, ReasonQueue, ReasonDisplaced, ReasonWait, ReasonTimeout, ReasonStanding}

// Refused says that a request got no place. Nothing of it was carried out.
type Refused struct {
	Reason string
	// RetryAfter is when it makes sense to try again: whole seconds, 1 to 60.
	RetryAfter time.Duration
}

// Error implements error.
func (r *Refused) Error() string { return "refused: " + r.Reason }

// OwnFault tells whether the app itself has too much in work, as opposed to all
// apps together.
func (r *Refused) OwnFault() bool { return r.Reason == ReasonBulkhead }

const (
	retryMin = time.Second
	retryMax = time.Minute
)

// refuse makes a refusal of a request of q. c.mu is held.
func (c *Controller) refuse(q *appQueue, p Priority, reason string, now time.Time) *Refused {
	c.m.refused(q.app, p, reason)
	q.app.recent.shedNow++
	after, ok := c.expect(q, p, now)
	if !ok {
		after = c.cfg.Load().Target
	}
	// Spread over half as much again and a second, so that those refused
	// together do not come back together.
	after = min(max(after, retryMin), retryMax)
	after += rand.N(after/2 + time.Second)
	after = time.Duration(math.Ceil(after.Seconds())) * time.Second
	return &Refused{Reason: reason, RetryAfter: min(after, retryMax)}
}

// wanted tells whether somebody waits for a place, and not only for a bulkhead.
// c.mu is held.
func (c *Controller) wanted() bool {
	return len(c.lanes[Interactive].queues)+len(c.lanes[Batch].queues) > 0
}

// expect estimates how long one more request of q would wait. It is false while
// too little is known. c.mu is held.
func (c *Controller) expect(q *appQueue, p Priority, now time.Time) (time.Duration, bool) {
	if !c.wanted() {
		now = c.drain.last // nobody wants a place, so nobody gets one: that is no slowness
	}
	perSecond, ok := c.drain.perSecond(now)
	if !ok {
		return 0, false
	}
	l := &c.lanes[p]
	weight, all := q.app.limits.Load().weight(), l.weight
	if q.at < 0 {
		all += weight
	}
	if p == Batch && c.lanes[Interactive].length > 0 {
		perSecond /= batchTurn
	}
	wait := float64(q.length+1) / (perSecond * weight / all)
	return time.Duration(min(wait, retryMax.Seconds()) * float64(time.Second)), true
}

const (
	// rateLeast is how many places must have been given out in a busy time
	// before its rate means something.
	rateLeast = 8
	// rateSpan is what the rate looks back on, about.
	rateSpan = 4 * time.Second
)

// drain measures how fast those who wait get places. A busy time begins when the
// first one waits. It is guarded by Controller.mu.
type drain struct {
	from time.Time
	last time.Time // when somebody got a place, or the busy time began
	n    float64
}

// begin starts a busy time; one that ended a moment ago goes on, without the
// time in which nobody waited: that places were not asked for does not say that
// there were none.
func (r *drain) begin(now time.Time) {
	idle := now.Sub(r.last)
	r.last = now
	if idle > rateSpan {
		r.from, r.n = now, 0
		return
	}
	r.from = r.from.Add(idle)
}

func (r *drain) served(now time.Time) {
	r.n++
	r.last = now
	if age := now.Sub(r.from); age > rateSpan {
		r.from, r.n = r.from.Add(age/2), r.n/2
	}
}

func (r *drain) perSecond(now time.Time) (rate float64, ok bool) {
	age := now.Sub(r.from)
	if r.n < rateLeast || age <= 0 {
		return 0, false
	}
	return r.n / age.Seconds(), true
}
