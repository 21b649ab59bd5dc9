package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/local"
	"fournines/topology"
)

// TestOneStack lets one stack live through everything that can happen to it.
// The parts build on one another, because each start takes its time.
func TestOneStack(t *testing.T) {
	s := newStack(t, "")
	part := func(name string, f func(t *testing.T)) {
		if !t.Run(name, f) {
			t.FailNow()
		}
	}
	part("interrupted first start", s.interruptedFirstStart)
	part("supervisor killed during the start", s.supervisorKilledDuringStart)
	var k kept
	part("data is written", func(t *testing.T) {
		t.Helper()
		k = leave(t, s)
	})
	part("up of what runs", s.upTwice)
	part("down without a supervisor", s.downWithoutSupervisor)
	part("two ups at once", s.twoUpsAtOnce)
	part("data is still there", func(t *testing.T) {
		t.Helper()
		k.found(t, s)
	})
	part("down", s.orderlyDown)
	part("down during the start", s.downDuringStart)
	part("external Dify", s.externalDify)
	part("delete everything", func(t *testing.T) {
		t.Helper()
		// Backups go only when that is said.
		out := s.must(t, "down", "--delete-data")
		entries, err := os.ReadDir(s.data)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if !slices.Contains(names, local.BackupFolder) || slices.Contains(names, "postgres-a") || !strings.Contains(out, "except the backups of PostgreSQL in "+filepath.Join(s.data, local.BackupFolder)) {
			t.Errorf("left is %v, and it says:\n%s", names, out)
		}
		s.must(t, "down", "--delete-data", "--delete-backups")
		s.nothingLeft(t)
		if out, err := s.run("down", "--delete-data"); err != nil {
			t.Errorf("a second time: %v\n%s", err, out)
		}
	})
}

// awaitProcess returns when the stack has a process that match accepts.
func (s *stack) awaitProcess(t *testing.T, c *call, match func(proc) bool) {
	t.Helper()
	eventually.Nil(t, limit, func() error {
		if slices.ContainsFunc(s.processes(t), match) {
			return nil
		}
		select {
		case <-c.done:
			t.Fatalf("up ended first: %v\n%s", c.err, c.out.String())
		default:
		}
		return errors.New("not yet")
	})
}

// interruptedFirstStart kills everything in the middle of the first start,
// each time a little later, so that servers are left with half of their data.
func (s *stack) interruptedFirstStart(t *testing.T) {
	t.Helper()
	program := func(name string) func(proc) bool {
		return func(p proc) bool { return filepath.Base(p.args[0]) == name }
	}
	var network string
	for _, stage := range []struct {
		name  string
		match func(proc) bool
	}{
		{"first Patroni", func(p proc) bool { return p.unit == "postgres-a" }},
		{"initdb", program("initdb")},
		{"base backup", func(p proc) bool {
			return filepath.Base(p.args[0]) == "pg_basebackup" || strings.Contains(strings.Join(p.args, " "), "pg_basebackup")
		}},
	} {
		c := s.begin(t, "up", "--detach")
		// A stage may pass unseen on a busy machine; the proxies come after all
		// of them, and well before the end.
		s.awaitProcess(t, c, func(p proc) bool { return stage.match(p) || p.unit == "pgproxy-a" })
		s.killAll(t)
		out, err := c.wait()
		if exitCode(err) <= 0 {
			t.Errorf("%s: up: %v, want an exit status above 0\n%s", stage.name, err, out)
		}
		text, err := os.ReadFile(filepath.Join(s.data, "network.json"))
		if err != nil {
			t.Fatal(err)
		}
		if network == "" {
			network = string(text)
		}
		if network != string(text) {
			t.Errorf("%s: the stack has the network %s, it had %s before", stage.name, text, network)
		}
	}
}

// supervisorKilledDuringStart goes on from there: the supervisor alone dies
// when half of the stack runs.
func (s *stack) supervisorKilledDuringStart(t *testing.T) {
	t.Helper()
	c := s.begin(t, "up", "--detach")
	eventually.Nil(t, limit, func() error {
		st, err := s.status()
		if err != nil {
			return err
		}
		started := 0
		for _, z := range st.Zones {
			for _, c := range z.Components {
				if c.PID > 0 {
					started++
				}
			}
		}
		if started < 10 {
			return fmt.Errorf("only %d have started", started)
		}
		return nil
	})
	servertest.KillSupervisor(t, s.data)
	before := s.processes(t)
	if out, err := c.wait(); exitCode(err) <= 0 {
		t.Errorf("up whose supervisor was killed: %v\n%s", err, out)
	}
	if len(before) == 0 {
		t.Fatal("nothing runs")
	}
	out := s.must(t, "up", "--detach")
	if !strings.Contains(out, "taking over what still runs") {
		t.Errorf("up does not say that it takes over:\n%s", out)
	}
	s.sameLeaders(t, before, s.ready(t))
}

// sameLeaders fails the test when a unit that had processes before has another
// one now.
func (s *stack) sameLeaders(t *testing.T, before []proc, now topology.Status) {
	t.Helper()
	kept := 0
	for _, z := range now.Zones {
		for _, c := range z.Components {
			was := of(before, c.Name)
			if c.PID == 0 || len(was) == 0 {
				continue
			}
			if !slices.ContainsFunc(was, func(p proc) bool { return p.pid == c.PID }) {
				t.Errorf("%s was restarted: %v before, pid %d now", c.Name, was, c.PID)
			}
			kept++
		}
	}
	t.Logf("%d components were taken over", kept)
	if kept == 0 {
		t.Error("nothing was taken over")
	}
}

func (s *stack) upTwice(t *testing.T) {
	t.Helper()
	before := s.processes(t)
	out := s.must(t, "up", "--detach")
	if !strings.Contains(out, "already runs") {
		t.Errorf("a second up does not say that the stack runs:\n%s", out)
	}
	s.sameLeaders(t, before, s.ready(t))
	// Another specification is not taken over silently.
	s.write(t, "  crossZoneDelay: 1ms\n")
	out, err := s.run("up", "--detach")
	if exitCode(err) <= 0 || !strings.Contains(out, "in local; to change it") {
		t.Errorf("up with another specification: %v\n%s", err, out)
	}
	s.write(t, "")
}

func (s *stack) downWithoutSupervisor(t *testing.T) {
	t.Helper()
	servertest.KillSupervisor(t, s.data)
	if len(s.processes(t)) == 0 {
		t.Error("the components died with their supervisor")
	}
	out := s.must(t, "down")
	if !strings.Contains(out, "without a supervisor") {
		t.Errorf("down says\n%s", out)
	}
	t.Log(strings.TrimSpace(out))
	if left := s.outside(t); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func (s *stack) twoUpsAtOnce(t *testing.T) {
	t.Helper()
	calls := []*call{s.begin(t, "up", "--detach"), s.begin(t, "up", "--detach"), s.begin(t, "up", "--detach")}
	launched := 0
	for i, c := range calls {
		out, err := c.wait()
		if err != nil {
			t.Errorf("up %d: %v\n%s", i+1, err, out)
		}
		if !strings.Contains(out, "already runs") {
			launched++
		}
	}
	if launched != 1 {
		t.Errorf("%d of them started the stack, want 1", launched)
	}
	if n := len(of(s.processes(t), "supervisor")); n != 1 {
		t.Errorf("%d supervisors", n)
	}
	for _, z := range s.ready(t).Zones {
		for _, c := range z.Components {
			if c.Restarts > 0 {
				t.Errorf("%s was restarted %d times", c.Name, c.Restarts)
			}
		}
	}
}

func (s *stack) orderlyDown(t *testing.T) {
	t.Helper()
	began := time.Now()
	out := s.must(t, "down")
	t.Logf("%s (%v)", strings.TrimSpace(out), time.Since(began).Round(100*time.Millisecond))
	if left := s.outside(t); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	log, err := os.ReadFile(filepath.Join(s.data, "logs", "supervisor.log"))
	if err != nil {
		t.Fatal(err)
	}
	// Milvus never ends by itself, and an etcd without peers takes long to.
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "stop timeout, killing") && !strings.Contains(line, `"milvus-`) && !strings.Contains(line, `"etcd-`) {
			t.Errorf("killed instead of stopped: %s", line)
		}
	}
}

func (s *stack) downDuringStart(t *testing.T) {
	t.Helper()
	for _, stage := range []string{"supervisor", "postgres-a"} {
		c := s.begin(t, "up", "--detach")
		s.awaitProcess(t, c, func(p proc) bool { return p.unit == stage })
		s.must(t, "down")
		out, err := c.wait()
		if exitCode(err) <= 0 || !strings.Contains(out, "stopped while it started") {
			t.Errorf("%s: up of a stack that was stopped meanwhile: %v\n%s", stage, err, out)
		}
		if left := s.outside(t); len(left) > 0 {
			t.Errorf("%s: left behind:\n%s", stage, strings.Join(left, "\n"))
		}
	}
}
