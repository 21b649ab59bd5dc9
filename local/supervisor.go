package local

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/process"
	"fournines/topology"
)

// The defaults of Options and of units.
const (
	DefaultReadyTimeout = 60 * time.Second
	DefaultMinBackoff   = 500 * time.Millisecond
	DefaultMaxBackoff   = 30 * time.Second
	DefaultStableAfter  = 60 * time.Second
	DefaultFirstPoll    = 100 * time.Millisecond
	DefaultMaxPoll      = time.Second
	DefaultTryTimeout   = 5 * time.Second
	DefaultRecheck      = 2 * time.Second
	DefaultDownTimeout  = 90 * time.Second
	DefaultLogMaxBytes  = 20 << 20
	DefaultLogKeep      = 3

	taskMaxBackoff = 2 * time.Second
	sweepLimit     = 10 * time.Second
	killLimit      = 15 * time.Second
	housekeeping   = 10 * time.Second
	reapAgain      = 100 * time.Millisecond
	failedAfter    = 5        // crashes in a row
	diskHintBytes  = 64 << 20 // free space under which a crash is blamed on the disk
)

// Options configure a Supervisor. Zero durations take the Default of the same name.
type Options struct {
	// Plan is what to run.
	Plan *Plan
	// Dir is the data directory, made by PrepareDir.
	Dir string
	// Owner runs the processes when the supervisor is root.
	Owner process.Owner
	// Logger receives what the supervisor does; nil discards it.
	Logger *slog.Logger

	// MinBackoff and MaxBackoff bound the pause before a unit that died is
	// started again; it doubles with each death.
	MinBackoff, MaxBackoff time.Duration
	// StableAfter is how long a unit must have run for its deaths before to
	// be forgotten.
	StableAfter time.Duration
	// FirstPoll and MaxPoll bound the growing pause between two questions to
	// a unit that is not ready yet.
	FirstPoll, MaxPoll time.Duration
	// TryTimeout bounds one question.
	TryTimeout time.Duration
	// Recheck is the pause between two questions to a unit that is ready.
	Recheck time.Duration
	// DownTimeout bounds the ordered stop of the whole stack; what runs then
	// is killed.
	DownTimeout time.Duration
	// LogMaxBytes is the size at which a log is rotated.
	LogMaxBytes int64
	// LogKeep is how many rotated logs of each unit are kept; negative keeps none.
	LogKeep int
	// StatusListener, when set, serves what of the control API only tells the
	// state; see ListenStatus.
	StatusListener net.Listener
	// Serving, when set, is called once the control API answers.
	Serving func()
}

func (o *Options) setDefaults() {
	setDuration := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	setDuration(&o.MinBackoff, DefaultMinBackoff)
	setDuration(&o.MaxBackoff, DefaultMaxBackoff)
	setDuration(&o.StableAfter, DefaultStableAfter)
	setDuration(&o.FirstPoll, DefaultFirstPoll)
	setDuration(&o.MaxPoll, DefaultMaxPoll)
	setDuration(&o.TryTimeout, DefaultTryTimeout)
	setDuration(&o.Recheck, DefaultRecheck)
	setDuration(&o.DownTimeout, DefaultDownTimeout)
	if o.LogMaxBytes == 0 {
		o.LogMaxBytes = DefaultLogMaxBytes
	}
	if o.LogKeep == 0 {
		o.LogKeep = DefaultLogKeep
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

type stage int

const (
	stageStarting stage = iota // until every unit was ready once
	stageRunning
	stageStopping
	stageStopped
)

// Supervisor runs one stack. Its units are each owned by one goroutine; the
// supervisor starts them, listens to the control API, and stops them in order.
type Supervisor struct {
	opts   Options
	log    *slog.Logger
	units  []*unit
	byName map[string]*unit
	began  time.Time

	stopOnly bool // adopt what runs, start nothing

	hub       hub
	saveSoon  chan struct{}
	downAsked chan struct{}
	downOnce  sync.Once
	hurried   chan struct{}
	hurryOnce sync.Once
	closing   chan struct{} // the control API ends
	stopped   chan struct{} // all units have stopped, stopErr is set
	stopErr   error
	zoneVerbs sync.Mutex // one zone verb at a time

	mu           sync.Mutex // guards the fields below
	stage        stage
	startSeconds float64
	powerOff     map[string]bool
	actions      []action // the last orders, oldest first
	actionSeq    int64

	memoryMu   sync.Mutex
	memoryTime time.Time
	memory     atomic.Pointer[map[string]int64]
}

// action is an order and when it came, by the monotonic clock.
type action struct {
	topology.Action
	at time.Time
}

// New checks the plan and prepares a supervisor. It starts nothing.
func New(opts Options) (*Supervisor, error) {
	if err := opts.Plan.Validate(); err != nil {
		return nil, err
	}
	opts.setDefaults()
	s := &Supervisor{
		opts: opts, log: opts.Logger, byName: map[string]*unit{},
		saveSoon: make(chan struct{}, 1), downAsked: make(chan struct{}), hurried: make(chan struct{}),
		closing: make(chan struct{}), stopped: make(chan struct{}), powerOff: map[string]bool{},
	}
	for _, def := range opts.Plan.Units {
		u := &unit{
			def: def, mark: Mark(opts.Dir, def.Name), logFile: LogPath(opts.Dir, def.Name),
			commands: make(chan command),
		}
		s.units = append(s.units, u)
		s.byName[def.Name] = u
	}
	for _, u := range s.units {
		for _, name := range u.def.After {
			dep := s.byName[name]
			u.deps = append(u.deps, dep)
			dep.dependents = append(dep.dependents, u)
		}
	}
	return s, nil
}

// Mark is what every process of a unit carries in its environment; see
// process.StartOptions. A task that starts a process gives it this mark, so
// that a later supervisor finds it.
func Mark(dir, unit string) string { return dir + ":" + unit }

// Down asks Run to stop the stack and return.
func (s *Supervisor) Down() { s.downOnce.Do(func() { close(s.downAsked) }) }

// Hurry makes a stop that is under way, or comes later, kill at once.
func (s *Supervisor) Hurry() { s.hurryOnce.Do(func() { close(s.hurried) }) }

// Run adopts what a dead supervisor left running, starts the rest, and serves
// the control API on ln. It stops the stack when ctx ends or Down is called,
// and returns when everything has stopped. The caller holds the lock and
// releases it afterwards.
func (s *Supervisor) Run(ctx context.Context, _ *Lock, ln net.Listener) error {
	s.began = time.Now()
	defer removeSockets(s.opts.Dir)
	closeListeners := func() {
		_ = ln.Close()
		if s.opts.StatusListener != nil {
			_ = s.opts.StatusListener.Close()
		}
	}
	saved, err := s.recover()
	if err != nil {
		closeListeners()
		return err
	}
	if setup := s.opts.Plan.Setup; setup != nil && !s.stopOnly {
		if err := setup(ctx); err != nil {
			closeListeners()
			return fmt.Errorf("set up the network of the stack: %w", err)
		}
	}

	base, endAll := context.WithCancel(context.WithoutCancel(ctx))
	var helpers sync.WaitGroup
	run := func(f func(context.Context)) { helpers.Go(func() { f(base) }) }
	run(s.saveLoop)
	run(s.housekeepingLoop)
	run(s.reapLoop)
	for _, u := range s.units {
		// Others may ask for the state before the loop has run for the first time.
		u.view.Store(&topology.Component{Name: u.def.Name, Kind: u.def.Kind, Address: u.def.Address, State: topology.Starting})
		u.record.Store(&unitRecord{})
	}
	for _, u := range s.units {
		l := &unitLoop{
			unit: u, sup: s, results: make(chan result), timer: time.NewTimer(time.Hour),
			cancelWork: func() {}, cancelProbe: func() {}, held: s.stopOnly,
		}
		l.timer.Stop()
		rec := saved[u.def.Name]
		run(func(ctx context.Context) { l.run(ctx, rec) })
	}
	run(func(context.Context) { s.serve(ln, s.controlAPI()) })
	if status := s.opts.StatusListener; status != nil {
		run(func(context.Context) { s.serve(status, s.statusAPI()) })
	}
	reconcileCtx, endReconcile := context.WithCancel(base)
	defer endReconcile()
	helpers.Go(func() { s.reconcile(reconcileCtx) })
	if s.opts.Serving != nil {
		s.opts.Serving()
	}

	select {
	case <-ctx.Done():
	case <-s.downAsked:
	}
	endReconcile()
	s.setStage(stageStopping)
	err = s.stopAll(base)
	if teardown := s.opts.Plan.Teardown; teardown != nil && err == nil {
		tctx, cancel := context.WithTimeout(base, killLimit)
		if e := teardown(tctx); e != nil {
			err = fmt.Errorf("remove the network of the stack: %w", e)
		}
		cancel()
	}
	if err == nil {
		s.setStage(stageStopped)
	}
	s.stopErr = err
	close(s.stopped)
	close(s.closing)
	endAll()
	joined := make(chan struct{})
	go func() {
		helpers.Wait()
		close(joined)
	}()
	if err != nil {
		// A unit that cannot be stopped must not keep the supervisor for ever.
		select {
		case <-joined:
		case <-time.After(killLimit):
		}
		return err
	}
	<-joined
	// Nothing to adopt any more.
	return saveState(s.opts.Dir, &savedState{Version: stateVersion, Name: s.opts.Plan.Name})
}

// recover reads the saved state, finds what still runs, and kills what runs
// without its leader. The records it returns are to be gone on with.
func (s *Supervisor) recover() (map[string]*unitRecord, error) {
	state, err := loadState(s.opts.Dir)
	if err != nil {
		return nil, err
	}
	table, err := process.Scan()
	if err != nil {
		return nil, err
	}
	alive := 0
	out := map[string]*unitRecord{}
	var strays []*unit
	for _, u := range s.units {
		rec, known := state.Units[u.def.Name]
		if u.handsOver() {
			if f := u.family(table); f.leader.PID != 0 {
				rec.Identity, rec.Next, rec.old, known = f.leader, f.next, f.old, true
			}
		}
		if !rec.Alive() {
			rec.Identity = process.Identity{}
			// A supervisor that died between the start and writing it down.
			if leaders := table.Marked(u.mark); len(leaders) == 1 && u.def.Process != nil {
				rec.Identity, known = leaders[0], true
			} else if len(table.Members(process.Identity{}, u.mark)) > 0 {
				strays = append(strays, u)
			}
		}
		if rec.PID != 0 {
			alive++
		}
		if known {
			out[u.def.Name] = &rec
		}
	}
	for _, u := range strays {
		s.log.Warn("killing leftovers without a leader", "unit", u.def.Name)
		if err := process.KillTree(process.Identity{}, u.mark, sweepLimit); err != nil {
			return nil, err
		}
	}
	if alive == 0 {
		// Nothing runs: this is a new start, and old holds do not count.
		return map[string]*unitRecord{}, nil
	}
	for _, z := range state.PowerOff {
		s.powerOff[z] = true
	}
	for _, u := range s.units {
		u.powerless.Store(u.def.Process != nil && s.powerOff[u.def.Zone])
	}
	s.log.Info("adopting a running stack", "processes", alive)
	return out, nil
}

// stopAll stops every unit after all that depend on it. When the deadline
// passes or somebody hurries, what still runs is killed.
func (s *Supervisor) stopAll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(map[*unit]chan struct{}, len(s.units))
	for _, u := range s.units {
		done[u] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for _, u := range s.units {
		wg.Go(func() {
			defer close(done[u])
			for _, d := range u.dependents {
				select {
				case <-done[d]:
				case <-ctx.Done():
				}
			}
			_ = u.do(ctx, verbDown)
		})
	}
	all := make(chan struct{})
	go func() {
		wg.Wait()
		close(all)
	}()
	defer func() {
		cancel()
		<-all
	}()

	deadline := time.NewTimer(s.opts.DownTimeout)
	defer deadline.Stop()
	select {
	case <-all:
		return nil
	case <-deadline.C:
		s.log.Warn("the stop takes too long, killing what is left", "timeout", s.opts.DownTimeout.String())
	case <-s.hurried:
		s.log.Warn("asked to hurry, killing what is left")
	}
	// Units that wait for others to stop get their turn at once now, so ask
	// all again until none is left.
	last := time.NewTimer(killLimit)
	defer last.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		for _, u := range s.units {
			if u.record.Load().PID != 0 {
				_ = u.do(ctx, verbHurry)
			}
		}
		select {
		case <-all:
			return nil
		case <-again.C:
		case <-last.C:
			var left []string
			for _, u := range s.units {
				select {
				case <-done[u]:
				default:
					left = append(left, u.def.Name)
				}
			}
			return fmt.Errorf("still not stopped: %s; see `fournines logs NAME`", strings.Join(left, ", "))
		}
	}
}

func (s *Supervisor) setStage(st stage) {
	s.mu.Lock()
	s.stage = st
	s.mu.Unlock()
	s.hub.touch("")
}

// changed is called by a unit's loop after it has published a new view.
func (s *Supervisor) changed(name string) {
	s.mu.Lock()
	if s.stage == stageStarting && s.settled() {
		s.stage = stageRunning
		s.startSeconds = time.Since(s.began).Seconds()
		s.log.Info("stack is up", "seconds", s.startSeconds)
		defer s.hub.touch("")
	}
	s.mu.Unlock()
	s.hub.touch(name)
}

// settled reports if every unit is ready or not meant to run.
func (s *Supervisor) settled() bool {
	for _, u := range s.units {
		if st := u.view.Load().State; st != topology.Ready && st != topology.Stopped {
			return false
		}
	}
	return true
}

// Status returns what is known now. Memory is at most a few seconds old.
func (s *Supervisor) Status() topology.Status {
	memory := s.freshMemory(3 * time.Second)
	p := s.opts.Plan
	out := topology.Status{
		Name: p.Name, Endpoints: p.Endpoints, CredentialsFile: p.CredentialsFile, DataDir: s.opts.Dir,
	}
	s.mu.Lock()
	out.State, out.StartSeconds = s.stackState(), s.startSeconds
	off := make(map[string]bool, len(s.powerOff))
	for z := range s.powerOff {
		off[z] = true
	}
	for _, a := range s.actions {
		a.AgeSeconds = time.Since(a.at).Seconds()
		out.Actions = append(out.Actions, a.Action)
	}
	s.mu.Unlock()
	for _, name := range append(slices.Clone(p.Zones), "") {
		z := topology.Zone{Name: name, Components: []topology.Component{}}
		for _, u := range s.units {
			if u.def.Zone == name {
				c := *u.view.Load()
				c.MemoryBytes = memory[u.def.Name]
				z.Components = append(z.Components, c)
			}
		}
		if name == "" && len(z.Components) == 0 {
			continue
		}
		if name != "" {
			z.Power = "on"
			if off[name] {
				z.Power = "off"
			}
			if p.Network != nil {
				z.Link, _ = p.Network.LinkState(name)
			}
		}
		out.Zones = append(out.Zones, z)
	}
	return out
}

// stackState is called with mu held.
func (s *Supervisor) stackState() topology.State {
	allReady, failed := true, false
	for _, u := range s.units {
		st := u.view.Load().State
		allReady = allReady && st == topology.Ready
		failed = failed || st == topology.Failed
	}
	switch {
	case s.stage == stageStopped:
		return topology.Stopped
	case s.stage == stageStopping:
		return topology.Degraded
	case allReady:
		return topology.Ready
	case s.stage == stageStarting && !failed:
		return topology.Starting
	}
	return topology.Degraded
}

func (s *Supervisor) persistSoon() {
	select {
	case s.saveSoon <- struct{}{}:
	default:
	}
}

// saveLoop writes state.json after each change.
func (s *Supervisor) saveLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.saveSoon:
		}
		if err := s.save(); err != nil {
			// Going on is better than stopping: the marks of the processes
			// replace a lost state. The next change tries again.
			s.log.Error("state not written", "err", err)
		}
	}
}

func (s *Supervisor) save() error {
	boot, err := process.BootID()
	if err != nil {
		return err
	}
	state := &savedState{Version: stateVersion, Name: s.opts.Plan.Name, BootID: boot, Units: map[string]unitRecord{}}
	for _, u := range s.units {
		state.Units[u.def.Name] = *u.record.Load()
	}
	s.mu.Lock()
	for z := range s.powerOff {
		state.PowerOff = append(state.PowerOff, z)
	}
	s.mu.Unlock()
	slices.Sort(state.PowerOff)
	return saveState(s.opts.Dir, state)
}

// withDiskHint adds the likeliest cause of a death that the unit itself can
// only hint at in its log.
func (s *Supervisor) withDiskHint(reason string) string {
	free, err := process.FreeBytes(s.opts.Dir)
	if err != nil || free >= diskHintBytes {
		return reason
	}
	return fmt.Sprintf("%s; the disk of %s is full (%d MiB free), free space", reason, s.opts.Dir, free>>20)
}
