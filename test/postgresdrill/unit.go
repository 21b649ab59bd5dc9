package postgresdrill

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"fournines/internal/process"
)

// restartPause is how long a unit that died stays away; a stack's supervisor
// begins with the same.
const restartPause = 500 * time.Millisecond

// unit is one server of the cluster, restarted when it dies, as in a stack.
type unit struct {
	process.Unit
	owner process.Owner
	log   string
	mark  string

	mu      sync.Mutex
	on      bool
	proc    *process.Process
	watches sync.WaitGroup
}

func newUnit(def process.Unit, dir string, owner process.Owner) *unit {
	return &unit{Unit: def, owner: owner, log: filepath.Join(dir, def.Name+".log"), mark: filepath.Base(dir) + "/" + def.Name}
}

// start starts the unit; one that runs already is left to itself.
func (u *unit) start(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.on {
		return nil
	}
	if err := u.launch(ctx); err != nil {
		return err
	}
	u.on = true
	return nil
}

// launch starts the process. mu is held.
func (u *unit) launch(ctx context.Context) error {
	if u.Prepare != nil {
		if err := u.Prepare(ctx); err != nil {
			return fmt.Errorf("prepare %s: %w", u.Name, err)
		}
	}
	proc, err := process.Start(*u.Process, process.StartOptions{Owner: u.owner, LogFile: u.log, Mark: u.mark})
	if err != nil {
		return fmt.Errorf("start %s: %w", u.Name, err)
	}
	u.proc = proc
	u.watches.Go(func() { u.watch(proc) })
	return nil
}

// watch starts the unit again when its process has died by itself.
func (u *unit) watch(proc *process.Process) {
	<-proc.Done()
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.on || u.proc != proc {
		return
	}
	// What it has left would hold its ports.
	if proc.KillTree(patience) != nil {
		return
	}
	u.mu.Unlock()
	time.Sleep(restartPause)
	u.mu.Lock()
	if u.on && u.proc == proc {
		// A unit that cannot be started stays away; the drill then finds its
		// steady state missing.
		_ = u.launch(context.Background())
	}
}

// kill ends all processes of the unit at once. It is started again like any that
// died, unless it is off.
func (u *unit) kill() error {
	u.mu.Lock()
	proc := u.proc
	u.mu.Unlock()
	if proc == nil {
		return nil
	}
	return proc.KillTree(patience)
}

// off kills the unit and keeps it away until start.
func (u *unit) off() error {
	u.mu.Lock()
	u.on = false
	u.mu.Unlock()
	err := u.kill()
	u.watches.Wait()
	return err
}

// pause stops all processes of the unit where they are; resume lets them go on.
func (u *unit) pause() error { return u.proc.Pause() }

func (u *unit) resume() error { return u.proc.Resume() }
