package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"fournines/gateway/dify"
)

const (
	// maxIdempotencyKey bounds the Idempotency-Key header.
	maxIdempotencyKey = 255
	// maxWebhookURL bounds the Webhook-Url header.
	maxWebhookURL = 2048
	// acceptTime bounds how long a client waits for its 202 beyond the replica's time.
	acceptTime = 10 * time.Second
	// withdrawTime is how long a refused job is tried to be taken back.
	withdrawTime = 10 * time.Second
)

// The lane's own refusals, in Dify's form.
var (
	errQueueFull  = dify.Error{Code: "job_queue_full", Message: "Too many jobs are waiting. The job was not accepted; try again later.", Status: http.StatusServiceUnavailable, RetryAfterSeconds: 10}
	errAppFull    = dify.Error{Code: "too_many_jobs", Message: "This app has too many unfinished jobs. The job was not accepted; try again when some have finished.", Status: http.StatusTooManyRequests, RetryAfterSeconds: 10}
	errNotSafe    = dify.Error{Code: "job_not_stored", Message: "The job could not be stored safely and was withdrawn. Send it again, with the same Idempotency-Key if it had one.", Status: http.StatusServiceUnavailable, RetryAfterSeconds: 2}
	errBodyJSON   = dify.Error{Code: "invalid_param", Message: "The body of a job must be a JSON object whose response_mode, if any, is blocking or streaming.", Status: http.StatusBadRequest}
	errIdemKey    = dify.Error{Code: "invalid_param", Message: "Idempotency-Key must have 1 to 255 visible ASCII characters.", Status: http.StatusBadRequest}
	errIdemReused = dify.Error{Code: "idempotency_key_reused", Message: "This Idempotency-Key belongs to a job with another request.", Status: http.StatusUnprocessableEntity}
	errUnknownJob = dify.Error{Code: "not_found", Message: "There is no such job, or it is not this app's, or it has been kept long enough.", Status: http.StatusNotFound}
	errJobMethod  = dify.Error{Code: "method_not_allowed", Message: "A job knows GET and DELETE.", Status: http.StatusMethodNotAllowed}
	errStoreAway  = dify.Error{Code: "job_store_unavailable", Message: "The store of the jobs cannot be reached. Jobs that were accepted go on; try again.", Status: http.StatusServiceUnavailable, RetryAfterSeconds: 2}
	errFollowers  = dify.Error{Code: "too_many_followers", Message: "Too many clients follow jobs here. Ask for the job's state instead, or try again.", Status: http.StatusServiceUnavailable, RetryAfterSeconds: 5}
)

// Takes tells whether r becomes a job: it prefers an asynchronous answer, is one
// that may ask for a stream (streams), and comes with an app's key.
func (l *Lane) Takes(r *http.Request, streams bool) bool {
	return streams && r.Method == http.MethodPost && len(r.Header["Prefer"]) > 0 && appPath(r.URL.Path) &&
		dify.AppKey(r.Header) != "" && parsePrefer(r.Header).async
}

// Accept takes r in as a job and answers. body is all of it when complete;
// appID is the app's name for operators.
func (l *Lane) Accept(w http.ResponseWriter, r *http.Request, body []byte, complete bool, appID, requestID string) {
	set := l.settings.Load()
	rec, again, err := l.accept(r, set, body, complete, appID, requestID)
	if err != nil {
		l.refuse(w, err)
		return
	}
	h := w.Header()
	h.Set("Location", "/jobs/"+rec.id)
	h.Set("Preference-Applied", "respond-async")
	h.Set("Vary", "Prefer")
	h.Set("Retry-After", "1")
	if again {
		l.m.accepted.WithLabelValues("repeated").Inc()
	} else {
		l.m.accepted.WithLabelValues("accepted").Inc()
	}
	writeJSON(w, http.StatusAccepted, l.status(set, rec, false))
}

// refuse answers with what err means.
func (l *Lane) refuse(w http.ResponseWriter, err error) {
	var answer dify.Error
	if !errors.As(err, &answer) {
		answer = errStoreAway
		l.log.Warn("job store failed", "err", err)
	}
	l.m.accepted.WithLabelValues(answer.Code).Inc()
	answer.Write(w)
}

func (l *Lane) accept(r *http.Request, set *settings, body []byte, complete bool, appID, requestID string) (rec *record, again bool, err error) {
	if !complete || int64(len(body)) > set.MaxBodyBytes {
		e := dify.ErrTooLarge
		e.Message = "The body of a job must not be larger than " + strconv.FormatInt(set.MaxBodyBytes, 10) + " bytes."
		return nil, false, e
	}
	if _, ok := streamingBody(body); !ok {
		return nil, false, errBodyJSON
	}
	idem, given := r.Header["Idempotency-Key"]
	if given && !goodIdempotencyKey(idem) {
		return nil, false, errIdemKey
	}
	key := dify.AppKey(r.Header)
	app := appHash(key)
	queue := queueFor(app)
	if !given {
		queue = l.healthy(queue)
	}
	id := newID(queue)
	box := set.seal.box(id)

	hook := ""
	if url := r.Header.Get("Webhook-Url"); url != "" {
		if err := set.webhook.permits(url); err != nil {
			return nil, false, dify.Error{Code: "invalid_param", Message: "Webhook-Url: " + err.Error() + ".", Status: http.StatusBadRequest}
		}
		hook = url
	}
	plain, err := json.Marshal(keep(r, body))
	if err != nil {
		return nil, false, err
	}
	sealed, err := box.seal(plain, labelRequest)
	if err != nil {
		return nil, false, err
	}
	print := sha256.Sum256([]byte(r.URL.Path + "\x00" + r.URL.RawQuery + "\x00" + string(body)))
	repeat := set.Repeat == RepeatAlways || set.Repeat == RepeatAsked && parsePrefer(r.Header).repeat
	fields := []any{
		"appid", appID, "class", dify.Classify(r.Method, r.URL.Path).String(), "path", r.URL.Path, "requestid", requestID,
		"print", hex.EncodeToString(print[:]), "repeat", boolField(repeat), "req", sealed,
	}
	if hook != "" {
		sealedHook, err := box.seal([]byte(hook), labelHook)
		if err != nil {
			return nil, false, err
		}
		fields = append(fields, "hook", sealedHook)
	}
	var hold time.Duration
	digest := ""
	if given {
		sum := sha256.Sum256([]byte(app + "\x00" + idem[0]))
		digest = hex.EncodeToString(sum[:])
		hold = max(set.Retention, set.DeadRetention) + set.MaxAge
	}
	ctx, cancel := context.WithTimeout(r.Context(), acceptTime+set.ReplicaTimeout)
	defer cancel()
	reply, err := l.store.runDurably(ctx, confirmed, acceptScript, id, digest,
		append([]any{app, set.MaxQueued, set.MaxPerApp, hold.Milliseconds(), jobPrefix(queue), set.MaxBytes, len(sealed)}, fields...)...)
	switch {
	case err != nil && reply.word != "same":
		// Whether it is on record is not known, or no replica has it.
		l.withdraw(id, digest)
		if !errors.Is(err, errNotReplicated) {
			l.log.Warn("job not stored", "err", err)
		}
		return nil, false, errNotSafe
	case err != nil:
		return nil, false, errNotSafe
	case reply.word == "full":
		return nil, false, errQueueFull
	case reply.word == "app":
		return nil, false, errAppFull
	case reply.word == "same":
		rec, err := l.store.load(ctx, reply.text(0))
		if err != nil {
			return nil, false, err
		}
		if rec.print != hex.EncodeToString(print[:]) {
			return nil, false, errIdemReused
		}
		return rec, true, nil
	}
	// From here on the job is safe whatever happens to this gateway.
	l.send(ctx, id, 1, 0)
	return &record{id: id, queue: queue, state: Queued, created: time.Now()}, false, nil
}

// healthy returns the queue, or the next one that can take a job safely when its
// master is away or has no replica. A job with an Idempotency-Key cannot go
// elsewhere, because the key's record is in its app's queue.
func (l *Lane) healthy(queue int) int {
	for i := range queues {
		if q := (queue + i) % queues; !l.troubled[q].Load() {
			return q
		}
	}
	return queue
}

// withdraw takes back a job that its client has been refused.
func (l *Lane) withdraw(id, digest string) {
	undo := func() {
		ctx, cancel := context.WithTimeout(context.Background(), withdrawTime)
		defer cancel()
		if _, err := l.store.runPatiently(ctx, withdrawScript, id, digest); err != nil {
			l.log.Warn("a refused job could not be withdrawn and may run", "job", id, "err", err)
		}
	}
	if !l.begin() {
		undo()
		return
	}
	go func() {
		defer l.runs.Done()
		undo()
	}()
}

func boolField(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func goodIdempotencyKey(values []string) bool {
	if len(values) != 1 || values[0] == "" || len(values[0]) > maxIdempotencyKey {
		return false
	}
	for i := range len(values[0]) {
		if c := values[0][i]; c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// keep returns what is kept of a request.
func keep(r *http.Request, body []byte) storedRequest {
	s := storedRequest{Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Host: r.Host, Remote: r.RemoteAddr, Header: http.Header{}, Body: body}
	for _, name := range keptHeaders {
		if v, ok := r.Header[name]; ok {
			s.Header[name] = v
		}
	}
	// The gateway has put the client's address at the end; it will do so again.
	if v := s.Header.Get("X-Forwarded-For"); v != "" {
		if i := strings.LastIndex(v, ", "); i >= 0 {
			s.Header.Set("X-Forwarded-For", v[:i])
		} else {
			s.Header.Del("X-Forwarded-For")
		}
	}
	return s
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // plain structures: cannot be
		body = []byte("{}")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
