package jobs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"

	"fournines/gateway/dify"
)

const (
	// settleTime is how long the end of a run may take to get into Redis while
	// it is being repaired. After it the lease decides.
	settleTime = 2 * time.Minute
	settleTry  = 5 * time.Second
	// claimTime bounds the claim of a job.
	claimTime = 10 * time.Second
	// claimPause is when a job that could not be claimed is tried again.
	claimPause = time.Second
)

// Trace is what the handler says about the request that it carries out: whether
// any instance can have got it.
type Trace struct{ reached atomic.Bool }

// Reach notes that an instance may have got the request. A nil Trace is no job's.
func (t *Trace) Reach() {
	if t != nil {
		t.reached.Store(true)
	}
}

type traceKey struct{}

// TraceOf returns the trace of a request that is a job's, or nil.
func TraceOf(ctx context.Context) *Trace {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t
}

// pause is the error of a delivery that asynq is to bring again later.
type pause time.Duration

func (p pause) Error() string { return "not now" }

func pauseOf(err error) time.Duration {
	var p pause
	if errors.As(err, &p) {
		return time.Duration(p)
	}
	return claimPause
}

// deliver is the asynq handler: it claims the job that the delivery speaks of,
// and runs it. ctx is not asynq's, which would be over when Redis is away for as
// long as asynq's lease lasts.
func (l *Lane) deliver(ctx context.Context, task *asynq.Task) error {
	if !l.begin() {
		return pause(0)
	}
	defer l.runs.Done()
	id, gen, ok := parseDelivery(string(task.Payload()))
	if !ok {
		return nil
	}
	set := l.settings.Load()
	token := rand.Text()
	claimCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTime)
	r, err := l.store.runDurably(claimCtx, confirmedIfAny, claimScript, id, "", gen, token, l.owner,
		set.Lease.Milliseconds(), set.MaxAge.Milliseconds(), set.DeadRetention.Milliseconds())
	cancel()
	if errors.Is(err, errNotReplicated) && r.word == "ok" {
		// Begun without a replica that knows, the job could be begun again after
		// a failover.
		if r, err := l.settle(ctx, requeueScript, id, token, claimPause.Milliseconds(), "", "", 0); err == nil && r.word == "ok" {
			l.send(ctx, id, r.number(0), claimPause)
		}
		return nil
	}
	if err != nil {
		l.log.Debug("job not claimed", "job", id, "err", err)
		return pause(claimPause)
	}
	switch r.word {
	case "ok":
	case "expired":
		l.m.ended(Failed, reasonExpired)
		l.sweepSoon()
		return nil
	default: // gone, stale: this delivery is of no use any more
		return nil
	}
	queue, _ := queueOf(id)
	rec, err := r.record(queue, id, 0)
	if err != nil {
		return nil //nolint:nilerr // our own script wrote it: there is nothing to be run
	}
	l.m.running.Inc()
	defer l.m.running.Dec()
	l.work(ctx, set, rec, token)
	return nil
}

// work runs a claimed job once and puts the outcome on record.
func (l *Lane) work(base context.Context, set *settings, rec *record, token string) {
	req, err := openRequest(set.seal.box(rec.id), rec)
	if err != nil {
		l.log.Error("job cannot be read", "job", rec.id, "err", err)
		l.finish(base, set, rec, token, outcome{state: Failed, reason: reasonInternal,
			err: dify.Error{Code: "job_unreadable", Message: "The gateway cannot read this job. It was not carried out.", Status: http.StatusInternalServerError}})
		return
	}
	run := l.newRun(base, set, rec, token)
	o := run.do(req)
	switch {
	case o.refused:
		wait := backoff(set.RetryMin, set.RetryMax, rec.refused)
		if s := time.Duration(o.err.RetryAfterSeconds) * time.Second; s > wait {
			wait = min(s, set.RetryMax)
		}
		counts := 1
		if errors.Is(context.Cause(run.ctx), errStopping) {
			wait, counts = 0, 0
		}
		l.m.retries.WithLabelValues("refused").Inc()
		r, err := l.settle(base, requeueScript, rec.id, token, wait.Milliseconds(), o.err.Code, o.err.Message, counts)
		if err == nil && r.word == "ok" {
			l.send(base, rec.id, r.number(0), wait)
		}
	case o.lost:
		r, err := l.settle(base, loseScript, rec.id, token, set.MaxRuns, o.err.Code, o.err.Message, o.err.Status,
			set.DeadRetention.Milliseconds(), set.Retention.Milliseconds())
		if err == nil {
			l.lost(base, rec.id, r)
		}
	default:
		l.finish(base, set, rec, token, o)
	}
}

// lost acts on what loseScript decided.
func (l *Lane) lost(ctx context.Context, id string, r reply) {
	switch r.word {
	case "again":
		l.m.retries.WithLabelValues("lost").Inc()
		l.send(ctx, id, r.number(0), 0)
	case "failed":
		l.m.ended(Failed, reasonLost)
		l.log.Warn("job lost", "job", id)
		l.sweepSoon()
	case "canceled":
		l.m.ended(Canceled, "")
		l.sweepSoon()
	}
}

// finish puts the end of a job on record.
func (l *Lane) finish(ctx context.Context, set *settings, rec *record, token string, o outcome) {
	keep := set.Retention
	if o.state == Failed {
		keep = set.DeadRetention
	}
	var sealed []byte
	if o.result != nil {
		var err error
		if sealed, err = set.seal.box(rec.id).seal(o.result, labelResult); err != nil {
			l.log.Error("result not encrypted", "job", rec.id, "err", err)
			return
		}
	}
	status := o.err.Status
	if o.state == Succeeded {
		status = http.StatusOK
	}
	r, err := l.settle(ctx, finishScript, rec.id, token, string(o.state), status, o.err.Code, o.err.Message, o.reason, sealed, keep.Milliseconds())
	switch {
	case err != nil:
		l.log.Error("the end of a job could not be put on record", "job", rec.id, "state", o.state, "err", err)
	case r.word == "ok":
		l.m.ended(o.state, o.reason)
		if !rec.started.IsZero() {
			l.m.duration.Observe(time.Since(rec.created).Seconds())
		}
		if len(rec.hook) > 0 {
			l.sweepSoon()
		}
	}
}

// settle runs a script that ends a run, and tries until a replica has it too. It
// goes on for a while after the end of ctx: what happened must be known.
func (l *Lane) settle(ctx context.Context, script, id string, args ...any) (reply, error) {
	deadline := time.Now().Add(settleTime)
	for {
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTry)
		r, err := l.store.runDurably(try, confirmedIfAny, script, id, "", args...)
		cancel()
		if err == nil || !errors.Is(err, errNotReplicated) && !passing(err) || time.Now().After(deadline) {
			return r, err
		}
		timer := time.NewTimer(storePause)
		select {
		case <-l.stopping: // the gateway cannot wait: it may be on the master at least
			timer.Stop()
			return r, err
		case <-timer.C:
		}
	}
}

// backoff doubles from least with n, up to most.
func backoff(least, most time.Duration, n int) time.Duration {
	d := least
	for range min(n, 40) {
		if d *= 2; d >= most {
			return most
		}
	}
	return d
}

// storedRequest is a request as it is kept, sealed.
type storedRequest struct {
	Method string      `json:"method"`
	Path   string      `json:"path"`
	Query  string      `json:"query,omitempty"`
	Host   string      `json:"host,omitempty"`
	Remote string      `json:"remote,omitempty"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// What is sealed.
const (
	labelRequest = "request"
	labelResult  = "result"
	labelEvent   = "event"
	labelHook    = "hook"
)

func openRequest(b *box, rec *record) (*storedRequest, error) {
	plain, err := b.open(rec.request, labelRequest)
	if err != nil {
		return nil, err
	}
	var req storedRequest
	if err := json.Unmarshal(plain, &req); err != nil {
		return nil, fmt.Errorf("stored request: %w", err)
	}
	return &req, nil
}

// keptHeaders are the request headers that a job keeps.
var keptHeaders = [...]string{
	"Authorization", "Content-Type", "Accept-Language", "User-Agent",
	"Traceparent", "Tracestate", "Baggage", "X-Trace-Id", "X-Request-Id",
	"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host",
}

// streamingBody returns a body that asks for a stream; false when it cannot be
// made to.
func streamingBody(body []byte) ([]byte, bool) {
	if !json.Valid(body) {
		return nil, false
	}
	if dify.Peek(body, true).Mode == dify.Streaming {
		return body, true
	}
	return dify.AskStream(body)
}

// appPath tells whether the lane takes requests for that path: the service API,
// whose callers have a key that stays the same.
func appPath(path string) bool { return strings.HasPrefix(path, "/v1/") }
