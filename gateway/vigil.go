package gateway

import (
	"context"
	"sync"
	"time"

	"fournines/gateway/balance"
)

// recheck is how often an attempt that takes too long looks for somewhere else
// to go, when there was nowhere at first.
const recheck = time.Second

// attendAfter is when an attempt's instance begins to be watched: most answers
// are here before, and a watch costs more than a timer.
const attendAfter = 50 * time.Millisecond

// vigil watches one attempt at an idempotent request. When the answer does not
// begin within retry.tryTimeout, or probes find the instance unhealthy, the
// attempt is given up for another instance. Where there is none to go to, or no
// attempt or budget left, it waits on until the request's own end: a database
// that fails over is a wait, and a wait beats an error.
type vigil struct {
	x       *exchange
	ep      *balance.Endpoint
	cancel  context.CancelCauseFunc
	begin   time.Time
	limit   time.Duration
	unwatch func() bool // nil until attend

	mu       sync.Mutex  // the exchange stands still in its attempt while look holds it
	timer    *time.Timer // nil when nothing is watched
	over     bool        // the attempt has ended
	left     bool        // it was given up, and the next one is paid for
	late     bool        // it has been reported as slow
	noBudget bool        // the budget's refusal has been counted
	expired  bool        // the time for the first content is over
}

// watch begins. Of a request that must not be sent twice it watches the time for
// the first content only, which the stream's own watch goes on with.
func (x *exchange) watch(ep *balance.Endpoint, cancel context.CancelCauseFunc) *vigil {
	v := &vigil{x: x, ep: ep, cancel: cancel, begin: time.Now(), limit: x.set.Retry.TryTimeout}
	x.asking = v.begin
	if !x.class.Idempotent() {
		if limit := x.firstContentLimit(); limit > 0 {
			v.timer = time.AfterFunc(limit, v.expire)
		}
		return v
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	down := ep.Down()
	v.timer = time.AfterFunc(min(v.limit, attendAfter), func() { v.attend(down) })
	return v
}

// attend begins to watch the instance. An instance that hangs answers probes no
// sooner than requests: what may be asked elsewhere does not wait for its own
// timeout.
func (v *vigil) attend(down context.Context) {
	v.mu.Lock()
	if !v.over {
		v.unwatch = context.AfterFunc(down, v.look)
	}
	v.mu.Unlock()
	v.look()
}

// expire gives up an attempt whose answer has not even begun.
func (v *vigil) expire() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.over {
		v.expired = true
		v.cancel(errNoContent)
	}
}

// end stops the watch and tells whether the attempt was given up.
func (v *vigil) end() bool {
	if v.timer == nil {
		return false
	}
	v.timer.Stop()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unwatch != nil {
		v.unwatch()
	}
	v.over = true
	return v.left
}

// look decides about the attempt; it runs on the timer and when the instance
// goes down.
func (v *vigil) look() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over || v.left || v.x.ctx.Err() != nil {
		return
	}
	took := time.Since(v.begin)
	if took < v.limit && v.ep.Healthy() {
		v.timer.Reset(v.limit - took) // it went down and came back
		return
	}
	if took >= v.limit && !v.late {
		v.late = true
		v.ep.Observe(took)
		v.x.g.pool.Report(v.ep, balance.Slow)
	}
	if v.mayLeave() {
		v.left = true
		v.cancel(errTryTimeout)
		return
	}
	v.timer.Reset(min(v.limit, recheck))
}

// mayLeave tells whether another attempt is possible, and pays for it then.
func (v *vigil) mayLeave() bool {
	x := v.x
	if !x.mayAttempt(x.attempts) || !x.g.pool.Another(v.ep, x.tried) {
		return false
	}
	if !x.mayPay("timeout", !v.noBudget) {
		v.noBudget = true
		return false
	}
	return true
}
