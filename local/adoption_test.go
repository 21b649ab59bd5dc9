package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"fournines/internal/eventually"
	"fournines/internal/process"
	"fournines/topology"
)

// adoptionPlan is what the re-executed test binary supervises. It needs no
// journal: the processes write their own.
func adoptionPlan(dir string) *Plan {
	unit := func(name string, after ...string) process.Unit {
		return process.Unit{
			Name: name, Kind: "k", Zone: "a", After: after,
			Process: shell(fmt.Sprintf(`trap 'echo %[2]s >>%[1]s/order; exit 0' TERM; echo $$ >>%[1]s/%[2]s.starts; while :; do sleep 0.02; done`, dir, name)),
			Ready: func(context.Context) error {
				_, err := os.Stat(filepath.Join(dir, name+".starts"))
				return err
			},
		}
	}
	return &Plan{Zones: []string{"a"}, Units: []process.Unit{
		unit("one"), unit("two", "form"),
		{Name: "form", After: []string{"one"}, Task: func(context.Context) error {
			f, err := os.OpenFile(filepath.Join(dir, "form"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			_, err = f.WriteString("x")
			return errors.Join(err, f.Close())
		}},
	}}
}

// supervise starts the test binary as supervisor of dir.
func supervise(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), superviseEnv+"="+dir)
	cmd.Stderr = os.Stderr
	ok(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// orphanStack is a stack whose supervisor was killed with SIGKILL when all was ready.
func orphanStack(t *testing.T) (dir string, before topology.Status) {
	t.Helper()
	dir = newDir(t)
	t.Cleanup(func() { // whatever the test did not stop
		for _, u := range adoptionPlan(dir).Units {
			_ = process.KillTree(process.Identity{}, dir+":"+u.Name, limit)
		}
	})
	cmd := supervise(t, dir)
	client := NewClient(dir)
	defer client.Close()
	eventually.Nil(t, limit, func() (err error) {
		if before, err = client.Status(t.Context()); err == nil && before.State != topology.Ready {
			err = fmt.Errorf("%+v", before)
		}
		return err
	})
	eventually.Nil(t, limit, func() error { // what is ready is also saved
		st, err := loadState(dir)
		if err == nil && (!st.Units["form"].Done || st.Units["two"].PID == 0) {
			err = errors.New("not saved")
		}
		return err
	})
	ok(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	return dir, before
}

func pid(t *testing.T, st topology.Status, name string) int {
	t.Helper()
	for _, z := range st.Zones {
		for _, c := range z.Components {
			if c.Name == name {
				return c.PID
			}
		}
	}
	t.Fatalf("no %s in %+v", name, st)
	return 0
}

func lineCount(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return strings.Count(string(b), "\n")
}

func TestAdoptionAfterSIGKILL(t *testing.T) {
	dir, before := orphanStack(t)
	left, err := LeftRunning(dir)
	ok(t, err)
	if left.State != topology.Degraded || pid(t, left, "one") != pid(t, before, "one") {
		t.Errorf("left running: %+v", left)
	}
	// One of them dies while nobody looks.
	ok(t, process.KillTree(process.Identity{}, dir+":two", limit))

	s := run(t, dir, adoptionPlan(dir))
	after := s.awaitStack(t, topology.Ready)
	if got, want := pid(t, after, "one"), pid(t, before, "one"); got != want {
		t.Errorf("one: pid %d, want %d: it was restarted", got, want)
	}
	if pid(t, after, "two") == pid(t, before, "two") {
		t.Error("two: the dead process counts as running")
	}
	if n := lineCount(t, filepath.Join(dir, "one.starts")); n != 1 {
		t.Errorf("one was started %d times", n)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "form")); string(b) != "x" {
		t.Errorf("the task ran %d times", len(b))
	}

	// An adopted process is watched like an own one.
	ok(t, s.client.Kill(t.Context(), "one"))
	eventually.Nil(t, limit, func() error {
		if c := s.component("one"); c.State != topology.Ready || c.PID == pid(t, before, "one") {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	ok(t, s.client.Down(t.Context(), false))
	if n := lineCount(t, filepath.Join(dir, "order")); n != 2 {
		t.Errorf("%d units stopped in order", n)
	}
}

// A supervisor that dies between starting a process and writing it down.
func TestAdoptionWithoutState(t *testing.T) {
	dir, before := orphanStack(t)
	ok(t, os.Remove(filepath.Join(dir, stateFile)))
	s := run(t, dir, adoptionPlan(dir))
	after := s.awaitStack(t, topology.Ready)
	if got, want := pid(t, after, "one"), pid(t, before, "one"); got != want {
		t.Errorf("pid %d, want %d", got, want)
	}
}

// state.json of before a reboot names pids that now belong to others.
func TestAdoptionIgnoresReusedPids(t *testing.T) {
	dir := newDir(t)
	innocent := exec.Command("sleep", "1000")
	ok(t, innocent.Start())
	t.Cleanup(func() {
		_ = innocent.Process.Kill()
		_ = innocent.Wait()
	})
	id, err := process.Identify(innocent.Process.Pid)
	ok(t, err)
	boot, err := process.BootID()
	ok(t, err)
	for _, tc := range []struct {
		name, boot string
		id         process.Identity
	}{
		{"another start time", boot, process.Identity{PID: id.PID, StartTicks: id.StartTicks - 1}},
		{"another boot", "00000000-0000-0000-0000-000000000000", id},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ok(t, saveState(dir, &savedState{Version: stateVersion, BootID: tc.boot, Units: map[string]unitRecord{"one": {Identity: tc.id}}}))
			s := run(t, dir, adoptionPlan(dir))
			st := s.awaitStack(t, topology.Ready)
			if pid(t, st, "one") == id.PID {
				t.Error("adopted another process")
			}
			ok(t, s.client.Down(t.Context(), false))
			if !id.Alive() {
				t.Fatal("stopped another process")
			}
		})
	}
}

// Leftovers of a unit whose leader died with the supervisor are cleaned away.
func TestStraysAreKilled(t *testing.T) {
	dir := newDir(t)
	mark := dir + ":one"
	p, err := process.Start(*shell("setsid sleep 1000 & setsid sleep 1000 & echo up; wait"), process.StartOptions{LogFile: LogPath(dir, "one"), Mark: mark})
	ok(t, err)
	t.Cleanup(func() { _ = p.KillTree(limit); <-p.Done() })
	var strays []process.Identity
	eventually.Nil(t, limit, func() error {
		table, err := process.Scan()
		if err == nil && len(p.Members(table)) != 3 {
			err = errors.New("not up")
		} else if err == nil {
			strays = p.Members(table)
		}
		return err
	})
	ok(t, process.SignalAll([]process.Identity{p.Identity()}, syscall.SIGKILL))
	<-p.Done()
	s := run(t, dir, adoptionPlan(dir))
	s.awaitStack(t, topology.Ready)
	for _, id := range strays {
		if id.Alive() {
			t.Errorf("process %d is left", id.PID)
		}
	}
}

func TestStopLeftovers(t *testing.T) {
	dir, _ := orphanStack(t)
	lock, err := Acquire(dir)
	ok(t, err)
	n, err := StopLeftovers(t.Context(), dir, lock, nil, Options{})
	ok(t, err)
	if n != 2 {
		t.Errorf("stopped %d", n)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "order")); string(b) != "two\none\n" {
		t.Errorf("order %q", b)
	}
	n, err = StopLeftovers(t.Context(), dir, lock, adoptionPlan(dir), Options{})
	ok(t, err)
	if n != 0 {
		t.Errorf("stopped %d when nothing ran", n)
	}
	lock.Release()
	ok(t, DeleteDir(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}
