package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"fournines/gateway/balance"
	"fournines/gateway/dify"
	"fournines/internal/http1"
	"fournines/internal/sse"
)

const (
	// deadlineStep is how often the write deadline of an HTTP/1 stream is
	// moved on: not with every event, a timer operation costs as much as a
	// small write.
	deadlineStep = 5 * time.Second
)

var heartbeat = []byte(": keepalive\n\n")

// sink is the client's side of an event stream. The handler writes events,
// a timer writes heartbeats.
//
// With a thousand streams the processor has forgotten all about one when its next
// event comes, and each place of the memory that has to be fetched costs as much
// as the rest of the work in it. So what every event needs is here, in one place,
// some of it a copy.
type sink struct {
	x        *exchange
	direct   *http1.Reply // x's
	class    dify.Class   // x's
	metered  bool         // x.meter.on
	boundary bool         // what was written ends between two events
	closed   bool
	content  atomic.Bool // an event other than a ping has come
	mu       sync.Mutex
	start    time.Time    // x's
	lastRead atomic.Int64 // of the current attempt: nanoseconds since start (a clock that is set does not matter); 0 while none is running
	last     time.Time    // of the last write
	err      error
	sent     int64        // bytes that are not in x.sent yet
	answer   *dify.Answer // the client gets this and not the events; nil for none
	held     hold

	deadline time.Time
	timer    *time.Timer

	// The current attempt, for the watch on its silence.
	cancel atomic.Pointer[context.CancelCauseFunc]
	asked  atomic.Int64 // when the attempt began, as lastRead
}

// pass writes p, and tells whether the client is behind.
func (s *sink) pass(p []byte, boundary bool, now time.Time) (behind bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer != nil {
		_, err := s.answer.Write(p)
		return false, err
	}
	if s.held.on {
		if s.keepLocked(p, boundary) {
			return false, nil
		}
		s.openLocked()
	}
	err = s.writeLocked(p, boundary, now)
	return err == nil && s.direct != nil && s.direct.Behind(), err
}

func (s *sink) writeLocked(p []byte, boundary bool, now time.Time) error {
	if s.err != nil {
		return s.err
	}
	if s.direct != nil {
		_, s.err = s.direct.Write(p) // which sends it
	} else {
		s.err = s.writeFlush(p, now)
	}
	s.sent += int64(len(p))
	s.last, s.boundary = now, boundary
	return s.err
}

// writeFlush writes to a client of net/http's server.
func (s *sink) writeFlush(p []byte, now time.Time) error {
	http2 := s.x.r.ProtoMajor >= 2
	limit := s.x.set.Limits.WriteTimeout
	if http2 || now.Add(limit).Sub(s.deadline) > min(deadlineStep, limit/4) {
		s.deadline = now.Add(limit)
		_ = s.x.rc.SetWriteDeadline(s.deadline)
	}
	_, err := s.x.w.Write(p)
	if err == nil {
		err = s.x.rc.Flush()
	}
	if http2 {
		s.x.unlimitWrite()
	}
	return err
}

// watch runs on the timer: it sends heartbeats and breaks off silent attempts.
func (s *sink) watch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	cfg := &s.x.set.Stream
	now := time.Now()
	next := cfg.IdleTimeout
	if at := s.lastRead.Load(); at != 0 {
		left := cfg.IdleTimeout - (now.Sub(s.start) - time.Duration(at))
		if left <= 0 {
			s.breakOff(errSilent)
			left = cfg.IdleTimeout
		}
		next = min(next, left)
		if limit := s.x.firstContentLimit(); limit > 0 && !s.content.Load() {
			if left = limit - (now.Sub(s.start) - time.Duration(s.asked.Load())); left <= 0 {
				s.breakOff(errNoContent)
				left = limit
			}
			next = min(next, left)
		}
	}
	if s.held.on && s.answer == nil {
		left := cfg.Hold - now.Sub(s.held.since)
		if left <= 0 {
			if s.openLocked(); s.err == nil {
				s.err = s.x.flush()
			}
		} else {
			next = min(next, left)
		}
	}
	if cfg.Heartbeat > 0 && !s.held.on {
		left := cfg.Heartbeat - now.Sub(s.last)
		if left <= 0 {
			if s.boundary {
				_ = s.writeLocked(heartbeat, true, now)
			}
			left = cfg.Heartbeat
		}
		next = min(next, left)
	}
	s.timer.Reset(max(next, time.Millisecond))
}

// firstLook is when watch has something to see.
func (s *sink) firstLook() time.Duration {
	cfg := &s.x.set.Stream
	d := cfg.IdleTimeout
	for _, limit := range [...]time.Duration{cfg.Heartbeat, s.x.firstContentLimit(), cfg.Hold} {
		if limit > 0 {
			d = min(d, limit)
		}
	}
	return max(d, time.Millisecond)
}

func (s *sink) breakOff(cause error) {
	if cancel := s.cancel.Load(); cancel != nil {
		(*cancel)(cause)
	}
}

func (s *sink) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.timer.Stop()
	s.x.sent += s.sent
	s.sent = 0
}

// streamEnd says how an attempt's stream ended.
type streamEnd uint8

const (
	streamDone streamEnd = iota // complete, or nobody is left to tell
	streamDead                  // the instance is gone
	streamGone                  // the client is gone
	streamOver                  // the gateway or the request's time has come to its end
)

// pump is the state of one event stream over all its attempts. Between events it
// holds no buffer.
type pump struct {
	sink
	scan     sse.Scanner
	part     *[]byte // from parts: the beginning of an event; nil when there is none
	terminal bool    // the client has got the last event
	ids      dify.StreamIDs
	silent   bool // the last attempt ended for silence
	late     bool // more precisely, for want of content
}

// serveStream passes an event stream. Events go on whole, as soon as they are
// complete, so that an instance that dies in the middle of one leaves nothing
// malformed behind.
func (x *exchange) serveStream(up *upstream) {
	x.streams()
	streamHeader(up.resp.Header)
	x.g.m.streams.Inc()
	defer x.g.m.streams.Dec()
	x.g.usage.opened(x)
	defer x.g.usage.closed(x)
	p := &pump{}
	now := time.Now()
	p.x, p.direct, p.class, p.metered, p.start = x, x.direct, x.class, x.meter.on, x.start
	p.boundary, p.last = true, now
	p.held = hold{on: true, since: now}
	p.follow(up)
	switch {
	case x.unblocked:
		p.answer = dify.NewAnswer(x.class, dify.Completion(x.r.URL.Path), x.set.Stream.BlockingBytes)
	case !x.holds(up.resp.StatusCode):
		p.open()
	}
	// The callback needs the timer, which needs the callback.
	p.mu.Lock()
	p.timer = time.AfterFunc(p.firstLook(), p.watch)
	p.mu.Unlock()
	defer p.close()
	defer func() {
		if up != nil { // a panic
			up.close()
		}
	}()
	for up != nil {
		up = p.attempt(up)
	}
}

// attempt passes one attempt's stream, ends the stream or returns the next one.
func (p *pump) attempt(up *upstream) *upstream {
	x := p.x
	end := p.run(up)
	p.lastRead.Store(0)
	p.cancel.Store(nil)
	up.close()
	switch end {
	case streamDone:
		p.finish()
		return nil
	case streamGone:
		if p.answer != nil && x.ctx.Err() == nil {
			p.fail(dify.ErrAnswerTooLarge) // it is the only thing that can fail to be written
			p.stopTask("given_up")
			return nil
		}
		p.close()
		x.status = statusClientGone
		x.g.m.disconnects.WithLabelValues(x.class.String()).Inc()
		p.stopTask("disconnect")
		return nil
	case streamOver:
		e := dify.ErrDraining
		if errors.Is(context.Cause(x.ctx), errRequestTimeout) {
			e = dify.ErrTimeout
		}
		p.fail(e)
		p.stopTask("given_up")
		return nil
	}
	met := balance.Cut
	if p.silent {
		met = balance.Slow
	}
	x.g.pool.Report(up.ep, met)
	x.tried = append(x.tried, up.ep)
	next, answer := p.restart()
	if next == nil {
		x.g.m.cuts.WithLabelValues("error_event").Inc()
		x.g.log.Warn("stream lost", "id", x.id, "endpoint", up.ep.Name, "content", p.content.Load(), "silent", p.silent)
		p.fail(answer)
		if p.silent {
			p.stopTask("given_up") // what died need not be stopped
		}
		return nil
	}
	x.g.m.cuts.WithLabelValues("restarted").Inc()
	if next.resp.StatusCode == http.StatusOK && isEventStream(next.resp.Header) {
		streamHeader(next.resp.Header)
		p.follow(next)
		return next
	}
	p.refuse(next, answer)
	return nil
}

// fail ends the stream in Dify's protocol, or with a status if the client has
// not got one yet.
func (p *pump) fail(e dify.Error) {
	if p.drop() {
		p.x.fail(e)
		return
	}
	p.x.broken = true
	var b []byte
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.boundary {
		b = append(b, "\n\n"...) // closes what had to be passed in parts
	}
	_ = p.writeLocked(e.AppendEvent(b, p.ids), true, time.Now())
}

// restart sends the request to another instance when the client has seen nothing
// of the stream. Otherwise it returns nil and the error to end it with.
func (p *pump) restart() (*upstream, dify.Error) {
	x := p.x
	lost, reason := dify.ErrStreamCut, "stream"
	allowed := x.class.Idempotent()
	switch {
	case p.late:
		lost, reason = dify.ErrNoContent, "first_content"
		allowed = allowed || x.mayLeaveSilent()
	case p.silent:
		lost, reason = dify.ErrStreamSilent, "silent"
		allowed = allowed || x.mayLeaveSilent()
	default:
		allowed = allowed || x.mayRestart()
	}
	if p.content.Load() || !p.boundary || !allowed || !x.mayRetry(reason) {
		return nil, lost
	}
	p.silent, p.late = false, false
	x.restarts++
	x.span.event("restart")
	up, err := x.send()
	if err != nil {
		var e dify.Error
		if errors.As(err, &e) {
			return nil, e
		}
		return nil, lost
	}
	return up, lost
}

// refuse passes on what is not a stream: the refusal of the second instance.
func (p *pump) refuse(up *upstream, lost dify.Error) {
	defer up.close()
	if p.drop() {
		p.x.heard(up)
		p.x.serveBody(up)
		return
	}
	e := dify.Error{Status: up.resp.StatusCode, Code: lost.Code, Message: lost.Message}
	if raw, err := io.ReadAll(io.LimitReader(up.resp.Body, refusalBytes)); err == nil && up.held == nil {
		var said dify.Error
		if json.Unmarshal(raw, &said) == nil && said.Code != "" {
			e.Code, e.Message = said.Code, said.Message
		}
	}
	p.fail(e)
}

// event takes note of one event that is about to be passed on.
func (p *pump) event(ev sse.Event, block []byte) {
	if !p.content.Load() && dify.Content(ev.Type, ev.Data) {
		p.content.Store(true)
		p.ids = dify.ParseIDs(block)
		p.x.content()
	}
	if p.metered {
		p.x.meter.event(p.class, ev.Type, block)
	}
	if dify.Terminal(p.class, ev.Type) {
		p.terminal = true
		p.x.endTurn()
	}
}

// ended interprets the error that ended an attempt's stream.
func (p *pump) ended(up *upstream, err error) streamEnd {
	x := p.x
	if x.ctx.Err() != nil {
		cause := context.Cause(x.ctx)
		if errors.Is(cause, errDraining) || errors.Is(cause, errRequestTimeout) {
			if p.terminal {
				return streamDone
			}
			return streamOver
		}
		return streamGone
	}
	if p.terminal {
		return streamDone // the client has it all, whatever became of the instance
	}
	if !errors.Is(err, io.EOF) {
		cause := up.end.Cause()
		p.late = errors.Is(cause, errNoContent)
		p.silent = p.late || errors.Is(cause, errSilent)
		return streamDead
	}
	// Without chunks the end of the connection is the end of the body, and a
	// death looks like an end. Dify's own streams say when they are complete.
	framed := len(up.resp.TransferEncoding) > 0 || up.resp.ContentLength >= 0
	if !framed && x.class.Streams() {
		return streamDead
	}
	return streamDone
}
