//go:build linux

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fournines/internal/process"
)

// Process is a process that a benchmark started, with its descendants.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string // file of its output
	done chan struct{}
	err  error
}

// Command says what to start and how.
type Command struct {
	Name string
	// Dir is where it works and where its output goes.
	Dir  string
	Argv []string
	// Env is added to the caller's environment.
	Env []string
	// CPUs are the processors it may use; nil is any.
	CPUs []int
	// Owner is the account it runs as, for a caller who is root; zero is the caller's.
	Owner process.Owner
	// Stdin and Stdout are nil for none and the log.
	Stdin  io.Reader
	Stdout io.Writer
}

// Start starts a process in a process group of its own. Its standard error,
// and its standard output unless Stdout is given, go to a file in Dir.
func Start(c Command) (*Process, error) {
	p := &Process{Name: c.Name, log: filepath.Join(c.Dir, c.Name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(c.Argv[0], c.Argv[1:]...)
	p.cmd.Dir, p.cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = c.Stdin, c.Stdout, log
	if c.Stdout == nil {
		p.cmd.Stdout = log
	}
	// The group, so that Ctrl-C reaches the runner alone and workers end with
	// their master; the signal, for a runner that is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if c.Owner != (process.Owner{}) && os.Geteuid() == 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.Owner.UID), Gid: uint32(c.Owner.GID)}
	}
	if err := pinned(c.CPUs, p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// pinned calls start on a thread that may use only cpus; what it starts inherits that.
func pinned(cpus []int, start func() error) error {
	if len(cpus) == 0 {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read the processors in use: %w", err)
	}
	for _, c := range cpus {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to processors %v: %w", cpus, err)
	}
	err := start()
	return errors.Join(err, unix.SchedSetaffinity(0, &before))
}

// Processors lists the ones that this process may use.
func Processors() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read the processors in use: %w", err)
	}
	var all []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			all = append(all, i)
		}
	}
	return all, nil
}

// PID is its process id, which is also its group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Alive returns nil, or how the process ended.
func (p *Process) Alive() error {
	select {
	case <-p.done:
		how := p.err
		if how == nil {
			how = errors.New("exit status 0")
		}
		return fmt.Errorf("%s ended: %w: %s", p.Name, how, p.LastWords())
	default:
		return nil
	}
}

// LastWords is the end of its log.
func (p *Process) LastWords() string {
	b, _ := os.ReadFile(p.log)
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-500):])
}

// Stop kills the process and its group, and waits for it. There is nothing to
// lose: its connections are gone, its files are in the runner's directory.
func (p *Process) Stop() {
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	<-p.done
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// End asks the process to end with a signal, and kills it when it has not
// after limit.
func (p *Process) End(sig syscall.Signal, limit time.Duration) {
	_ = syscall.Kill(p.PID(), sig)
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
	}
	p.Stop()
}

// Pause waits for d, or less when ctx ends or the process does.
func (p *Process) Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.done:
		return p.Alive()
	}
}

// RaiseFileLimit raises the number of files that this process, and those that
// it starts, may have open, to what the system allows. It returns how many a
// proxy should be told to use, at most 100,000.
func RaiseFileLimit() (uint64, error) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	// Set, not only read: then processes that we start inherit it.
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0, fmt.Errorf("raise the limit of open files: %w", err)
	}
	return min(files.Cur, 100_000), nil
}
