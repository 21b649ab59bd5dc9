package gateway

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"time"

	"fournines/gateway/balance"
	"fournines/gateway/dify"
)

// retryPause separates two attempts at the same instance.
const retryPause = 50 * time.Millisecond

// upstream is an instance's answer and what must be given back after it.
type upstream struct {
	resp   *http.Response
	ep     *balance.Endpoint
	pool   *balance.Pool
	cancel context.CancelCauseFunc
	held   *[]byte // the whole body, when it was prefetched
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
	u.pool.Release(u.ep)
}

// failure is an attempt without an answer.
type failure struct {
	err    error
	unsent bool // the instance provably got nothing of the request
	died   bool // the connection broke, as opposed to a timeout
	reason string
}

// answer says what the client is told when there is no further attempt.
func (f failure) answer() error {
	switch {
	case f.unsent:
		return dify.ErrUnavailable
	case f.died:
		return dify.ErrBadGateway
	}
	return dify.ErrTimeout
}

// send finds an instance that answers. Its rules for a second attempt:
//
//   - an instance that provably got nothing (no connection, nothing written, or
//     nothing acknowledged by its TCP) has done nothing: any request goes on;
//   - an idempotent request goes on after any failure and after 502, 503, 504;
//   - a chat that asked for a stream and has shown its client no event but
//     pings goes on once when its instance died (see mayRestart);
//   - never without budget, never beyond the attempts, never when the body
//     has partly gone and was not kept.
func (x *exchange) send() (*upstream, error) {
	for {
		ep, err := x.acquire()
		if err != nil {
			return nil, err
		}
		x.attempts++
		up, f := x.try(ep)
		if up != nil {
			status := up.resp.StatusCode
			if status >= 500 && status != http.StatusNotImplemented {
				x.g.pool.Report(ep, balance.ServerError)
			} else {
				x.g.pool.Report(ep, balance.Success)
			}
			if !x.class.Idempotent() || !retryableStatus(status) || !x.mayRetry("status") {
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
		x.g.pool.Report(ep, balance.Failure)
		x.tried = append(x.tried, ep)
		x.g.log.Debug("attempt failed", "id", x.id, "endpoint", ep.Name, "reason", f.reason, "unsent", f.unsent, "err", f.err)
		if !x.permitted(f) || !x.mayRetry(f.reason) {
			return nil, f.answer()
		}
	}
}

func retryableStatus(code int) bool {
	return code == http.StatusBadGateway || code == http.StatusServiceUnavailable || code == http.StatusGatewayTimeout
}

// acquire takes a place at an instance that has not been tried; when all have
// been, it begins again after a short pause.
func (x *exchange) acquire() (*balance.Endpoint, error) {
	ep, err := x.g.pool.Acquire(x.ctx, x.tried)
	if err != nil || ep != nil {
		return ep, err
	}
	timer := time.NewTimer(retryPause/2 + rand.N(retryPause))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-x.ctx.Done():
		return nil, context.Cause(x.ctx)
	}
	x.tried = x.tried[:0]
	if ep, err = x.g.pool.Acquire(x.ctx, nil); err == nil && ep == nil {
		return nil, dify.ErrUnavailable
	}
	return ep, err
}

// permitted says whether the rules allow another attempt after f.
func (x *exchange) permitted(f failure) bool {
	if f.unsent || x.class.Idempotent() {
		return true
	}
	if f.died && x.mayRestart() {
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
	return x.class == dify.Chat && x.mode == dify.Streaming && x.restarts == 0 &&
		x.set.Stream.Restart == RestartBeforeContent
}

// mayRetry checks attempts, body and budget, and takes from the budget.
func (x *exchange) mayRetry(reason string) bool {
	if x.attempts >= x.set.Retry.Attempts || !x.body.resendable() || x.ctx.Err() != nil {
		return false
	}
	if !x.g.budget.Retry(x.set.Retry.BudgetShare, x.set.Retry.BudgetMin) {
		x.g.m.noBudget.Inc()
		return false
	}
	x.g.m.retries.WithLabelValues(x.class.String(), reason).Inc()
	return true
}

// try makes one attempt at ep, whose place it holds, and gives the place back
// when it fails.
func (x *exchange) try(ep *balance.Endpoint) (*upstream, failure) {
	ctx, cancel := context.WithCancelCause(x.ctx)
	var conn *upstreamConn
	var before int64
	connected := false
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		connected = true
		if conn = counted(info.Conn); conn != nil {
			before = conn.written.Load()
		}
	}}
	req := (&http.Request{
		Method: x.r.Method, URL: x.target(ep), Host: x.r.Host, Header: x.r.Header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(httptrace.WithClientTrace(ctx, trace))
	req.Body, req.ContentLength = x.body.open()

	var timer *time.Timer
	if x.class.Idempotent() {
		timer = time.AfterFunc(x.set.Retry.TryTimeout, func() { cancel(errTryTimeout) })
		// An instance that hangs answers probes no sooner than requests: what
		// may be asked elsewhere does not wait for its own timeout.
		defer context.AfterFunc(ep.Down(), func() {
			if timer.Stop() {
				cancel(errTryTimeout)
			}
		})()
	}
	begin := time.Now()
	resp, err := x.g.transport.RoundTrip(req)
	up := &upstream{resp: resp, ep: ep, pool: x.g.pool, cancel: cancel}
	if err == nil {
		ep.Observe(time.Since(begin))
		err = up.prefetch(x)
	}
	stopped := timer == nil || timer.Stop()
	if err == nil && stopped {
		return up, failure{}
	}
	if resp != nil {
		up.close()
		if err == nil {
			err = errTryTimeout
		}
		return nil, failure{err: err, died: stopped, reason: "cut"}
	}
	defer x.g.pool.Release(ep)
	defer cancel(nil)
	switch {
	case !stopped:
		ep.Observe(time.Since(begin))
		return nil, failure{err: err, reason: "timeout"}
	case !connected:
		return nil, failure{err: err, unsent: true, reason: "connect"}
	case conn != nil && conn.untouched(before):
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
