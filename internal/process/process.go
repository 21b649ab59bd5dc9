package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Process is a running process that this program started or adopted. Its
// methods may be called from any goroutine.
type Process struct {
	id    Identity
	mark  string
	child *os.Process // nil for adopted processes
	pidfd *os.File

	done    chan struct{} // closed when the process has ended or was released
	release sync.Once
	exit    string // written before done is closed
	success bool   // likewise
}

// StartOptions are what Start needs beyond the Spec.
type StartOptions struct {
	// Owner is the account the process gets when the caller is root and the
	// Spec does not ask for Root.
	Owner Owner
	// LogFile receives stdout and stderr, appended by the process itself, so
	// that it can go on writing when the supervisor is dead.
	LogFile string
	// Mark is put into the environment as FOURNINES_UNIT and inherited by all
	// descendants; see Table.Members.
	Mark string
}

// Start runs spec in a session of its own. The process outlives the caller.
func Start(spec Spec, opts StartOptions) (*Process, error) {
	log, err := os.OpenFile(opts.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, explain("write", opts.LogFile, err)
	}
	defer log.Close()

	cmd := exec.Command(spec.Path, spec.Args...)
	if cmd.Err != nil {
		return nil, explainStart(&spec, opts.Owner, cmd.Err)
	}
	cmd.Env = append(make([]string, 0, len(spec.Env)+1), spec.Env...)
	if opts.Mark != "" {
		cmd.Env = append(cmd.Env, markKey+"="+opts.Mark)
	}
	cmd.Dir = spec.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	user := Owner{UID: os.Geteuid(), GID: os.Getegid()}
	if chowns(opts.Owner) && !spec.Root {
		user = opts.Owner
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(user.UID), Gid: uint32(user.GID)}
	}
	if err := inNetNS(spec.NetNS, cmd.Start); err != nil {
		return nil, explainStart(&spec, user, err)
	}
	p, err := attach(cmd.Process.Pid, opts.Mark, nil)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	p.child = cmd.Process
	go p.await()
	return p, nil
}

// Adopt takes over a process that another supervisor started. It returns an
// error that wraps ErrGone when that process does not run any more.
func Adopt(id Identity, mark string) (*Process, error) {
	p, err := attach(id.PID, mark, &id)
	if err != nil {
		return nil, err
	}
	go p.await()
	return p, nil
}

func attach(pid int, mark string, want *Identity) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
		}
		return nil, fmt.Errorf("watch process %d: %w (Linux 5.10 or newer is needed)", pid, err)
	}
	st, err := readStat(pid)
	if err == nil && want != nil && (st.identity() != *want || st.dead()) {
		err = fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &Process{
		id: st.identity(), mark: mark, done: make(chan struct{}),
		// A non-blocking descriptor is watched by the runtime's poller, so
		// waiting costs no thread.
		pidfd: os.NewFile(uintptr(fd), "pidfd"),
	}, nil
}

// await closes done when the process has ended.
func (p *Process) await() {
	defer close(p.done)
	conn, err := p.pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, _ := unix.Poll(fds, 0)
			return n > 0
		})
	}
	if err != nil { // released
		p.exit = "released"
		if p.child != nil {
			_ = p.child.Release()
		}
		return
	}
	p.exit = "ended"
	if p.child != nil {
		if state, err := p.child.Wait(); err == nil {
			p.exit, p.success = describe(state), state.Success()
		}
	} else {
		// Only for a subreaper's inherited child; otherwise its parent reaps it.
		var ws unix.WaitStatus
		_, _ = unix.Wait4(p.id.PID, &ws, unix.WNOHANG, nil)
	}
	p.release.Do(func() { _ = p.pidfd.Close() })
}

func describe(s *os.ProcessState) string {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return "killed by " + unix.SignalName(ws.Signal())
	}
	return strings.Replace(s.String(), "exit status", "ended with exit status", 1)
}

// Identity returns who the process is.
func (p *Process) Identity() Identity { return p.id }

// Done is closed when the process has ended, or after Release.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how the process ended; call it after Done only.
func (p *Process) Exit() string { return p.exit }

// Succeeded reports that the process ended with exit status 0; call it after
// Done only. The status of an adopted process is not known.
func (p *Process) Succeeded() bool { return p.success }

// Release stops watching the process and lets it run.
func (p *Process) Release() {
	p.release.Do(func() { _ = p.pidfd.Close() })
	<-p.done
}

// Terminate asks the process to end by itself, the way its spec says.
func (p *Process) Terminate(spec *Spec) error {
	sig := spec.stopSignal()
	if !spec.KillGroup {
		return signalOne(p.id, sig)
	}
	if !p.id.Alive() {
		return fmt.Errorf("process %d: %w", p.id.PID, ErrGone)
	}
	// The leader has just been found alive, so the group of this id is its own.
	if err := syscall.Kill(-p.id.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process group %d with %v: %w", p.id.PID, sig, err)
	}
	return nil
}

// Members returns the living processes of the unit in t.
func (p *Process) Members(t *Table) []Identity { return t.Members(p.id, p.mark) }

// KillTree kills the process and all that it started; see the function KillTree.
func (p *Process) KillTree(limit time.Duration) error { return KillTree(p.id, p.mark, limit) }

// Pause stops the process and all that it started with SIGSTOP.
func (p *Process) Pause() error { return PauseTree(p.id, p.mark) }

// Resume undoes Pause.
func (p *Process) Resume() error { return ResumeTree(p.id, p.mark) }

// inNetNS calls f on a thread that is in the named network namespace. The
// thread is given back only when it is surely in its old namespace again.
func inNetNS(name string, f func() error) error {
	if name == "" {
		return f()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		origin, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			result <- &NetNSError{Name: "of the supervisor", Err: err}
			return
		}
		defer origin.Close()
		target, err := openNetNS(name)
		if err == nil {
			defer target.Close()
			err = netns.Set(target)
		}
		if err != nil {
			runtime.UnlockOSThread()
			result <- &NetNSError{Name: name, Err: err}
			return
		}
		err = f()
		if netns.Set(origin) == nil {
			runtime.UnlockOSThread()
		} // else: the goroutine ends locked, and the runtime ends the thread with it.
		result <- err
	}()
	return <-result
}

func openNetNS(name string) (netns.NsHandle, error) {
	if strings.Contains(name, "/") {
		return netns.GetFromPath(name)
	}
	return netns.GetFromName(name)
}
