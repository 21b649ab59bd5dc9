package process

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Reaper collects the zombies that a subreaper inherits. A zombie that nobody
// collects is more than untidy: who waits for a process that is not its child,
// as Patroni does for PostgreSQL, takes it for alive as long as it is one.
type Reaper struct {
	// suspects lead their own session, as a child of Start does, for which
	// somebody in this process waits. That collects it at once, so only an
	// orphan is still there at the next look.
	suspects map[Identity]bool
}

// Look collects the zombies that nobody waits for. It reports if there may be
// more: call it again after a moment that is long for a waiter that only has
// to wake up. Processes that os/exec started stay in our session and are left
// alone.
func (r *Reaper) Look() (again bool, err error) {
	children, err := zombies()
	if err != nil {
		return false, err
	}
	session, err := unix.Getsid(0)
	if err != nil {
		return false, fmt.Errorf("own session: %w", err)
	}
	suspects := map[Identity]bool{}
	for _, st := range children {
		if st.session == session {
			continue
		}
		if id := st.identity(); st.session == st.pid && !r.suspects[id] {
			suspects[id] = true
			continue
		}
		var ws unix.WaitStatus
		_, _ = unix.Wait4(st.pid, &ws, unix.WNOHANG, nil)
	}
	r.suspects = suspects
	return len(suspects) > 0, nil
}

// zombies returns our children that have ended.
func zombies() ([]stat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	self := os.Getpid()
	var out []stat
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if st, err := readStat(pid); err == nil && st.ppid == self && st.dead() {
			out = append(out, st)
		}
	}
	return out, nil
}
