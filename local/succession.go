package local

import (
	"context"
	"fmt"
	"slices"
	"time"

	"fournines/internal/handover"
	"fournines/internal/process"
)

// succession.go restarts a unit whose processes hand their listening sockets
// over (internal/handover): the successor starts beside the process that runs
// and takes over when it is ready; the one before ends its work by itself.

// holderPoll is how often the supervisor looks who holds a unit's sockets.
const holderPoll = 50 * time.Millisecond

// handsOver tells whether the unit's processes can follow each other.
func (u *unit) handsOver() bool { return u.def.Process != nil && u.def.Process.Handover != "" }

// family is what runs of a unit that hands over.
type family struct {
	leader process.Identity   // holds the sockets
	next   process.Identity   // started later, not the holder yet; zero when there is none
	old    []process.Identity // have handed over and end by themselves
}

// family finds the processes of a unit. Who holds the sockets is asked, not
// remembered: a supervisor may have died in the middle of a hand-over.
func (u *unit) family(table *process.Table) family {
	leaders := table.Marked(u.mark)
	if len(leaders) == 0 {
		return family{}
	}
	slices.SortFunc(leaders, func(a, b process.Identity) int { return int(a.StartTicks) - int(b.StartTicks) })
	pid, err := handover.Holder(u.def.Process.Handover)
	at := slices.IndexFunc(leaders, func(id process.Identity) bool { return id.PID == pid })
	if err != nil || at < 0 {
		at = len(leaders) - 1
	}
	f := family{leader: leaders[at], old: leaders[:at]}
	if at+1 < len(leaders) {
		f.next = leaders[len(leaders)-1]
		f.old = slices.Concat(f.old, leaders[at+1:len(leaders)-1])
	}
	return f
}

// succeed starts a second process and answers when it has taken over.
func (l *unitLoop) succeed(ctx context.Context, reply chan error) {
	l.succession, l.nextReply = true, reply
	l.sup.log.Info("starting a successor", "unit", l.def.Name, "pid", l.proc.Identity().PID)
	l.help(func() {
		proc, err := l.startNext(ctx)
		if !l.post(ctx, result{kind: gotNext, proc: proc, err: err}) && proc != nil {
			proc.Release()
		}
	})
}

// startNext runs in a helper.
func (l *unitLoop) startNext(ctx context.Context) (*process.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, l.readyTimeout())
	defer cancel()
	if l.def.Prepare != nil {
		if err := l.def.Prepare(ctx); err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
	}
	return process.Start(*l.def.Process, process.StartOptions{Owner: l.sup.opts.Owner, LogFile: l.logFile, Mark: l.mark})
}

// nextStarted is called with the outcome of startNext.
func (l *unitLoop) nextStarted(ctx context.Context, r result) {
	switch {
	case r.err != nil:
		l.nextFailed(r.err)
	case l.phase != running || !l.wanted():
		l.discard(ctx, r.proc)
		l.nextFailed(fmt.Errorf("%s is not running any more", l.def.Name))
	default:
		l.awaitNext(ctx, r.proc)
	}
}

// awaitNext watches proc until it has taken over or ended.
func (l *unitLoop) awaitNext(ctx context.Context, proc *process.Process) {
	l.next, l.succession = proc, true
	l.help(func() {
		err := l.takenOver(ctx, proc)
		l.post(ctx, result{kind: gotSuccession, proc: proc, err: err})
	})
}

// takenOver runs in a helper. It returns nil when proc holds the sockets.
func (l *unitLoop) takenOver(ctx context.Context, proc *process.Process) error {
	deadline := time.Now().Add(l.readyTimeout())
	for {
		// The answer is the kernel's; a holder that hangs gives it too.
		pid, err := handover.Holder(l.def.Process.Handover)
		if err == nil && pid == proc.Identity().PID {
			return nil
		}
		select {
		case <-proc.Done():
			return fmt.Errorf("the new process %s", proc.Exit())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(holderPoll):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the new process was not ready after %v", l.readyTimeout())
		}
	}
}

func (l *unitLoop) succeeded(ctx context.Context, r result) {
	switch {
	case r.proc != l.next: // it follows one that died, or the unit was stopped
	case r.err == nil:
		l.promote(ctx, true)
	default:
		next := l.next
		l.next = nil
		l.discard(ctx, next)
		l.nextFailed(r.err)
	}
}

// promote makes the successor the unit's process.
func (l *unitLoop) promote(ctx context.Context, ready bool) {
	l.cancelProbe()
	old := l.proc
	l.proc, l.next = l.next, nil
	l.starts++
	l.restarts++
	l.sup.log.Info("a successor has taken over", "unit", l.def.Name, "pid", l.proc.Identity().PID, "before", old.Identity().PID)
	l.watch(ctx)
	l.ready = ready // it took over because it was
	l.letEnd(ctx, old)
	l.answerNext(nil)
}

func (l *unitLoop) nextFailed(err error) {
	l.sup.log.Warn("the successor did not take over, the process that runs goes on", "unit", l.def.Name, "err", err)
	l.answerNext(&RequestError{Code: codeConflict, Message: fmt.Sprintf(
		"%s was not restarted, the process that runs goes on: %v; see `fournines logs %s`", l.def.Name, err, l.def.Name)})
}

func (l *unitLoop) answerNext(err error) {
	l.succession = false
	if l.nextReply != nil {
		l.replyLater(l.nextReply, err)
		l.nextReply = nil
	}
}

// letEnd watches a process that has handed over until it has ended by itself,
// and kills it when that takes longer than a stop may.
func (l *unitLoop) letEnd(ctx context.Context, p *process.Process) {
	l.old = append(l.old, p)
	limit := l.def.Process.StopLimit()
	l.help(func() {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case <-p.Done():
		case <-ctx.Done():
			return
		case <-timer.C:
			l.sup.log.Warn("a process that has handed over does not end, killing it", "unit", l.def.Name, "pid", p.Identity().PID, "timeout", limit.String())
		}
		// The mark is the whole unit's.
		if err := process.KillTree(p.Identity(), "", sweepLimit); err != nil {
			l.sup.log.Error("leftovers remain", "unit", l.def.Name, "err", err)
		}
		l.post(ctx, result{kind: gotOldEnd, proc: p})
	})
}

// oldEnded forgets a process that had handed over.
func (l *unitLoop) oldEnded(p *process.Process) {
	l.old = slices.DeleteFunc(l.old, func(o *process.Process) bool { return o == p })
	p.Release()
	l.sup.log.Info("a process that had handed over has ended", "unit", l.def.Name, "pid", p.Identity().PID)
}

// discard kills a successor that is not wanted.
func (l *unitLoop) discard(ctx context.Context, p *process.Process) {
	if err := process.SignalAll([]process.Identity{p.Identity()}, sigKill); err != nil {
		l.sup.log.Error("successor not killed", "unit", l.def.Name, "err", err)
	}
	l.letEnd(ctx, p)
}

// haltFamily asks all but the unit's main process to end.
func (l *unitLoop) haltFamily(ctx context.Context) {
	if next := l.next; next != nil {
		l.next = nil
		l.letEnd(ctx, next)
		l.nextFailed(fmt.Errorf("%s is being stopped", l.def.Name))
	}
	for _, p := range l.old {
		_ = p.Terminate(l.def.Process) // gone is as good
	}
}

// adoptFamily goes on with what a dead supervisor left beside the main process.
func (l *unitLoop) adoptFamily(ctx context.Context, saved *unitRecord) {
	for _, id := range saved.old {
		if p, err := process.Adopt(id, l.mark); err == nil {
			l.letEnd(ctx, p)
		}
	}
	if saved.Next.PID != 0 {
		if p, err := process.Adopt(saved.Next, l.mark); err == nil {
			l.awaitNext(ctx, p)
		}
	}
}

// awaitFamily runs in a helper, while the main process has ended and the unit
// is to stop: the others have the rest of the stop's time. Who hurries kills
// them, see verbHurry.
func awaitFamily(ctx context.Context, others []*process.Process, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, p := range others {
		select {
		case <-p.Done():
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
