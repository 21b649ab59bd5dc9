package process

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Identity names one process for as long as the machine is up. A process id
// alone is used again by later processes; together with the start time it is not.
type Identity struct {
	PID int `json:"pid"`
	// StartTicks is when the process started, in clock ticks since boot
	// (field 22 of /proc/PID/stat).
	StartTicks uint64 `json:"startTicks"`
}

// Identify returns the identity of the process that has the id now, or ErrGone.
func Identify(pid int) (Identity, error) {
	st, err := readStat(pid)
	if err != nil {
		return Identity{}, err
	}
	return st.identity(), nil
}

// Alive reports if exactly this process still runs. A zombie does not run.
func (id Identity) Alive() bool {
	st, err := readStat(id.PID)
	return err == nil && st.identity() == id && !st.dead()
}

// BootID identifies the current boot of the machine; process identities of
// another boot mean nothing.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// stat is what this package needs of /proc/PID/stat.
type stat struct {
	pid, ppid, group, session int
	state                     byte
	start                     uint64
}

func (s stat) identity() Identity { return Identity{PID: s.pid, StartTicks: s.start} }

func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' }

func (s stat) stopped() bool { return s.state == 'T' || s.state == 't' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		// ENOENT before the open, ESRCH when the process ends during the read.
		return stat{}, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	return parseStat(pid, b)
}

func parseStat(pid int, b []byte) (stat, error) {
	// The command name, field 2, is in parentheses and may hold anything.
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return stat{}, fmt.Errorf("process %d: cannot read its stat line", pid)
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return stat{}, fmt.Errorf("process %d: stat line has %d fields", pid, len(f)+2)
	}
	st := stat{pid: pid, state: f[0][0]}
	for _, n := range []struct {
		field int
		out   *int
	}{{1, &st.ppid}, {2, &st.group}, {3, &st.session}} {
		v, err := strconv.Atoi(f[n.field])
		if err != nil {
			return stat{}, fmt.Errorf("process %d: stat field %d: %w", pid, n.field+3, err)
		}
		*n.out = v
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	st.start = start
	return st, nil
}
