package jobs

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"fournines/gateway/dify"
)

const (
	// storeTime bounds a question to Redis.
	storeTime = 5 * time.Second
	// followMin and followMax bound the pause between two looks for new events:
	// short while events come, longer while none do.
	followMin = 50 * time.Millisecond
	followMax = time.Second
	// followPage is how many events one look takes.
	followPage = 256
	// followPatience is how long followers stay while Redis cannot be reached.
	followPatience = time.Minute
	followWrite    = 30 * time.Second
	// lastEventID is the id of the last event of every job's stream: who comes
	// back with it has seen everything.
	lastEventID = "end"
)

// Status is a job as its caller sees it.
type Status struct {
	ID       string     `json:"id"`
	State    State      `json:"state"`
	Created  *time.Time `json:"created,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
	Finished *time.Time `json:"finished,omitempty"`
	// Attempts is how often the job has been begun.
	Attempts int `json:"attempts"`
	// Result is Dify's answer in its blocking form.
	Result json.RawMessage `json:"result,omitempty"`
	// Error is why it failed, or why it waits for another attempt.
	Error   *StatusError   `json:"error,omitempty"`
	Webhook *StatusWebhook `json:"webhook,omitempty"`
	Links   StatusLinks    `json:"links"`
}

// StatusError is an error in Dify's form, with what it means for the job.
type StatusError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Status  int    `json:"status,omitempty"`
	// Reason is "rejected", "lost", "expired" or "internal" for a failed job.
	Reason string `json:"reason,omitempty"`
}

// StatusWebhook says how the call that tells of the job's end stands.
type StatusWebhook struct {
	State    string `json:"state"`
	Attempts int    `json:"attempts"`
}

// StatusLinks are the job's addresses.
type StatusLinks struct {
	Self string `json:"self"`
	// Events is the same address, asked with "Accept: text/event-stream".
	Events string `json:"events"`
}

func timeField(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// status shows a job; whole says with its result.
func (l *Lane) status(set *settings, rec *record, whole bool) Status {
	s := Status{
		ID: rec.id, State: rec.state, Created: timeField(rec.created), Started: timeField(rec.started), Finished: timeField(rec.finished),
		Attempts: rec.runs, Links: StatusLinks{Self: "/jobs/" + rec.id, Events: "/jobs/" + rec.id},
	}
	if rec.code != "" && rec.state != Succeeded && rec.state != Canceled {
		s.Error = &StatusError{Code: rec.code, Message: rec.message, Status: rec.status, Reason: rec.reason}
	}
	if rec.hookState != "" {
		s.Webhook = &StatusWebhook{State: rec.hookState, Attempts: rec.hookTries}
	}
	if whole && len(rec.result) > 0 {
		plain, err := set.seal.box(rec.id).open(rec.result, labelResult)
		if err != nil {
			l.log.Error("result cannot be read", "job", rec.id, "err", err)
			s.Error = &StatusError{Code: "job_unreadable", Message: "The gateway cannot read the result.", Status: http.StatusInternalServerError, Reason: reasonInternal}
		} else {
			s.Result = plain
		}
	}
	return s
}

// ServeHTTP answers requests under /jobs/.
func (l *Lane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := strings.TrimPrefix(r.URL.Path, "/jobs/")
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodDelete {
		w.Header().Set("Allow", "GET, HEAD, DELETE")
		errJobMethod.Write(w)
		return
	}
	rec, err := l.find(r, id)
	if err != nil {
		l.deny(w, err)
		return
	}
	set := l.settings.Load()
	switch {
	case r.Method == http.MethodDelete:
		if err := l.cancel(r.Context(), rec); err != nil {
			l.deny(w, err)
			return
		}
		if rec, err = l.find(r, id); err != nil {
			l.deny(w, err)
			return
		}
		code := http.StatusOK
		if !rec.state.final() {
			code = http.StatusAccepted // its worker will see it
		}
		writeJSON(w, code, l.status(set, rec, false))
	case strings.Contains(strings.ToLower(r.Header.Get("Accept")), "text/event-stream"):
		l.follow(w, r, set, rec)
	default:
		if !rec.state.final() {
			w.Header().Set("Retry-After", "1")
		}
		writeJSON(w, http.StatusOK, l.status(set, rec, true))
	}
}

// find loads the job that r asks for, if it is the asking app's.
func (l *Lane) find(r *http.Request, id string) (*record, error) {
	key := dify.AppKey(r.Header)
	if _, ok := queueOf(id); !ok || key == "" {
		return nil, errUnknownJob
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTime)
	defer cancel()
	rec, err := l.store.load(ctx, id)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(rec.app), []byte(appHash(key))) != 1 {
		return nil, errUnknownJob
	}
	return rec, nil
}

func (l *Lane) deny(w http.ResponseWriter, err error) {
	var answer dify.Error
	switch {
	case errors.As(err, &answer):
	case errors.Is(err, errNoJob):
		answer = errUnknownJob
	default:
		answer = errStoreAway
		l.log.Warn("job store failed", "err", err)
	}
	answer.Write(w)
}

func (l *Lane) cancel(ctx context.Context, rec *record) error {
	if rec.state.final() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	r, err := l.store.runDurably(ctx, confirmedIfAny, cancelScript, rec.id, "", l.settings.Load().Retention.Milliseconds())
	if err != nil && !errors.Is(err, errNotReplicated) {
		return err
	}
	if r.word == "gone" {
		return errNoJob
	}
	if rec.state == Queued {
		l.m.ended(Canceled, "")
		l.sweepSoon()
	}
	return nil
}

// follow streams a job's events: those that have come, from the beginning or
// after Last-Event-ID, then those that come, then the job's end.
func (l *Lane) follow(w http.ResponseWriter, r *http.Request, set *settings, rec *record) {
	after := r.Header.Get("Last-Event-ID")
	if after == lastEventID {
		w.WriteHeader(http.StatusNoContent) // an EventSource stops coming back
		return
	}
	if !goodEventID(after) {
		after = ""
	}
	if l.followers.Add(1) > int64(set.MaxFollowers) {
		l.followers.Add(-1)
		errFollowers.Write(w)
		return
	}
	defer l.followers.Add(-1)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	f := follower{l: l, set: set, w: w, rc: http.NewResponseController(w), id: rec.id, box: set.seal.box(rec.id), after: after, said: time.Now()}
	f.run(r.Context())
}

type follower struct {
	l     *Lane
	set   *settings
	w     io.Writer
	rc    *http.ResponseController
	id    string
	box   *box
	after string
	said  time.Time // when something was last written
}

func (f *follower) run(ctx context.Context) {
	if f.flush() != nil {
		return
	}
	pause, missing := followMin, time.Time{}
	for {
		n, end, err := f.look(ctx)
		switch {
		case ctx.Err() != nil || end:
			return
		case errors.Is(err, errWrite), errors.Is(err, errNoJob):
			return
		case err != nil: // Redis is away: the client can come back with the last id
			if missing.IsZero() {
				missing = time.Now()
			} else if time.Since(missing) > followPatience {
				return
			}
			pause = followMax
		case n > 0:
			pause, missing = followMin, time.Time{}
		default:
			pause, missing = min(pause*2, followMax), time.Time{}
		}
		if beat := f.l.deps.Heartbeat(); beat > 0 && time.Since(f.said) >= beat {
			if f.write([]byte(": keepalive\n\n")) != nil || f.flush() != nil {
				return
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-f.l.parting: // another gateway goes on from the last id
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

var errWrite = errors.New("the follower is gone")

// look passes on what has come, and the end when it has come.
func (f *follower) look(ctx context.Context) (n int, end bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	queue, _ := queueOf(f.id)
	// The state is read before the events: what is final has all its events.
	state, err := f.l.store.client.HGet(ctx, jobPrefix(queue)+f.id, "state").Result()
	if err != nil {
		return 0, false, noneIsGone(err)
	}
	for {
		list, err := f.l.store.events(ctx, f.id, f.after, followPage)
		if err != nil {
			return n, false, err
		}
		for _, e := range list {
			block, err := f.box.open(e.sealed, labelEvent)
			if err != nil {
				f.l.log.Error("event cannot be read", "job", f.id, "err", err)
				block = []byte("data: {\"event\":\"unreadable\"}")
			}
			if f.write([]byte("id: "+e.id+"\n"), block, []byte("\n\n")) != nil {
				return n, false, errWrite
			}
			f.after = e.id
			n++
		}
		if n > 0 && f.flush() != nil {
			return n, false, errWrite
		}
		if len(list) < followPage {
			break
		}
	}
	if !State(state).final() {
		return n, false, nil
	}
	rec, err := f.l.store.load(ctx, f.id)
	if err != nil {
		return n, false, err
	}
	if !rec.state.final() {
		return n, false, nil // replayed meanwhile
	}
	body, err := json.Marshal(struct {
		Event string `json:"event"`
		Status
	}{"job", f.l.status(f.set, rec, true)})
	if err != nil {
		return n, true, err
	}
	if f.write([]byte("id: "+lastEventID+"\nevent: job\ndata: "), body, []byte("\n\n")) != nil || f.flush() != nil {
		return n, false, errWrite
	}
	return n, true, nil
}

func (f *follower) write(parts ...[]byte) error {
	_ = f.rc.SetWriteDeadline(time.Now().Add(followWrite))
	f.said = time.Now()
	for _, p := range parts {
		if _, err := f.w.Write(p); err != nil {
			return errWrite
		}
	}
	return nil
}

// flush also takes the deadline away, which would reset an HTTP/2 stream that
// has nothing to write.
func (f *follower) flush() error {
	err := f.rc.Flush()
	_ = f.rc.SetWriteDeadline(time.Time{})
	return err
}

// goodEventID tells whether s is the id of an event: run-number.
func goodEventID(s string) bool {
	run, n, ok := strings.Cut(s, "-")
	if !ok {
		return false
	}
	_, err1 := strconv.ParseUint(run, 10, 32)
	_, err2 := strconv.ParseUint(n, 10, 32)
	return err1 == nil && err2 == nil
}
