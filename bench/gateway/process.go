//go:build linux

package main

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
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a process that the runner started, with its descendants.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string // file of its output
	done chan struct{}
	err  error
}

// startChild starts a process on the given processors (nil: any) in a process
// group of its own. Its standard error, and its standard output unless stdout
// is given, go to a file in dir.
func startChild(name, dir string, cpus []int, argv, env []string, stdin io.Reader, stdout io.Writer) (*child, error) {
	p := &child{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir, p.cmd.Env = dir, append(os.Environ(), env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, stdout, log
	if stdout == nil {
		p.cmd.Stdout = log
	}
	// The group, so that Ctrl-C reaches the runner alone and workers end with
	// their master; the signal, for a runner that is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := pinned(cpus, p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
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

// processors lists the ones that this process may use.
func processors() ([]int, error) {
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

func (p *child) pid() int { return p.cmd.Process.Pid }

// alive returns nil, or how the process ended.
func (p *child) alive() error {
	select {
	case <-p.done:
		how := p.err
		if how == nil {
			how = errors.New("exit status 0")
		}
		return fmt.Errorf("%s ended: %w: %s", p.name, how, p.lastWords())
	default:
		return nil
	}
}

// lastWords is the end of its log.
func (p *child) lastWords() string {
	b, _ := os.ReadFile(p.log)
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-500):])
}

// stop kills the process and its group, and waits for it. There is nothing to
// lose: its connections are gone, its files are in the runner's directory.
func (p *child) stop() {
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.done
}

// usage is what a process and its descendants have taken.
type usage struct {
	cpu time.Duration // user and system time of all threads, children that ended included
	at  time.Time
}

// tick is the unit of times in /proc: USER_HZ, which is 100 on all of Linux.
const tick = time.Second / 100

// descendants returns pid and everything below it.
func descendants(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if fields, err := statFields(id); err == nil {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], id)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// statFields are the fields of /proc/PID/stat behind the name: state is 0,
// parent 1, utime 11, stime 12, cutime 13, cstime 14.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 15 {
		return nil, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return fields, nil
}

// cpuOf reads the processor time of pids, which come from descendants.
func cpuOf(pids []int) (usage, error) {
	u := usage{at: time.Now()}
	for _, pid := range pids {
		fields, err := statFields(pid)
		if err != nil {
			return u, fmt.Errorf("read the processor time of a process: %w", err)
		}
		for _, f := range fields[11:15] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return u, fmt.Errorf("read the processor time of process %d: %w", pid, err)
			}
			u.cpu += time.Duration(n) * tick
		}
	}
	return u, nil
}

// machineCPU reads the time that all processors of the machine were not idle.
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line) // cpu, user, nice, system, idle, iowait, irq, softirq, steal, and guests, who count as users
	if len(fields) < 9 {
		return 0, errors.New("/proc/stat is too short")
	}
	var sum int64
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			sum += n
		}
	}
	return time.Duration(sum) * tick, nil
}

// rssOf reads the resident memory of pids, in bytes.
func rssOf(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, fmt.Errorf("read the memory of a process: %w", err)
		}
		_, rest, ok := strings.Cut(string(b), "\nRss:")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 || fields[1] != "kB" {
			return 0, fmt.Errorf("/proc/%d/smaps_rollup has no Rss", pid)
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/smaps_rollup: %w", pid, err)
		}
		sum += kib << 10
	}
	return sum, nil
}

// pause waits for d, or less when ctx ends or the process does.
func (p *child) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.done:
		return p.alive()
	}
}
