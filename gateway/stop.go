package gateway

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"fournines/gateway/dify"
)

const (
	// stopTimeout bounds one stop call with all its attempts.
	stopTimeout = 5 * time.Second
	// maxStops is how many stop calls are in work at a time: a load balancer
	// that dies takes thousands of clients with it, and stopping what they
	// asked for must not be a flood of its own. More are not made.
	maxStops = 64
)

// stopAuth are the headers by which Dify knows who may stop a task: those of
// the service API, the web app and the console.
var stopAuth = [...]string{
	"Authorization", "Cookie", "X-Csrf-Token", "X-App-Code", "X-App-Passport",
	"X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id", "Traceparent", "Tracestate",
}

// stops are the stop calls in work.
type stops struct {
	mu   sync.Mutex
	work int
	over bool           // no more are begun
	wg   sync.WaitGroup // of those in work
}

// begin runs call in the background unless too many run already.
func (s *stops) begin(call func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.work == maxStops {
		return false
	}
	s.work++
	s.wg.Go(func() {
		call()
		s.mu.Lock()
		s.work--
		s.mu.Unlock()
	})
	return true
}

// end waits for those in work, which stopTimeout bounds; no more are begun.
func (s *stops) end() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.wg.Wait()
}

// stopTask tells Dify to stop the task of a stream that nobody reads any more.
// It sets a flag in Redis that any instance can set, so it also reaches a run
// whose own instance cannot be reached, or which lives in a worker. It returns
// at once; reason is a metric label.
func (p *pump) stopTask(reason string) {
	x := p.x
	if !x.set.Stream.StopOnDisconnect || p.terminal {
		return
	}
	path, ok := dify.StopPath(x.r.URL.Path, p.ids.TaskID)
	if !ok {
		return // no event has named the task: closing the connection has to do
	}
	// The next request of the conversation waits until this one is stopped.
	turn := x.turn
	if x.g.stops.begin(func() {
		defer turn.End()
		x.g.m.stops.WithLabelValues(reason, x.callStop(path)).Inc()
	}) {
		x.turn = nil
		return
	}
	x.g.m.stops.WithLabelValues(reason, "dropped").Inc()
}

// callStop makes the call as a request of its own, with the rules of any other
// idempotent one, and returns its outcome.
func (x *exchange) callStop(path string) string {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(x.r.Context()), stopTimeout, errRequestTimeout)
	defer cancel()
	raw, err := json.Marshal(map[string]string{"user": x.asked.User})
	if err != nil {
		return "failed"
	}
	h := http.Header{"Content-Type": {"application/json"}, "User-Agent": {"fournines-gateway"}}
	for _, name := range stopAuth {
		if v, ok := x.r.Header[name]; ok {
			h[name] = v
		}
	}
	r := (&http.Request{Method: http.MethodPost, URL: &url.URL{Path: path}, Host: x.r.Host, Header: h}).WithContext(ctx)
	s := &exchange{
		g: x.g, set: x.set, r: r, ctx: ctx, class: dify.Stop, id: x.id, app: x.app, start: time.Now(),
		asked: dify.Fields{Mode: dify.Blocking, User: x.asked.User},
		body:  body{held: raw, length: int64(len(raw))},
	}
	defer s.g.admit.Close(&s.ticket)
	up, err := s.send()
	if err != nil {
		x.g.log.Warn("stop call failed", "id", x.id, "err", err)
		return "failed"
	}
	defer up.close()
	if up.held == nil {
		_, _ = io.CopyN(io.Discard, up.resp.Body, copyBytes) // so that the connection can be used again
	}
	if up.resp.StatusCode != http.StatusOK {
		x.g.log.Warn("stop call refused", "id", x.id, "status", strconv.Itoa(up.resp.StatusCode))
		return "refused"
	}
	return "ok"
}
