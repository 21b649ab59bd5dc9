package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"fournines/gateway/dify"
	"fournines/internal/sse"
)

const (
	// flushEvery is how often new events go to Redis.
	flushEvery = 100 * time.Millisecond
	// cancelEvery is how often a silent run looks whether it is to be canceled.
	cancelEvery = time.Second
	// maxPending bytes of events wait for Redis; then the run waits.
	maxPending = 1 << 20
	// maxFlush bytes go with one script.
	maxFlush = 256 << 10
	// restTime is how long the last events of a run may wait for Redis.
	restTime = 15 * time.Second
	// maxAnswer bytes of an answer that is not a stream are kept.
	maxAnswer = 16 << 20
)

// outcome is how a run ended.
type outcome struct {
	refused bool // nothing was carried out: it may be tried again
	lost    bool // it may have been carried out
	state   State
	reason  string
	result  []byte // JSON
	err     dify.Error
}

// run is one execution of a job: it is the http.ResponseWriter that the handler
// writes to, and what brings the events to Redis.
type run struct {
	l     *Lane
	set   *settings
	rec   *record
	token string
	ctx   context.Context //nolint:containedctx // the run's own, for the time of one request
	end   context.CancelCauseFunc
	trace Trace

	header http.Header
	status int
	stream bool
	body   bytes.Buffer // an answer that is not a stream
	// tooLarge says that more came than is kept.
	tooLarge bool

	scan    sse.Scanner
	partial []byte // of the event being written
	answer  *dify.Answer

	mu      sync.Mutex
	space   *sync.Cond
	pending [][]byte // blocks without their empty line
	size    int
	next    int // number of the first of them
	wake    chan struct{}
}

func (l *Lane) newRun(base context.Context, set *settings, rec *record, token string) *run {
	r := &run{l: l, set: set, rec: rec, token: token, header: http.Header{}, next: 1, wake: make(chan struct{}, 1)}
	r.space = sync.NewCond(&r.mu)
	r.ctx, r.end = context.WithCancelCause(base)
	return r
}

// do carries the request out.
func (r *run) do(stored *storedRequest) outcome {
	defer r.end(nil)
	limit := time.AfterFunc(r.set.RunTimeout, func() { r.end(errTooLong) })
	defer limit.Stop()
	body, ok := streamingBody(stored.Body)
	if !ok { // checked when the job was taken in
		return outcome{state: Failed, reason: reasonInternal, err: dify.ErrBadBody}
	}
	ctx := context.WithValue(r.ctx, traceKey{}, &r.trace)
	req := (&http.Request{
		Method: stored.Method, URL: &url.URL{Path: stored.Path, RawQuery: stored.Query},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: stored.Host, RemoteAddr: stored.Remote,
		RequestURI: stored.Path, Header: stored.Header.Clone(),
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}).WithContext(ctx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("Content-Length", strconv.Itoa(len(body)))

	r.answer = dify.NewAnswer(dify.Classify(stored.Method, stored.Path), dify.Completion(stored.Path), maxAnswer)
	var beat sync.WaitGroup
	beatCtx, stopBeat := context.WithCancel(context.WithoutCancel(r.ctx))
	wake := context.AfterFunc(r.ctx, func() { r.mu.Lock(); r.space.Broadcast(); r.mu.Unlock() })
	defer wake()
	beat.Go(func() { r.beat(beatCtx) })
	broken := r.serve(req)
	stopBeat()
	beat.Wait()
	return r.judge(broken)
}

// serve calls the handler; true means that it broke the answer off.
func (r *run) serve(req *http.Request) (broken bool) {
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { //nolint:errorlint // a panic value, compared as net/http does
				r.l.log.Error("handler panicked", "job", r.rec.id, "panic", p)
			}
			broken = true
		}
	}()
	r.l.deps.Handler.ServeHTTP(r, req)
	return false
}

// Header implements http.ResponseWriter.
func (r *run) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *run) WriteHeader(status int) {
	if r.status != 0 || status < 200 {
		return
	}
	r.status = status
	r.stream = bytes.HasPrefix([]byte(r.header.Get("Content-Type")), []byte("text/event-stream"))
}

// Flush implements http.Flusher: there is nothing to be done.
func (r *run) Flush() {}

// Write implements http.ResponseWriter.
func (r *run) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	if !r.stream {
		if r.body.Len()+len(p) > maxAnswer {
			r.tooLarge = true
			return 0, dify.ErrAnswerSize
		}
		return r.body.Write(p)
	}
	n := len(p)
	if _, err := r.answer.Write(p); err != nil {
		r.tooLarge = true
		return 0, err
	}
	for len(p) > 0 {
		k, ev, ok := r.scan.Next(p)
		r.partial = append(r.partial, p[:k]...)
		p = p[k:]
		if !ok {
			continue
		}
		if dify.Content(ev.Type, ev.Data) {
			r.event(bytes.TrimRight(r.partial, "\r\n"))
		}
		r.partial = r.partial[:0]
	}
	return n, nil
}

// event takes one event in.
func (r *run) event(block []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.size > maxPending && r.ctx.Err() == nil {
		r.space.Wait()
	}
	r.pending = append(r.pending, bytes.Clone(block))
	r.size += len(block)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// beat brings events to Redis and renews the lease until ctx ends, and a last
// time then.
func (r *run) beat(ctx context.Context) {
	box := r.set.seal.box(r.rec.id)
	renew := min(cancelEvery, r.set.Lease/3)
	timer := time.NewTimer(renew)
	defer timer.Stop()
	for {
		last := false
		select {
		case <-ctx.Done():
			last = true
		case <-timer.C:
		case <-r.wake:
			// More may come at once: one script for all of it.
			pause := time.NewTimer(flushEvery)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			pause.Stop()
		}
		for r.flush(ctx, box, last) {
			continue
		}
		if last {
			r.flushRest(ctx, box)
			return
		}
		timer.Reset(renew)
	}
}

// flushRest tries for a while to store what is left at the end of a run.
func (r *run) flushRest(ctx context.Context, box *box) {
	for deadline := time.Now().Add(restTime); time.Now().Before(deadline) && context.Cause(r.ctx) != errTaken; { //nolint:errorlint // our own value, never wrapped
		r.mu.Lock()
		left := len(r.pending)
		r.mu.Unlock()
		if left == 0 {
			return
		}
		timer := time.NewTimer(flushEvery)
		<-timer.C
		r.flush(ctx, box, true)
	}
}

// flush sends one script; true means that there is more to be sent.
func (r *run) flush(ctx context.Context, box *box, last bool) bool {
	r.mu.Lock()
	batch, size := 0, 0
	for batch < len(r.pending) && (batch == 0 || size+len(r.pending[batch]) <= maxFlush) {
		size += len(r.pending[batch])
		batch++
	}
	blocks, first := r.pending[:batch:batch], r.next
	r.mu.Unlock()
	args := make([]any, 0, 5+len(blocks))
	args = append(args, r.token, r.set.Lease.Milliseconds(), r.set.MaxEvents, r.rec.runs, first)
	for _, b := range blocks {
		sealed, err := box.seal(b, labelEvent)
		if err != nil {
			r.l.log.Error("event not encrypted", "job", r.rec.id, "err", err)
			return false
		}
		args = append(args, sealed)
	}
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(r.set.Lease/2, time.Second))
	defer cancel()
	reply, err := r.l.store.run(try, progressScript, r.rec.id, "", args...)
	if err != nil {
		r.l.log.Debug("events not stored yet", "job", r.rec.id, "err", err)
		return false // they stay pending
	}
	r.mu.Lock()
	r.pending, r.size, r.next = r.pending[batch:], r.size-size, first+batch
	more := len(r.pending) > 0
	r.space.Broadcast()
	r.mu.Unlock()
	switch {
	case reply.word == "lost":
		r.end(errTaken)
		return false
	case reply.word == "ok" && reply.text(0) == "1":
		r.end(errCanceled)
	}
	return more && (last || size >= maxFlush/2)
}

// Codes of answers and events by which the gateway says that the instance, or the
// gateway's own patience, ended in the middle.
var lostCodes = map[string]bool{
	dify.ErrBadGateway.Code: true, dify.ErrTimeout.Code: true, dify.ErrStreamCut.Code: true,
	dify.ErrStreamSilent.Code: true, dify.ErrDraining.Code: true, dify.ErrNoContent.Code: true,
}

// judge says what the run came to. See DESIGN.md.
func (r *run) judge(broken bool) outcome {
	interrupted := func(code, message string) outcome {
		o := outcome{err: dify.Error{Code: code, Message: message, Status: http.StatusBadGateway}}
		if !r.trace.reached.Load() {
			o.refused = true
		} else {
			o.lost = true
		}
		return o
	}
	var status int
	var body []byte
	complete := false
	if r.stream {
		if status, body, complete = r.answer.Result(); complete && status < 400 {
			return outcome{state: Succeeded, result: bytes.TrimSpace(body)}
		}
	}
	switch cause := context.Cause(r.ctx); {
	case errors.Is(cause, errCanceled):
		return outcome{state: Canceled}
	case errors.Is(cause, errTooLong):
		return outcome{state: Failed, reason: reasonLost, err: dify.Error{Code: "job_timeout", Status: http.StatusGatewayTimeout,
			Message: "The job ran longer than the gateway allows and was stopped."}}
	case errors.Is(cause, errStopping):
		return interrupted("gateway_restart", "The gateway was stopped while the job ran. It may have been carried out in part.")
	case errors.Is(cause, errTaken):
		return outcome{lost: true} // the script will find that it is not ours
	case broken:
		return interrupted(dify.ErrStreamCut.Code, dify.ErrStreamCut.Message)
	}
	switch {
	case r.tooLarge:
		return outcome{state: Failed, reason: reasonLost, err: dify.ErrAnswerTooLarge}
	case r.stream && !complete:
		return interrupted(dify.ErrStreamCut.Code, dify.ErrStreamCut.Message)
	case r.stream:
		e := errorOf(body, status)
		if lostCodes[e.Code] {
			return outcome{lost: true, err: e}
		}
		return outcome{state: Failed, reason: reasonRejected, err: e, result: bytes.TrimSpace(body)}
	}
	return r.judgeAnswer()
}

// judgeAnswer judges an answer that is not a stream.
func (r *run) judgeAnswer() outcome {
	body := bytes.TrimSpace(r.body.Bytes())
	if !json.Valid(body) || len(body) == 0 {
		body = nil
	}
	if r.status >= 200 && r.status < 300 {
		return outcome{state: Succeeded, result: body}
	}
	e := errorOf(body, r.status)
	if s, err := strconv.Atoi(r.header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfterSeconds = s
	}
	reached := r.trace.reached.Load()
	switch {
	case r.status == http.StatusTooManyRequests, !reached && r.status >= 500:
		return outcome{refused: true, err: e}
	case reached && lostCodes[e.Code], r.status == http.StatusBadGateway,
		r.status == http.StatusServiceUnavailable, r.status == http.StatusGatewayTimeout:
		return outcome{lost: true, err: e}
	}
	return outcome{state: Failed, reason: reasonRejected, err: e, result: body}
}

// errorOf reads an error in Dify's form.
func errorOf(body []byte, status int) dify.Error {
	var e dify.Error
	_ = json.Unmarshal(body, &e) // what is none has no code
	e.Status = status
	if e.Code == "" {
		e.Code, e.Message = "upstream_error", "The answer was "+strconv.Itoa(status)+" "+http.StatusText(status)+"."
	}
	return e
}
