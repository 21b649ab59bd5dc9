package local

import (
	"context"
	"sync"
	"time"
)

// Reconciler brings something back to where the plan wants it, again and
// again: what a failover has moved, for example. It must do nothing when
// nothing is amiss, and must be safe to run at any time.
type Reconciler struct {
	// Name for the log.
	Name string
	// Every is the pause between two runs.
	Every time.Duration
	// Do does the work; its error says why it could not. It is tried again.
	Do func(ctx context.Context) error
}

// reconcile runs each reconciler until ctx ends. Nobody waits for them: when
// the supervisor is gone the stack serves on, only out of place.
func (s *Supervisor) reconcile(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for _, r := range s.opts.Plan.Reconcilers {
		running.Go(func() {
			tick := time.NewTicker(r.Every)
			defer tick.Stop()
			last := ""
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if !s.isRunning() {
					continue // the plan's own tasks are still at work
				}
				problem := ""
				if err := r.Do(ctx); err != nil {
					problem = err.Error()
				}
				// Say it once, not every few seconds for the length of an outage.
				if problem != last && ctx.Err() == nil {
					s.opts.Logger.Info("reconcile", "name", r.Name, "problem", problem)
				}
				last = problem
			}
		})
	}
}

func (s *Supervisor) isRunning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stage == stageRunning
}
