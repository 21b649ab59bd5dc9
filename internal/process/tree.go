package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// markKey is the environment variable that every process of a unit inherits.
// It finds the processes that left both the session and the family of their
// leader, as PostgreSQL does when Patroni starts it.
const markKey = "FOURNINES_UNIT"

// Table is a picture of the machine's processes, taken at one moment.
type Table struct {
	procs    map[int]stat
	children map[int][]int
	marked   map[string][]int
}

// Scan takes the picture. It reads the environment of the processes that the
// caller may look into, to find marks.
func Scan() (*Table, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	t := &Table{procs: map[int]stat{}, children: map[int][]int{}, marked: map[string][]int{}}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		st, err := readStat(pid)
		if err != nil {
			continue
		}
		t.procs[pid] = st
		t.children[st.ppid] = append(t.children[st.ppid], pid)
		if st.ppid == 2 || st.dead() {
			continue // a kernel thread, or nothing left to read
		}
		if env, err := os.ReadFile("/proc/" + name + "/environ"); err == nil {
			if mark := findMark(env); mark != "" {
				t.marked[mark] = append(t.marked[mark], pid)
			}
		}
	}
	return t, nil
}

func findMark(env []byte) string {
	prefix := []byte(markKey + "=")
	for len(env) > 0 {
		var entry []byte
		entry, env, _ = bytes.Cut(env, []byte{0})
		if v, ok := bytes.CutPrefix(entry, prefix); ok {
			return string(v)
		}
	}
	return ""
}

// Members returns the living processes of a unit: the leader, its session,
// everything that carries the mark, and the descendants of all these.
// The leader may be dead or zero; the mark may be empty.
func (t *Table) Members(leader Identity, mark string) []Identity {
	seen := map[int]bool{}
	var queue []int
	add := func(pid int) {
		if !seen[pid] {
			seen[pid] = true
			queue = append(queue, pid)
		}
	}
	if leader.PID > 0 {
		st, present := t.procs[leader.PID]
		// Another process with the leader's id means that the leader's session
		// ended before: the kernel keeps the id of a living session taken.
		if !present || st.start == leader.StartTicks {
			if present {
				add(leader.PID)
			}
			for pid, st := range t.procs {
				if st.session == leader.PID {
					add(pid)
				}
			}
		}
	}
	if mark != "" {
		for _, pid := range t.marked[mark] {
			add(pid)
		}
	}
	for i := 0; i < len(queue); i++ {
		for _, child := range t.children[queue[i]] {
			add(child)
		}
	}
	var out []Identity
	for _, pid := range queue {
		if st := t.procs[pid]; !st.dead() {
			out = append(out, st.identity())
		}
	}
	return out
}

// Marked returns the leaders (processes that lead their session) that carry
// exactly this mark, for finding a process whose identity was never written down.
func (t *Table) Marked(mark string) []Identity {
	var out []Identity
	for _, pid := range t.marked[mark] {
		if st := t.procs[pid]; st.session == pid && !st.dead() {
			out = append(out, st.identity())
		}
	}
	return out
}

// Memory returns the memory of the processes in bytes. It is the proportional
// set size, in which a page shared by n processes counts 1/n for each, so that
// PostgreSQL's shared buffers are not counted once per backend. Processes that
// do not let the caller see it count with their resident size.
func Memory(members []Identity) int64 {
	var sum int64
	for _, id := range members {
		base := "/proc/" + strconv.Itoa(id.PID)
		if b, err := os.ReadFile(base + "/smaps_rollup"); err == nil {
			if kib, ok := rollupPSS(b); ok {
				sum += kib << 10
				continue
			}
		}
		if b, err := os.ReadFile(base + "/statm"); err == nil {
			if f := strings.Fields(string(b)); len(f) > 1 {
				if pages, err := strconv.ParseInt(f[1], 10, 64); err == nil {
					sum += pages * int64(os.Getpagesize())
				}
			}
		}
	}
	return sum
}

func rollupPSS(b []byte) (kib int64, ok bool) {
	for line := range strings.Lines(string(b)) {
		if v, found := strings.CutPrefix(line, "Pss:"); found {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// SignalAll sends sig to each process, never to another one that got its id
// meanwhile. Processes that are gone are no error.
func SignalAll(members []Identity, sig syscall.Signal) error {
	var errs []error
	for _, id := range members {
		if err := signalOne(id, sig); err != nil && !errors.Is(err, ErrGone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func signalOne(id Identity, sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	defer unix.Close(fd)
	// The descriptor holds on to whoever has the id now; only then compare.
	if now, err := Identify(id.PID); err != nil || now != id {
		return fmt.Errorf("process %d: %w", id.PID, ErrGone)
	}
	switch err := unix.PidfdSendSignal(fd, sig, nil, 0); {
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("process %d: %w", id.PID, ErrGone)
	case err != nil:
		return fmt.Errorf("signal process %d with %v: %w", id.PID, sig, err)
	}
	return nil
}

// KillTree kills every process of a unit with SIGKILL and returns when none
// is left, or with an error after the limit. It looks again after each round,
// since a process may have forked between the look and the signal.
func KillTree(leader Identity, mark string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		t, err := Scan()
		if err != nil {
			return err
		}
		members := t.Members(leader, mark)
		if len(members) == 0 {
			return nil
		}
		if err := SignalAll(members, syscall.SIGKILL); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d still there %v after SIGKILL; it waits for a device or a network file system", members[0].PID, limit)
		}
		time.Sleep(wait)
	}
}

// PauseTree stops every process of a unit with SIGSTOP, as if its machine
// hung: sockets stay open, nothing answers.
func PauseTree(leader Identity, mark string) error {
	// A member that forks while the others are being stopped leaves a running
	// child; a few rounds reach the fixed point.
	for range 20 {
		t, err := Scan()
		if err != nil {
			return err
		}
		var running []Identity
		for _, id := range t.Members(leader, mark) {
			if !t.procs[id.PID].stopped() {
				running = append(running, id)
			}
		}
		if len(running) == 0 {
			return nil
		}
		if err := SignalAll(running, syscall.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// ResumeTree lets a paused unit go on.
func ResumeTree(leader Identity, mark string) error {
	t, err := Scan()
	if err != nil {
		return err
	}
	return SignalAll(t.Members(leader, mark), syscall.SIGCONT)
}

// BecomeSubreaper makes orphaned descendants children of the calling process
// instead of process 1, which in a container may not collect them.
func BecomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	return nil
}
