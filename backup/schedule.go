package backup

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/internal/cron"
)

// Scheduler takes backups and runs restore drills when they are due, of
// whichever node is primary then, and reports all there is to know in metrics.
type Scheduler struct {
	b   *Backups
	log *slog.Logger

	backup, drill cron.Schedule

	mu   sync.Mutex
	seen status
	// mended is the primary, and its timeline, behind which the archive has been
	// mended.
	mended primary
}

// primary is a server and its timeline, which grows with each failover.
type primary struct {
	node     string
	timeline int
}

// status is what the metrics tell.
type status struct {
	// asked says that the target has answered at least once.
	asked bool
	// wanted says that a backup is due before its schedule.
	wanted  bool
	inv     Inventory
	records map[string]Record
	lag     Lag
	lagOK   bool
}

const (
	// tick is how often the clock is read: often enough that a machine that was
	// asleep notices at once.
	tick = time.Second
	// lookPause is between two looks at the archive's lag.
	lookPause = 15 * time.Second
	// lookAgain is how long what is known of the target serves.
	lookAgain = time.Minute
	// retryFirst and retryMost bound the pauses after a failure, which double.
	retryFirst = 15 * time.Second
	retryMost  = 10 * time.Minute
)

// NewScheduler returns the scheduler of b and registers its metrics.
func NewScheduler(b *Backups, log *slog.Logger, reg prometheus.Registerer) (*Scheduler, error) {
	s := &Scheduler{b: b, log: log}
	var err error
	for _, f := range []struct {
		text string
		into *cron.Schedule
	}{{b.cfg.Schedule, &s.backup}, {b.cfg.DrillSchedule, &s.drill}} {
		if f.text == "" {
			continue // the zero Schedule is never due
		}
		if *f.into, err = cron.Parse(f.text); err != nil {
			return nil, err
		}
	}
	return s, reg.Register(s)
}

// Ready returns nil when the target has answered.
func (s *Scheduler) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seen.asked {
		return errors.New("the target has not answered yet")
	}
	return nil
}

// job is one of the scheduler's operations.
type job struct {
	name  string
	run   func(ctx context.Context) error
	due   func() time.Time // zero: never
	again time.Time        // not before, after a failure
	pause time.Duration
}

// Run works until ctx ends; a backup that runs then is stopped. What was missed
// while nothing ran is made up for at once: the first backup is due when there
// is none.
func (s *Scheduler) Run(ctx context.Context) error {
	jobs := []*job{
		{name: "mend", due: s.mendDue, run: s.mend},
		{name: OpBackup, due: s.backupDue, run: func(ctx context.Context) error {
			taken, err := s.b.Now(ctx, "")
			if err == nil {
				s.log.Info("backup taken", "label", taken.Label, "bytes", taken.Size, "stored_bytes", taken.Stored)
			}
			return err
		}},
		{name: OpDrill, due: s.drillDue, run: func(ctx context.Context) error {
			d, err := s.b.Drill(ctx)
			if err == nil {
				s.log.Info("restore drill passed", "label", d.Label, "rpo", d.RPO, "rto", d.RTO, "rows", d.Rows)
			}
			return err
		}},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watchArchive(ctx)
	}()
	defer func() { <-done }()
	s.look(ctx)
	looked := time.Now()
	for {
		for _, j := range jobs {
			due := j.due()
			// Read after that: what is due now is not due later.
			now := s.b.now()
			if due.IsZero() || due.After(now) || j.again.After(now) {
				continue
			}
			err := j.run(ctx)
			if ctx.Err() != nil {
				return nil
			}
			j.finished(err, s.b.now())
			if err != nil {
				s.log.Error("operation failed", "operation", j.name, "err", err, "again_at", j.again)
			}
			s.look(ctx)
			looked = time.Now()
		}
		// Others take, check and prune backups too.
		if time.Since(looked) > lookAgain {
			s.look(ctx)
			looked = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tick):
		}
	}
}

func (j *job) finished(err error, now time.Time) {
	if err == nil {
		j.again, j.pause = time.Time{}, 0
		return
	}
	j.pause = min(max(2*j.pause, retryFirst), retryMost)
	j.again = now.Add(j.pause)
}

// backupDue is when the next backup is: after the newest one in the target,
// whoever took it.
func (s *Scheduler) backupDue() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.cfg.Schedule == "" {
		return time.Time{}
	}
	last, ok := s.seen.inv.Latest()
	if !ok || s.seen.wanted {
		return s.b.now()
	}
	return s.backup.Next(last.Started.In(s.b.now().Location()))
}

// drillDue is when the next drill is: after the last one that ended, or after the
// oldest backup.
func (s *Scheduler) drillDue() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen.inv.Backups) == 0 {
		return time.Time{}
	}
	after := s.seen.inv.Backups[0].Ended
	if r := s.seen.records[OpDrill]; r.LastSuccess.After(after) {
		after = r.LastSuccess
	}
	return s.drill.Next(after.In(s.b.now().Location()))
}

// look reads the target and the records for the schedule and the metrics.
func (s *Scheduler) look(ctx context.Context) {
	inv, err := s.b.List(ctx)
	records, recordsErr := s.b.Records()
	defer s.setWanted() // after the unlock below
	s.mu.Lock()
	defer s.mu.Unlock()
	if recordsErr == nil {
		s.seen.records = records
	}
	if err == nil {
		s.seen.inv, s.seen.asked = inv, true
	} else if ctx.Err() == nil {
		s.log.Error("the target does not answer", "err", err)
	}
}

// mendDue is now when there is another primary, or timeline, than the last time
// that the archive was mended.
func (s *Scheduler) mendDue() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seen.lagOK || !s.seen.asked || s.mended == (primary{s.seen.lag.Node, s.seen.lag.Timeline}) {
		return time.Time{}
	}
	return s.b.now()
}

// mend closes the hole that a failover may have left in the archive.
func (s *Scheduler) mend(ctx context.Context) error {
	s.mu.Lock()
	at := primary{s.seen.lag.Node, s.seen.lag.Timeline}
	s.mu.Unlock()
	stored, err := s.b.Mend(ctx)
	if len(stored) > 0 {
		s.log.Info("WAL of a new primary brought to the archive", "node", at.node, "timeline", at.timeline, "files", stored)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.mended = at
	s.mu.Unlock()
	return nil
}

// setWanted notes whether a backup is due before its schedule.
func (s *Scheduler) setWanted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	why, wanted, err := s.b.Wanted()
	if err != nil {
		s.log.Error("cannot see if a backup is wanted", "err", err)
		return
	}
	if wanted && !s.seen.wanted {
		s.log.Warn("a backup is wanted", "reason", why.Reason, "since", why.Since)
	}
	s.seen.wanted = wanted
}

// watchArchive keeps the archive's lag.
func (s *Scheduler) watchArchive(ctx context.Context) {
	for {
		lag, err := s.b.ArchiveLag(ctx)
		s.mu.Lock()
		s.seen.lag, s.seen.lagOK = lag, err == nil
		s.mu.Unlock()
		s.setWanted()
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookPause):
		}
	}
}
