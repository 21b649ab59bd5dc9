package gatewaydrill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"fournines/internal/zonenet"
)

// proc is one process of a cluster, which may run or not.
type proc struct {
	name, zone string
	binary     string
	args       []string
	dir        string
	net        *zonenet.Network

	before []*proc // processes that this one took over from, which may still have work

	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// start starts the process; one that runs already is left to itself.
func (p *proc) start() error {
	log, err := os.OpenFile(filepath.Join(p.dir, p.name+".log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.binary, p.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, log, log
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + p.dir, "GOMAXPROCS=2"}
	// Nothing is left behind when this process is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.net.Do(p.zone, cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		_ = cmd.Wait() // how it ended is of no interest: most are killed
		close(done)
	}()
	return nil
}

// signal sends a signal; a process that is gone is no error.
func (p *proc) signal(s syscall.Signal) error {
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// await waits until the process has ended by itself.
func (p *proc) await(ctx context.Context) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		return fmt.Errorf("%s has not ended its work within %v", p.name, patience)
	}
}

// kill ends the process at once and waits until it is gone.
func (p *proc) kill() error {
	for _, old := range p.before {
		_ = old.signal(syscall.SIGKILL) // most have ended
		<-old.done
	}
	p.before = nil
	if p.cmd == nil {
		return nil
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	p.cmd = nil
	return nil
}
