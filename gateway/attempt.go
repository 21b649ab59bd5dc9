package gateway

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"fournines/gateway/admit"
	"fournines/gateway/balance"
	"fournines/gateway/dify"
	"fournines/internal/http1"
)

// retryPause separates two attempts at the same instance.
const retryPause = 50 * time.Millisecond

// upstream is an instance's answer and what must be given back after it.
type upstream struct {
	resp   *http.Response
	end    *http1.Cancel // its cause says who ended the attempt
	ep     *balance.Endpoint
	slot   *balance.Slot
	cancel context.CancelCauseFunc
	held   *[]byte // the whole body, when it was prefetched
	late   bool    // it has been reported as slow
	closed bool
}

// close ends the attempt: an answer that is still coming is broken off, which
// tells the instance that nobody waits any more.
func (u *upstream) close() {
	if u.closed {
		return
	}
	u.closed = true
	u.cancel(nil)
	_ = u.resp.Body.Close()
	u.slot.Release()
}

// failure is an attempt without an answer.
type failure struct {
	err    error
	unsent bool // the instance provably got nothing of the request
	died   bool // the connection broke, as opposed to a timeout
	left   bool // given up for another instance; the budget has paid for that
	silent bool // nothing came within stream.firstContentTimeout
	reason string
}

// answer says what the client is told when there is no further attempt.
func (f failure) answer() error {
	switch {
	case f.unsent:
		return dify.ErrUnavailable
	case f.died:
		return dify.ErrBadGateway
	case f.silent:
		return dify.ErrNoContent
	}
	return dify.ErrTimeout
}

// send finds an instance that answers. Its rules for a second attempt:
//
//   - an instance that provably got nothing (no connection, nothing written, or
//     nothing acknowledged by its TCP) has done nothing: any request goes on;
//   - an idempotent request goes on after any failure, after 502, 503, 504, and
//     once after 500;
//   - a chat that asked for a stream and has shown its client no event but
//     pings goes on once when its instance died (see mayRestart);
//   - never without budget, never beyond the attempts, never when the body
//     has partly gone and was not kept.
//
// An attempt that takes too long is given up only for another one (see vigil).
func (x *exchange) send() (*upstream, error) {
	for {
		ep, err := x.acquire()
		if err != nil {
			return nil, err
		}
		x.attempts++
		x.span.beginAttempt(x.attempts, ep)
		up, f := x.try(ep)
		x.span.endAttempt(up, f)
		if !f.unsent {
			x.trace.Reach()
		}
		if up != nil {
			status := up.resp.StatusCode
			x.learn(status)
			switch {
			case status >= 500 && status != http.StatusNotImplemented:
				x.g.pool.Report(ep, balance.ServerError)
			case !up.late: // what counted as slow does not make up for it by ending well
				x.g.pool.Report(ep, balance.Success)
			}
			if !x.class.Idempotent() || !x.retryableStatus(ep, status) || !x.mayRetry("status") {
				return up, nil
			}
			_, _ = io.CopyN(io.Discard, up.resp.Body, copyBytes) // so that the connection can be used again
			up.close()
			x.tried = append(x.tried, ep)
			continue
		}
		if x.ctx.Err() != nil {
			return nil, context.Cause(x.ctx)
		}
		if err := x.body.problem(); err != nil {
			return nil, err // the client's fault, not the instance's
		}
		switch {
		case f.silent:
			x.g.pool.Report(ep, balance.Slow)
		case !f.left:
			x.g.pool.Report(ep, balance.Failure)
		}
		x.tried = append(x.tried, ep)
		x.g.log.Debug("attempt failed", "id", x.id, "endpoint", ep.Name, "reason", f.reason, "unsent", f.unsent, "err", f.err)
		if f.left {
			x.leaves++
			if !x.body.resendable() {
				return nil, f.answer() // it began to go out when the attempt was given up
			}
			continue
		}
		if !x.permitted(f) || !x.mayRetry(f.reason) {
			return nil, f.answer()
		}
	}
}

// retryableStatus tells whether another instance may answer better than ep did.
// A 500 is most often the app's own, wherever it runs, but one instance may be
// ill alone: it is worth one question to another one.
func (x *exchange) retryableStatus(ep *balance.Endpoint, code int) bool {
	switch code {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	case http.StatusInternalServerError:
		x.internalErrors++
		return x.internalErrors == 1 && x.g.pool.Another(ep, x.tried)
	}
	return false
}

// acquire takes a place at an instance that has not been tried; when all that
// may be used have been, it begins again after a short pause, with the one that
// failed last at the end.
func (x *exchange) acquire() (*balance.Endpoint, error) {
	if x.ticket.App == nil {
		x.queueUp()
	}
	got, err := x.g.admit.Acquire(x.ctx, &x.ticket, x.tried)
	if err != nil || got == admit.Admitted {
		return x.ticket.Slot.Endpoint, err
	}
	timer := time.NewTimer(retryPause/2 + rand.N(retryPause))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-x.ctx.Done():
		return nil, context.Cause(x.ctx)
	}
	// Somebody may have come into service meanwhile.
	for _, avoid := range [...][]*balance.Endpoint{x.tried, x.tried[max(0, len(x.tried)-1):], nil} {
		if got, err = x.g.admit.Acquire(x.ctx, &x.ticket, avoid); err != nil || got == admit.Admitted {
			x.tried = slices.Clone(avoid)
			return x.ticket.Slot.Endpoint, err
		}
	}
	return nil, dify.ErrUnavailable
}

// permitted says whether the rules allow another attempt after f.
func (x *exchange) permitted(f failure) bool {
	if f.unsent || x.class.Idempotent() {
		return true
	}
	if f.died && x.mayRestart() || f.silent && x.mayLeaveSilent() {
		x.restarts++
		return true
	}
	return false
}

// mayRestart tells whether a request that an instance may have begun to work
// on is given to another one after the first died. Only chat and completion
// streams are, once: their client has seen no identifier yet, and what the dead
// instance can have left is a message without an answer, which Dify leaves out
// of the conversation. Workflow runs are not: from Dify 1.13 on they live in a
// worker and may go on without the instance.
func (x *exchange) mayRestart() bool {
	return x.class == dify.Chat && x.asked.Mode == dify.Streaming && x.restarts == 0 &&
		x.set.Stream.Restart == RestartBeforeContent
}

// mayRetry tells whether another attempt is possible, and pays for it then.
func (x *exchange) mayRetry(reason string) bool {
	return x.mayAttempt(x.attempts-x.leaves) && x.mayPay(reason, true)
}

// mayAttempt checks body and attempts, of which made count. Those that were
// given up for slowness do not count against those that failed: who left a slow
// instance for a dead one must be able to go back and wait.
func (x *exchange) mayAttempt(made int) bool {
	return made < x.set.Retry.Attempts && x.body.resendable() && x.ctx.Err() == nil
}

// mayPay takes another attempt from the budget; count says whether a refusal is
// a new one.
func (x *exchange) mayPay(reason string, count bool) bool {
	if !x.g.budget.Retry(x.set.Retry.BudgetShare, x.set.Retry.BudgetMin) {
		if count {
			x.g.m.noBudget.Inc()
		}
		return false
	}
	x.g.m.retries.WithLabelValues(x.class.String(), reason).Inc()
	return true
}

// try makes one attempt at ep, whose place it holds, and gives the place back
// when it fails.
func (x *exchange) try(ep *balance.Endpoint) (*upstream, failure) {
	end := new(http1.Cancel)
	var cancel context.CancelCauseFunc = end.Cancel
	req := http1.Request{
		Cancel: end,
		Scheme: ep.Scheme, Address: ep.Address,
		Method: x.r.Method, Target: x.target(), Host: x.r.Host, Header: x.span.header(x.r.Header),
	}
	x.body.open(&req)

	v := x.watch(ep, cancel)
	begin := time.Now()
	resp, err := x.g.transport.Do(x.ctx, &req) //nolint:bodyclose // upstream.close does, here or where the answer has been passed on
	up := &upstream{resp: resp, end: end, ep: ep, slot: &x.ticket.Slot, cancel: cancel}
	if err == nil {
		ep.Observe(time.Since(begin))
		err = up.prefetch(x)
	}
	left := v.end()
	up.late = v.late
	if err == nil && !left {
		return up, failure{}
	}
	if resp != nil {
		up.close()
		if left {
			return nil, failure{err: errTryTimeout, left: true, reason: "timeout"}
		}
		return nil, failure{err: err, died: true, reason: "cut"}
	}
	defer x.ticket.Slot.Release()
	defer cancel(nil)
	got := http1.Lost
	var e *http1.Error
	if errors.As(err, &e) {
		got = e.Failed
	}
	switch {
	case left:
		return nil, failure{err: err, left: true, reason: "timeout"}
	case v.expired && got != http1.NotConnected:
		return nil, failure{err: err, silent: true, reason: "first_content"}
	case got == http1.NotConnected:
		return nil, failure{err: err, unsent: true, reason: "connect"}
	case got == http1.Unsent:
		return nil, failure{err: err, unsent: true, reason: "unsent"}
	}
	return nil, failure{err: err, died: true, reason: "reset"}
}

// prefetch takes in the answer to an idempotent request when it is short, so
// that the client never sees one that breaks off.
func (u *upstream) prefetch(x *exchange) error {
	n := u.resp.ContentLength
	if !x.class.Idempotent() || n <= 0 || n > prefetchBytes || x.r.Method == http.MethodHead ||
		u.resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(u.resp.Body, buf); err != nil {
		return err
	}
	u.held = &buf
	return nil
}
