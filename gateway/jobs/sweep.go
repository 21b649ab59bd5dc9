package jobs

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/hibiken/asynq"

	"fournines/gateway/dify"
)

const (
	// sweepEvery is how often a gateway looks after the queues, a quarter of
	// the lease at most.
	sweepEvery = 2 * time.Second
	// missingAfter is how long a job may have been due before its delivery is
	// looked for: asynq brings most in less than a second.
	missingAfter = 10 * time.Second
	// sweepBatch bounds what one sweep does in one queue.
	sweepBatch = 20
	sweepTime  = 5 * time.Second
)

// errRunLost is what a job fails with when its worker is not heard of any more.
var errRunLost = dify.Error{Code: "job_lost", Status: http.StatusBadGateway,
	Message: "The gateway that ran the job went away. The job may have been carried out, in full or in part, and its caller did not allow to repeat it."}

// sweeper looks after the queues. All gateways do so at the same time.
type sweeper struct {
	l *Lane
	// since is when a queue began to answer without a break. A queue that was
	// away has not heard of living workers either: they get a lease's time.
	since [queues]time.Time
}

func (l *Lane) sweepLoop(ctx context.Context) {
	s := &sweeper{l: l}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.kick:
		}
		all := totals{}
		complete := true
		replicated := s.replicated(ctx)
		for q := range queues {
			err := s.sweep(ctx, q, &all)
			l.troubled[q].Store(err != nil || !replicated[q])
			if !replicated[q] {
				all.unsafe++
			}
			if err != nil {
				complete = false
				if ctx.Err() == nil {
					l.log.Debug("queue not swept", "queue", q, "err", err)
				}
			}
		}
		l.m.show(all, complete)
		timer.Reset(min(sweepEvery, l.settings.Load().Lease/4))
	}
}

// replicated tells for each queue whether it can take jobs safely.
func (s *sweeper) replicated(ctx context.Context) [queues]bool {
	if s.l.store.durable {
		ctx, cancel := context.WithTimeout(ctx, sweepTime)
		defer cancel()
		if has, err := s.l.store.replicated(ctx); err == nil {
			return has
		}
	}
	// Not needed, or not known: then the attempt will tell.
	var all [queues]bool
	for q := range all {
		all[q] = true
	}
	return all
}

func (s *sweeper) sweep(ctx context.Context, queue int, all *totals) error {
	l := s.l
	set := l.settings.Load()
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	found, err := l.store.sweep(ctx, queue, missingAfter, sweepBatch)
	if err != nil {
		s.since[queue] = time.Time{}
		return err
	}
	now := time.Now()
	if s.since[queue].IsZero() {
		s.since[queue] = now
	}
	all.add(found)
	if now.Sub(s.since[queue]) >= set.Lease {
		for _, id := range found.expired {
			r, err := l.store.runDurably(ctx, confirmedIfAny, loseScript, id, "", "", set.MaxRuns, errRunLost.Code, errRunLost.Message, errRunLost.Status,
				set.DeadRetention.Milliseconds(), set.Retention.Milliseconds())
			if err != nil && !errors.Is(err, errNotReplicated) {
				return err
			}
			l.lost(ctx, id, r)
		}
	}
	for _, id := range found.orphans {
		if err := s.redeliver(ctx, queue, id); err != nil {
			return err
		}
	}
	for _, id := range found.hooks {
		l.callSoon(ctx, id)
	}
	return s.forget(ctx, queue, found)
}

// redeliver gives a job that is due a new delivery when asynq has none that
// will come to a worker: it is missing, or a worker got it and did not claim
// the job.
func (s *sweeper) redeliver(ctx context.Context, queue int, id string) error {
	l := s.l
	rec, err := l.store.load(ctx, id)
	if errors.Is(err, errNoJob) || err == nil && rec.state != Queued {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := l.inspect.GetTaskInfo(queueName(queue), delivery(id, rec.gen))
	switch {
	case err == nil && info.State != asynq.TaskStateActive && info.State != asynq.TaskStateArchived:
		return nil // it waits for a worker like others
	case err != nil && !errors.Is(err, asynq.ErrTaskNotFound) && !errors.Is(err, asynq.ErrQueueNotFound):
		return err
	}
	r, err := l.store.run(ctx, redeliverScript, id, "", rec.gen)
	if err == nil && r.word == "again" {
		l.m.redelivered.Inc()
		l.send(ctx, id, r.number(0), 0)
	}
	return err
}

// forget drops the entries of records whose time is over.
func (s *sweeper) forget(ctx context.Context, queue int, found sweep) error {
	for _, list := range [][]string{found.index, found.deadIDs} {
		for _, id := range list {
			n, err := s.l.store.client.Exists(ctx, jobPrefix(queue)+id).Result()
			if err != nil {
				return err
			}
			if n > 0 {
				break // the oldest still exists
			}
			if _, err := s.l.store.run(ctx, forgetScript, id, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// totals are the numbers of all queues.
type totals struct {
	queued, running, dead, hooks, hooksDead int64
	oldest                                  time.Duration
	unsafe                                  int // queues whose master has no replica
}

func (t *totals) add(s sweep) {
	t.queued += s.queued
	t.running += s.running
	t.dead += s.dead
	t.hooks += s.hooksWaiting
	t.hooksDead += s.hooksDead
	t.oldest = max(t.oldest, s.oldest)
}
