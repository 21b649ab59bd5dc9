package jobs

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"fournines/gateway/dify"
)

const (
	// adminTime bounds an operator's request.
	adminTime = time.Minute
	// maxListed jobs are listed at a time.
	maxListed = 1000
)

// Listed is a job as operators see it: who, what and how it stands, without
// what was asked and answered.
type Listed struct {
	Status
	// App is the name of the app, or the id of its key.
	App       string `json:"app"`
	Class     string `json:"class"`
	Path      string `json:"path"`
	RequestID string `json:"requestId"`
	// Owner is the gateway that runs it or ran it last, host:pid.
	Owner string `json:"owner,omitempty"`
	// Repeat tells whether it may be run again after a run that was lost.
	Repeat bool `json:"repeat"`
	// WebhookError is why the last call failed.
	WebhookError string `json:"webhookError,omitempty"`
}

// lists are what can be listed, and where.
var lists = map[string]string{"all": "index", "queued": "queued", "running": "running", "dead": "dead", "webhooks-dead": "hooksdead"}

// listedFields are those of a record that an operator gets.
var listedFields = []string{
	"state", "created", "since", "started", "finished", "runs", "lost", "refused", "repeat", "status", "code", "error", "reason",
	"appid", "class", "path", "requestid", "owner", "hookstate", "hooktries", "hookerr",
}

// AdminHandlers are the operator's paths, for a listener that operators alone
// can reach; keys are ServeMux patterns.
func (l *Lane) AdminHandlers() map[string]http.Handler {
	handle := func(f func(context.Context, *http.Request) (any, error)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), adminTime)
			defer cancel()
			v, err := f(ctx, r)
			if err != nil {
				l.deny(w, err)
				return
			}
			writeJSON(w, http.StatusOK, v)
		})
	}
	one := func(f func(context.Context, string) error) http.Handler {
		return handle(func(ctx context.Context, r *http.Request) (any, error) {
			id := r.PathValue("id")
			if err := f(ctx, id); err != nil {
				return nil, err
			}
			return struct {
				ID string `json:"id"`
			}{id}, nil
		})
	}
	all := func(list string, f func(context.Context, string) error) http.Handler {
		return handle(func(ctx context.Context, _ *http.Request) (any, error) {
			n, err := l.each(ctx, list, f)
			return struct {
				Done int `json:"done"`
			}{n}, err
		})
	}
	return map[string]http.Handler{
		"GET /v1/jobs":                       handle(l.list),
		"GET /v1/jobs/{id}":                  handle(func(ctx context.Context, r *http.Request) (any, error) { return l.show(ctx, r.PathValue("id")) }),
		"POST /v1/jobs/{id}/cancel":          one(l.adminCancel),
		"POST /v1/jobs/{id}/replay":          one(l.replay),
		"POST /v1/jobs/{id}/purge":           one(l.purge),
		"POST /v1/jobs/{id}/webhook/replay":  one(l.replayHook),
		"POST /v1/jobs/dead/replay":          all("dead", l.replay),
		"POST /v1/jobs/dead/purge":           all("dead", l.purge),
		"POST /v1/jobs/webhooks-dead/replay": all("webhooks-dead", l.replayHook),
	}
}

func (l *Lane) list(ctx context.Context, r *http.Request) (any, error) {
	name := cmp.Or(r.URL.Query().Get("state"), "all")
	limit, err := strconv.Atoi(cmp.Or(r.URL.Query().Get("limit"), "100"))
	if _, ok := lists[name]; !ok || err != nil || limit < 1 || limit > maxListed {
		return nil, dify.Error{Code: "invalid_param", Status: http.StatusBadRequest,
			Message: "state is one of all, queued, running, dead, webhooks-dead; limit is between 1 and " + strconv.Itoa(maxListed) + "."}
	}
	jobs := []Listed{}
	for q := range queues {
		entries, err := l.store.ids(ctx, q, lists[name], int64(limit))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			id, _ := e.Member.(string)
			listed, err := l.show(ctx, id)
			if errors.Is(err, errNoJob) {
				continue
			}
			if err != nil {
				return nil, err
			}
			jobs = append(jobs, listed)
		}
	}
	slices.SortFunc(jobs, func(a, b Listed) int { return b.Created.Compare(*a.Created) })
	if len(jobs) > limit {
		jobs = jobs[:limit]
	}
	return struct {
		Jobs []Listed `json:"jobs"`
	}{jobs}, nil
}

func (l *Lane) show(ctx context.Context, id string) (Listed, error) {
	queue, ok := queueOf(id)
	if !ok {
		return Listed{}, errNoJob
	}
	values, err := l.store.client.HMGet(ctx, jobPrefix(queue)+id, listedFields...).Result()
	if err != nil {
		return Listed{}, err
	}
	m := make(map[string]string, len(values))
	for i, v := range values {
		if s, ok := v.(string); ok {
			m[listedFields[i]] = s
		}
	}
	if m["state"] == "" || m["created"] == "" {
		return Listed{}, errNoJob
	}
	rec, err := parseRecord(queue, id, m)
	if err != nil {
		return Listed{}, err
	}
	return Listed{
		Status: l.status(l.settings.Load(), rec, false), App: rec.appID, Class: rec.class, Path: rec.path,
		RequestID: rec.requestID, Owner: rec.owner, Repeat: rec.repeat, WebhookError: rec.hookError,
	}, nil
}

// each calls f for every job of a list, oldest last, and returns how many it did.
func (l *Lane) each(ctx context.Context, list string, f func(context.Context, string) error) (int, error) {
	n := 0
	for q := range queues {
		entries, err := l.store.ids(ctx, q, lists[list], 0)
		if err != nil {
			return n, err
		}
		for _, e := range entries {
			id, _ := e.Member.(string)
			switch err := f(ctx, id); {
			case err == nil:
				n++
			case !errors.Is(err, errNoJob) && !errors.Is(err, errNotDead):
				return n, err
			}
		}
	}
	return n, nil
}

// errNotDead is the answer for a job that is not in the list it should be in.
var errNotDead = dify.Error{Code: "conflict", Message: "The job is not in the dead-letter list, or what it asked is not kept any more.", Status: http.StatusConflict}

func (l *Lane) adminCancel(ctx context.Context, id string) error {
	rec, err := l.store.load(ctx, id)
	if err != nil {
		return err
	}
	return l.cancel(ctx, rec)
}

func (l *Lane) replay(ctx context.Context, id string) error {
	r, err := l.store.runDurably(ctx, confirmedIfAny, replayScript, id, "")
	if err != nil && !errors.Is(err, errNotReplicated) {
		return err
	}
	if r.word != "again" {
		return errNotDead
	}
	l.log.Info("job replayed", "job", id)
	l.send(ctx, id, r.number(0), 0)
	return nil
}

func (l *Lane) purge(ctx context.Context, id string) error {
	return l.expectOK(l.store.run(ctx, purgeScript, id, ""))
}

func (l *Lane) replayHook(ctx context.Context, id string) error {
	if err := l.expectOK(l.store.run(ctx, hookReplayScript, id, "")); err != nil {
		return err
	}
	l.sweepSoon()
	return nil
}

func (l *Lane) expectOK(r reply, err error) error {
	if err == nil && r.word != "ok" {
		return errNotDead
	}
	return err
}
