package servertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/internal/process"
)

// unitReadyLimit is the least time a unit gets to become ready: test machines
// run many servers on few cores.
const unitReadyLimit = 90 * time.Second

// RequireServers is the environment variable that turns a missing server into
// a failure; without it the tests that need the server are skipped.
const RequireServers = "FOURNINES_REQUIRE_SERVERS"

// Need skips the test when one of the executables is missing, or fails it when
// FOURNINES_REQUIRE_SERVERS=1. Names without a slash are looked up in PATH.
func Need(tb testing.TB, executables ...string) {
	tb.Helper()
	for _, name := range executables {
		if _, err := exec.LookPath(name); err != nil {
			missing(tb, name, err)
		}
	}
}

// missing skips the test, or fails it where servers are required.
func missing(tb testing.TB, what string, err error) {
	tb.Helper()
	if os.Getenv(RequireServers) == "1" {
		tb.Fatalf("%s is missing (run `make setup`): %v", what, err)
	}
	tb.Skipf("%s is missing (run `make setup`): %v", what, err)
}

// Owner returns the account that servers run as in tests: the caller's own, or,
// for root, the unprivileged account made by `make setup`.
func Owner(tb testing.TB) process.Owner {
	tb.Helper()
	if os.Geteuid() != 0 {
		return process.Owner{}
	}
	var errs []error
	for _, name := range []string{"fournines", "postgres"} {
		owner, err := process.LookupOwner(name)
		if err == nil {
			return owner
		}
		errs = append(errs, err)
	}
	missing(tb, "the account fournines or postgres", errors.Join(errs...))
	return process.Owner{}
}

// Dir makes a directory that owner can reach, which t.TempDir is not when the
// caller is root, and removes it when the test ends.
func Dir(tb testing.TB, owner process.Owner) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/tmp", "fournines-test-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove the test's directory: %v", err)
		}
	})
	if err := process.MkdirAll(dir, 0o755, owner); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// Secret writes a secret to name in dir, mode 0600, and returns the file's path.
func Secret(tb testing.TB, owner process.Owner, dir, name, value string) string {
	tb.Helper()
	path := filepath.Join(dir, name)
	if err := process.WriteFile(path, []byte(value+"\n"), 0o600, owner); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Unit is a running unit of a test. Its methods belong to the test's goroutine.
type Unit struct {
	process.Unit
	tb    testing.TB
	owner process.Owner
	log   string
	mark  string
	proc  *process.Process
}

// Start prepares and starts the unit and waits until it is ready. When the test
// ends the unit is stopped, and its log is shown if the test failed. A unit
// that is a task runs to its end.
func Start(tb testing.TB, owner process.Owner, unit process.Unit) *Unit {
	tb.Helper()
	u := Launch(tb, owner, unit)
	u.WaitReady()
	return u
}

// Launch is Start without waiting for readiness, for servers that become ready
// only together.
func Launch(tb testing.TB, owner process.Owner, unit process.Unit) *Unit {
	tb.Helper()
	dir := Dir(tb, owner)
	u := &Unit{
		Unit: unit, tb: tb, owner: owner,
		log:  filepath.Join(dir, unit.Name+".log"),
		mark: filepath.Base(dir) + "/" + unit.Name,
	}
	tb.Cleanup(func() {
		u.Kill()
		if tb.Failed() && unit.Process != nil {
			tb.Logf("log of %s (end):\n%s", unit.Name, interesting(u.log, 40))
		}
	})
	u.Relaunch()
	return u
}

// Relaunch starts the unit again after Stop or Kill, without waiting.
func (u *Unit) Relaunch() {
	u.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if u.Prepare != nil {
		if err := u.Prepare(ctx); err != nil {
			u.tb.Fatalf("prepare %s: %v", u.Name, err)
		}
	}
	if u.Task != nil {
		if err := u.Task(ctx); err != nil {
			u.tb.Fatalf("task %s: %v", u.Name, err)
		}
		return
	}
	proc, err := process.Start(*u.Process, process.StartOptions{Owner: u.owner, LogFile: u.log, Mark: u.mark})
	if err != nil {
		u.tb.Fatalf("start %s: %v", u.Name, err)
	}
	u.proc = proc
}

// WaitReady waits until the unit is ready and fails the test when its process
// ends before.
func (u *Unit) WaitReady() {
	u.tb.Helper()
	if u.Ready == nil || u.proc == nil {
		return
	}
	limit := max(u.ReadyTimeout, unitReadyLimit)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := u.Ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-u.proc.Done():
			u.tb.Fatalf("%s %s before it was ready (%v)", u.Name, u.proc.Exit(), err)
		case <-ctx.Done():
			u.tb.Fatalf("%s is not ready after %v: %v", u.Name, limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Running reports if the unit's process runs.
func (u *Unit) Running() bool {
	if u.proc == nil {
		return false
	}
	select {
	case <-u.proc.Done():
		return false
	default:
		return true
	}
}

// Stop asks the process to end by itself and returns how long that took. It
// fails the test when the process needs more than its stop timeout.
func (u *Unit) Stop() time.Duration {
	u.tb.Helper()
	if !u.Running() {
		return 0
	}
	begin := time.Now()
	if err := u.proc.Terminate(u.Process); err != nil {
		u.tb.Fatalf("stop %s: %v", u.Name, err)
	}
	limit := u.Process.StopTimeout
	if limit == 0 {
		limit = process.DefaultStopTimeout
	}
	select {
	case <-u.proc.Done():
	case <-time.After(limit):
		u.tb.Fatalf("%s still runs %v after it was asked to stop", u.Name, limit)
	}
	return time.Since(begin)
}

// Kill kills the process and all that it started at once, as a power cut does.
func (u *Unit) Kill() {
	u.tb.Helper()
	if u.proc == nil {
		return
	}
	if err := u.proc.KillTree(30 * time.Second); err != nil {
		u.tb.Errorf("kill %s: %v", u.Name, err)
	}
	<-u.proc.Done()
}

// PID returns the process id of the unit's leader, or 0 for a task.
func (u *Unit) PID() int {
	if u.proc == nil {
		return 0
	}
	return u.proc.Identity().PID
}

// Log returns what the process has written so far.
func (u *Unit) Log() string {
	data, err := os.ReadFile(u.log)
	if err != nil {
		u.tb.Errorf("read the log of %s: %v", u.Name, err)
	}
	return string(data)
}

// ArgsOf returns the command lines of the process and all its descendants, to
// check that they carry no secret.
func (u *Unit) ArgsOf() string {
	u.tb.Helper()
	table, err := process.Scan()
	if err != nil {
		u.tb.Fatal(err)
	}
	var b strings.Builder
	for _, id := range u.proc.Members(table) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id.PID))
		if err != nil {
			continue // ended meanwhile
		}
		b.Write(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		b.WriteByte('\n')
	}
	return b.String()
}

// interesting returns the parts of a log that explain a failure: every line
// that speaks of a crash, with what follows it, and the end.
func interesting(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	end := max(0, len(all)-lines)
	var picked []string
	for i, line := range all[:end] {
		for _, word := range []string{"panic:", "fatal error:", "SIGABRT", "terminate called", "what():", "FATAL", "PANIC", "Traceback"} {
			if strings.Contains(line, word) && len(picked) < 40 {
				picked = append(picked, all[i:min(i+4, end)]...)
				break
			}
		}
	}
	if len(picked) > 0 {
		picked = append(picked, "...")
	}
	return strings.Join(append(picked, all[end:]...), "\n")
}
