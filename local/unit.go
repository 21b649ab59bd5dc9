package local

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/process"
	"fournines/topology"
)

// unit is what the supervisor and the other units see of one unit. Everything
// that changes is owned by the unit's loop, which publishes it as immutable
// values.
type unit struct {
	def        process.Unit
	mark       string
	logFile    string
	deps       []*unit
	dependents []*unit

	commands chan command
	gate     gate
	// powerless is set before the processes of a zone are killed, so that
	// their end is not taken for a crash.
	powerless atomic.Bool
	view      atomic.Pointer[topology.Component]
	record    atomic.Pointer[unitRecord]
}

// gate is open while a unit is ready, or not meant to run.
type gate struct {
	mu   sync.Mutex
	open bool
	ch   chan struct{}
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	switch {
	case open && !g.open:
		close(g.ch)
	case !open && g.open:
		g.ch = make(chan struct{})
	}
	g.open = open
}

// wait returns a channel that is closed once the gate is open.
func (g *gate) wait() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	return g.ch
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// verb is what can be asked of a unit.
type verb string

const (
	verbStop     verb = "stop"
	verbStart    verb = "start"
	verbRestart  verb = "restart"
	verbKill     verb = "kill"
	verbPause    verb = "pause"
	verbResume   verb = "resume"
	verbPowerOff verb = "power-off"
	verbPowerOn  verb = "power-on"
	verbDown     verb = "down"
	verbHurry    verb = "hurry"
)

// command asks a unit's loop for something. The loop answers on reply, which
// has room for the answer.
type command struct {
	verb  verb
	deps  []*unit // for verbPowerOn: what to wait for
	reply chan error
}

// do sends a command and waits for its answer.
func (u *unit) do(ctx context.Context, v verb, deps ...*unit) error {
	c := command{verb: v, deps: deps, reply: make(chan error, 1)}
	select {
	case u.commands <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-c.reply:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type phase int

const (
	idle     phase = iota // no process, nothing under way
	working               // a helper waits for dependencies, starts the process or runs the task
	running               // the process runs and is probed
	stopping              // the process was asked to end
	sweeping              // the process has ended, its leftovers are being killed
	resting               // waiting for the next try
)

type resultKind int

const (
	gotProgress   resultKind = iota // one dependency less to wait for
	gotDeps                         // all dependencies are there
	gotWork                         // the process was started, or the task has ended
	gotProbe                        // Ready was asked
	gotSweep                        // the leftovers are gone
	gotNext                         // a successor was started
	gotSuccession                   // the successor has taken over, or never will
	gotOldEnd                       // a process that had handed over has ended
)

// result is what a helper goroutine reports to the loop.
type result struct {
	kind resultKind
	proc *process.Process // the process that is meant, for all but gotProgress, gotDeps and gotSweep
	err  error
	role string
}

type pendingReply struct {
	to  chan error
	err error
}

// unitLoop is the state of one unit. Only the goroutine in run touches it.
type unitLoop struct {
	*unit
	sup     *Supervisor
	results chan result
	helpers sync.WaitGroup
	timer   *time.Timer

	phase       phase
	proc        *process.Process
	started     time.Time // of proc, by the monotonic clock
	cancelWork  context.CancelFunc
	cancelProbe context.CancelFunc

	held      bool // stopped by hand
	downing   bool // the whole stack stops
	paused    bool
	again     bool // restart asked by the user
	cancelled bool // the work under way is not wanted any more
	crashed   bool // proc ended without being asked to
	done      bool // the task has done its work

	waitDeps   bool      // the first start waits for all dependencies
	waitingFor []*unit   // what the helper waits for now
	deadline   time.Time // until when the unit must be ready for the first time
	ready      bool
	everReady  bool
	probed     bool
	probeFails int
	probeErr   error
	role       string
	workErr    error // of the last start or task
	failures   int   // consecutive, for the backoff
	starts     int
	restarts   int
	reason     string // why the unit rests
	waiters    []chan error
	replies    []pendingReply

	// For units that hand over, see succession.go.
	succession bool               // a successor is being started or gets ready
	next       *process.Process   // the successor that gets ready
	nextReply  chan error         // who asked for it
	old        []*process.Process // have handed over, or are not wanted, and end
	stopBy     time.Time          // when the stop that is under way must be over
}

// run owns the unit until ctx ends. Processes that run then go on running.
func (l *unitLoop) run(ctx context.Context, saved *unitRecord) {
	defer l.leave()
	l.begin(ctx, saved)
	l.publish()
	for {
		var exited <-chan struct{}
		if l.phase == running || l.phase == stopping {
			exited = l.proc.Done()
		}
		select {
		case <-ctx.Done():
			return
		case c := <-l.commands:
			l.command(ctx, c)
		case r := <-l.results:
			l.result(ctx, r)
		case <-exited:
			l.exited(ctx)
		case <-l.timer.C:
			l.timeUp(ctx)
		}
		l.publish()
		l.sendReplies()
	}
}

// replyLater keeps an answer until the state it tells of is published.
func (l *unitLoop) replyLater(to chan error, err error) {
	l.replies = append(l.replies, pendingReply{to, err})
}

func (l *unitLoop) sendReplies() {
	for _, r := range l.replies {
		r.to <- r.err
	}
	l.replies = nil
}

func (l *unitLoop) leave() {
	l.cancelWork()
	l.cancelProbe()
	l.timer.Stop()
	l.helpers.Wait()
	for _, p := range append(l.old, l.proc, l.next) {
		if p != nil {
			p.Release()
		}
	}
}

// begin goes on where a dead supervisor was, or starts the unit.
func (l *unitLoop) begin(ctx context.Context, saved *unitRecord) {
	l.waitDeps = true
	if saved != nil {
		l.held, l.done, l.restarts = saved.Held, saved.Done, saved.Restarts
		if l.def.Process != nil && saved.PID != 0 {
			if p, err := process.Adopt(saved.Identity, l.mark); err == nil {
				l.proc, l.paused, l.everReady = p, saved.Paused, true
				l.starts++
				l.sup.log.Info("adopted", "unit", l.def.Name, "pid", saved.PID)
				l.watch(ctx)
				l.adoptFamily(ctx, saved)
				if !l.wanted() {
					l.halt(ctx)
				}
				return
			}
		}
	}
	l.settle(ctx)
}

func (l *unitLoop) wanted() bool { return !l.held && !l.downing && !l.powerless.Load() }

// settle is called when the unit has come to rest: it starts the unit, or
// tells those who wait that it has stopped.
func (l *unitLoop) settle(ctx context.Context) {
	l.phase, l.again = idle, false
	if l.wanted() && !l.done {
		l.launch(ctx, nil)
	}
	l.answer(nil)
}

func (l *unitLoop) answer(err error) {
	for _, w := range l.waiters {
		l.replyLater(w, err)
	}
	l.waiters = nil
}

// help runs f beside the loop; leave waits for it.
func (l *unitLoop) help(f func()) {
	l.helpers.Add(1)
	go func() {
		defer l.helpers.Done()
		f()
	}()
}

func (l *unitLoop) post(ctx context.Context, r result) bool {
	select {
	case l.results <- r:
		return true
	case <-ctx.Done():
		return false
	}
}

// launch starts the process or runs the task in a helper, which reports
// gotWork exactly once.
func (l *unitLoop) launch(ctx context.Context, deps []*unit) {
	if l.waitDeps {
		deps = l.deps
	}
	l.phase, l.workErr, l.reason, l.waitingFor = working, nil, "", deps
	l.cancelled = false
	if len(deps) > 0 {
		l.deadline = time.Time{}
	}
	workCtx, cancel := context.WithCancel(ctx)
	l.cancelWork = cancel
	l.help(func() {
		defer cancel()
		proc, err := l.work(ctx, workCtx, deps)
		if !l.post(ctx, result{kind: gotWork, proc: proc, err: err}) && proc != nil {
			proc.Release()
		}
	})
}

// work runs in a helper: it reads only what never changes.
func (l *unitLoop) work(loopCtx, ctx context.Context, deps []*unit) (*process.Process, error) {
	for _, d := range deps {
		select {
		case <-d.gate.wait():
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !l.post(loopCtx, result{kind: gotProgress}) {
			return nil, context.Cause(ctx)
		}
	}
	if !l.post(loopCtx, result{kind: gotDeps}) {
		return nil, context.Cause(ctx)
	}
	tryCtx, cancel := context.WithTimeout(ctx, l.readyTimeout())
	defer cancel()
	if l.def.Prepare != nil {
		if err := l.def.Prepare(tryCtx); err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
	}
	if l.def.Task != nil {
		return nil, l.def.Task(tryCtx)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return process.Start(*l.def.Process, process.StartOptions{Owner: l.sup.opts.Owner, LogFile: l.logFile, Mark: l.mark})
}

func (l *unitLoop) readyTimeout() time.Duration {
	if l.def.ReadyTimeout > 0 {
		return l.def.ReadyTimeout
	}
	return DefaultReadyTimeout
}

// watch begins to probe the process that runs.
func (l *unitLoop) watch(ctx context.Context) {
	l.phase, l.started = running, time.Now()
	l.ready, l.probed, l.probeFails, l.probeErr, l.role = false, false, 0, nil, ""
	if l.deadline.IsZero() {
		l.deadline = time.Now().Add(l.readyTimeout())
	}
	probeCtx, cancel := context.WithCancel(ctx)
	l.cancelProbe = cancel
	proc := l.proc
	l.help(func() {
		defer cancel()
		l.probe(probeCtx, proc)
	})
}

// probe asks Ready until ctx ends: often until the unit is ready for the
// first time, then now and then, so that the status stays true.
func (l *unitLoop) probe(ctx context.Context, proc *process.Process) {
	o := &l.sup.opts
	wait := o.FirstPoll
	wasReady := false
	for {
		r := result{kind: gotProbe, proc: proc}
		if l.def.Ready != nil {
			tryCtx, cancel := context.WithTimeout(ctx, o.TryTimeout)
			r.err = l.def.Ready(tryCtx)
			cancel()
		}
		if r.err == nil && l.def.Role != nil {
			tryCtx, cancel := context.WithTimeout(ctx, o.TryTimeout)
			r.role, _ = l.def.Role(tryCtx)
			cancel()
		}
		if ctx.Err() != nil || !l.post(ctx, r) {
			return
		}
		switch {
		case r.err == nil:
			wasReady, wait = true, o.Recheck
		case wasReady:
			wait = min(o.Recheck, o.MaxPoll/2)
		default:
			wait = min(wait*3/2, o.MaxPoll)
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

func (l *unitLoop) result(ctx context.Context, r result) {
	switch r.kind {
	case gotProgress:
	case gotDeps:
		l.waitingFor, l.waitDeps = nil, false
		if l.deadline.IsZero() {
			l.deadline = time.Now().Add(l.readyTimeout())
		}
	case gotWork:
		l.worked(ctx, r)
	case gotProbe:
		if r.proc == l.proc {
			l.probedOnce(r)
		}
	case gotSweep:
		l.swept(ctx, r.err)
	case gotNext:
		l.nextStarted(ctx, r)
	case gotSuccession:
		l.succeeded(ctx, r)
	case gotOldEnd:
		l.oldEnded(r.proc)
	}
}

func (l *unitLoop) worked(ctx context.Context, r result) {
	l.cancelWork()
	l.waitingFor = nil
	switch {
	case r.proc != nil:
		l.proc, l.paused = r.proc, false
		if l.starts > 0 {
			l.restarts++
		}
		l.starts++
		l.sup.log.Info("started", "unit", l.def.Name, "pid", r.proc.Identity().PID, "restarts", l.restarts)
		l.watch(ctx)
		if !l.wanted() || l.again {
			l.halt(ctx)
		}
	case r.err == nil: // a task
		l.done, l.failures = true, 0
		l.sup.log.Info("task done", "unit", l.def.Name)
		l.settle(ctx)
	case l.cancelled:
		l.settle(ctx)
	default:
		l.workErr = r.err
		l.rest(r.err.Error())
	}
}

// rest waits for the next try, longer after each failure.
func (l *unitLoop) rest(why string) {
	o := &l.sup.opts
	d := o.MinBackoff
	for range min(l.failures, 30) {
		if d *= 2; d >= o.MaxBackoff {
			d = o.MaxBackoff
			break
		}
	}
	if l.def.Task != nil {
		d = min(d, taskMaxBackoff)
	}
	l.failures++
	l.phase, l.reason = resting, fmt.Sprintf("%s; next try in %v", why, d.Round(time.Millisecond))
	l.timer.Reset(d)
	l.sup.log.Warn("unit failed", "unit", l.def.Name, "reason", why, "failures", l.failures, "retry", d.String())
}

func (l *unitLoop) probedOnce(r result) {
	l.probed = true
	if r.err == nil {
		l.ready, l.everReady, l.probeFails, l.probeErr, l.role = true, true, 0, nil, r.role
		return
	}
	l.probeErr = r.err
	// One slow answer on a loaded machine is not an outage.
	if l.probeFails++; l.probeFails >= 2 {
		l.ready, l.role = false, ""
	}
}

// halt brings a unit that is not wanted any more, or is wanted anew, to rest.
// settle or a later event then answers the waiters.
func (l *unitLoop) halt(ctx context.Context) {
	if !l.wanted() {
		l.haltFamily(ctx)
	}
	switch l.phase {
	case working:
		l.cancelled = true
		l.cancelWork()
	case running:
		if l.paused {
			// A stopped process would see the signal only after SIGCONT.
			_ = l.proc.Resume()
			l.paused = false
		}
		l.phase = stopping
		limit := l.def.Process.StopLimit()
		if err := l.proc.Terminate(l.def.Process); err != nil {
			limit = 0
		}
		l.timer.Reset(limit)
		l.stopBy = time.Now().Add(limit)
	case resting:
		l.timer.Stop()
		l.phase = idle
	case idle, stopping, sweeping:
	}
}

func (l *unitLoop) timeUp(ctx context.Context) {
	switch l.phase {
	case resting:
		l.launch(ctx, nil)
	case stopping:
		l.sup.log.Warn("stop timeout, killing", "unit", l.def.Name, "timeout", l.def.Process.StopLimit().String())
		_ = l.kill() // the end is seen in exited, or the whole stop runs into its deadline
	case idle, working, running, sweeping:
	}
}

// kill sends SIGKILL to the whole unit once. The end is seen in exited; what
// was forked meanwhile is swept after it.
func (l *unitLoop) kill() error {
	t, err := process.Scan()
	if err != nil {
		return err
	}
	return process.SignalAll(l.proc.Members(t), sigKill)
}

func (l *unitLoop) exited(ctx context.Context) {
	if l.next != nil && l.phase == running && l.wanted() {
		// It has the listeners: the one before has just handed over, or died.
		l.promote(ctx, l.proc.Succeeded())
		return
	}
	l.cancelProbe()
	l.timer.Stop()
	l.crashed = l.phase == running && !l.powerless.Load()
	if l.crashed {
		l.reason = l.proc.Exit()
	}
	l.phase, l.ready, l.paused, l.role = sweeping, false, false, ""
	proc, mark, others := l.proc, l.mark, slices.Clone(l.old)
	left := time.Until(l.stopBy)
	if l.handsOver() && l.wanted() {
		mark, others = "", nil // those that have handed over go on ending
	}
	l.help(func() {
		awaitFamily(ctx, others, left)
		// Children that outlive their leader hold its ports and files, and a
		// database without its guard must not go on serving.
		l.post(ctx, result{kind: gotSweep, err: process.KillTree(proc.Identity(), mark, sweepLimit)})
	})
}

func (l *unitLoop) swept(ctx context.Context, err error) {
	ran := time.Since(l.started)
	l.proc = nil
	if err != nil {
		l.sup.log.Error("leftovers remain", "unit", l.def.Name, "err", err)
	}
	if !l.crashed || !l.wanted() || l.again {
		l.failures = 0
		l.settle(ctx)
		return
	}
	if ran >= l.sup.opts.StableAfter {
		l.failures = 0
	}
	l.rest(l.sup.withDiskHint(l.reason))
}
