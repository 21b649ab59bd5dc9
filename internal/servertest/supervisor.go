package servertest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// KillSupervisor ends the supervisor of the stack in dataDir, and nothing else,
// as a crash would, and waits until it is gone.
func KillSupervisor(tb testing.TB, dataDir string) {
	tb.Helper()
	all := supervisors(tb, dataDir)
	// A process that the supervisor is just starting looks like the supervisor
	// until it becomes another program: leave out the supervisor's children.
	found := slices.DeleteFunc(slices.Clone(all), func(pid int) bool { return slices.Contains(all, parentOf(pid)) })
	if len(found) != 1 {
		tb.Fatalf("%d supervisors of %s, want 1", len(found), dataDir)
	}
	if err := syscall.Kill(found[0], syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
	eventually.Nil(tb, time.Minute, func() error {
		if left := supervisors(tb, dataDir); len(left) > 0 {
			return fmt.Errorf("the supervisor still runs: %v", left)
		}
		return nil
	})
}

// supervisors are the processes that were started as `supervise ... dataDir`.
func supervisors(tb testing.TB, dataDir string) []int {
	tb.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		tb.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
		if len(args) < 2 || args[1] != "supervise" || !slices.Contains(args[2:], dataDir) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parentOf is the parent of a process, or 0 when it has ended. See proc(5): the
// parent is the second field after the name, which stands in parentheses.
func parentOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return parent
}
