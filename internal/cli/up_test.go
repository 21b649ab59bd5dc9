package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/process"
	"fournines/internal/servertest"
	"fournines/local"
	"fournines/topology"
)

// testStackEnv makes the test binary the program fournines with the plan of
// testPlan. Its value chooses a variant of the plan.
const testStackEnv = "FOURNINES_TEST_STACK"

const testLimit = 60 * time.Second

func testStackMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, plan: testPlan}
	return a.run(ctx, os.Args[1:])
}

// testPlan is a stack of shells.
func testPlan(_ context.Context, cfg local.PlanConfig) (*local.Plan, error) {
	s, dir := cfg.Spec, cfg.Dir
	variant := os.Getenv(testStackEnv)
	sh := func(script string) *process.Spec {
		return &process.Spec{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
	}
	unit := func(name, zone string, p *process.Spec, after ...string) process.Unit {
		return process.Unit{Name: name, Kind: "shell", Zone: zone, Process: p, After: after}
	}
	p := &local.Plan{
		Name: s.Name, Zones: []string{"a", "b"},
		Endpoints: map[string]string{"gateway": "http://127.0.0.1:8480"}, CredentialsFile: filepath.Join(dir, "credentials"),
		Units: []process.Unit{
			unit("db-a", "a", sh("echo up; exec sleep 1000")),
			unit("db-b", "b", sh("exec sleep 1000")),
			{Name: "form", After: []string{"db-a", "db-b"}, Task: func(context.Context) error { return nil }},
			unit("api", "a", sh("exec sleep 1000"), "form"),
		},
	}
	switch variant {
	case "port":
		p.Ports = []local.Port{{Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Local.Ports.Gateway)), Field: "local.ports.gateway"}}
	case "broken":
		p.Units[3].Process = sh("for i in 1 2 3 4 5 6; do echo line $i; done; exit 9")
		p.Units[3].Ready = func(context.Context) error { return errors.New("does not listen") }
	case "stubborn":
		armed := filepath.Join(filepath.Dir(dir), "armed") // says that the trap is set
		p.Units[0].Process = sh("trap '' TERM; echo > " + armed + "; while :; do sleep 0.02; done")
		p.Units[0].Process.StopTimeout = time.Hour
		p.Units[0].Ready = func(context.Context) error { _, err := os.Stat(armed); return err }
	}
	return p, nil
}

type testStack struct {
	t            *testing.T
	dir, variant string
}

func newTestStack(t *testing.T, variant string) *testStack {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "fournines-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &testStack{t: t, dir: filepath.Join(base, "data"), variant: variant}
	t.Cleanup(func() {
		out, code := s.run("down", "--now")
		if code != 0 {
			t.Errorf("down: exit %d: %s", code, out)
		}
		_ = os.RemoveAll(base)
	})
	return s
}

func (s *testStack) command(verb string, args ...string) *exec.Cmd {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	all := append([]string{verb}, args...)
	if verb == "zone" {
		all = append([]string{verb, args[0]}, args[1:]...)
	}
	all = append(all, "--data-dir", s.dir)
	if verb == "up" {
		all = append(all, "--user", "root")
	}
	cmd := exec.Command(exe, all...)
	cmd.Dir = filepath.Dir(s.dir) // has no fournines.yaml
	// A race-enabled binary otherwise sleeps for a second at its end.
	cmd.Env = append(os.Environ(), testStackEnv+"="+s.variant, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func (s *testStack) run(verb string, args ...string) (out string, code int) {
	s.t.Helper()
	cmd := s.command(verb, args...)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// expect runs a command and checks its exit code and what it prints.
func (s *testStack) expect(code int, args []string, parts ...string) string {
	s.t.Helper()
	out, got := s.run(args[0], args[1:]...)
	if got != code {
		s.t.Fatalf("%v: exit %d, want %d: %s", args, got, code, out)
	}
	for _, p := range parts {
		if !strings.Contains(out, p) {
			s.t.Errorf("%v: no %q in:\n%s", args, p, out)
		}
	}
	return out
}

func words(s string) []string { return strings.Fields(s) }

func (s *testStack) status(code int) topology.Status {
	s.t.Helper()
	var st topology.Status
	if err := json.Unmarshal([]byte(s.expect(code, words("status -o json"))), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *testStack) component(st topology.Status, name string) topology.Component {
	s.t.Helper()
	for _, z := range st.Zones {
		for _, c := range z.Components {
			if c.Name == name {
				return c
			}
		}
	}
	s.t.Fatalf("no %s in %+v", name, st)
	return topology.Component{}
}

// killSupervisor does what `kill -9` does, and waits for the end.
func (s *testStack) killSupervisor() {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "lock"))
	if err != nil {
		s.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		s.t.Fatal(err)
	}
	id, err := process.Identify(pid)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	eventually.Nil(s.t, testLimit, func() error {
		if id.Alive() {
			return errors.New("alive")
		}
		return nil
	})
}

func TestStackLifecycle(t *testing.T) {
	s := newTestStack(t, "plain")
	s.expect(4, words("status"), "is stopped")
	s.expect(0, words("down"), "Nothing runs")
	s.expect(0, words("up --detach"), "Starting 4 components", "ZONE", "http://127.0.0.1:8480", "Credentials: "+s.dir+"/credentials", "Its last start took", "Memory in all")
	first := s.status(0)
	s.expect(0, words("up --detach"), "already runs", "ZONE")
	s.expect(0, words("status"), "The stack is ready")
	eventually.Nil(t, testLimit, func() error { // a shell is ready before it has said anything
		if out, code := s.run("logs", "-n", "1", "db-a"); code != 0 || !strings.Contains(out, "up\n") {
			return fmt.Errorf("logs: %d %s", code, out)
		}
		return nil
	})
	s.expect(0, words("logs -n 1 supervisor"), `"msg":"stack is up"`)
	s.expect(1, words("logs nobody"), `there is no log of "nobody"; there are api, db-a, db-b, supervisor`)

	other := filepath.Join(filepath.Dir(s.dir), "other.yaml")
	if err := os.WriteFile(other, []byte("local:\n  ports:\n    gateway: 8481\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.expect(1, []string{"up", "-d", "-f", other}, "runs with another specification", "in local;", "fournines down")
	s.expect(1, words("up -d -f missing.yaml"), "missing.yaml does not exist", "fournines init")

	s.expect(0, words("restart db-a"))
	if a, b := s.component(first, "db-a"), s.component(s.status(0), "db-a"); a.PID == b.PID || b.Restarts != 1 {
		t.Errorf("restart: %+v", b)
	}
	s.expect(0, words("stop db-b"))
	s.expect(3, words("status"), "db-b: stopped by hand; `fournines start db-b`")
	s.expect(0, words("start db-b"))
	s.status(0)
	s.expect(0, words("zone off b"))
	s.expect(3, words("status"), "b (no power)")
	s.expect(0, words("zone on b"))
	eventually.Nil(t, testLimit, func() error {
		if out, code := s.run("status"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	s.expect(2, words("restart"), "wants the name of one component")

	before := s.status(0)
	s.killSupervisor()
	s.expect(3, words("status"), "runs without a supervisor")
	s.expect(0, words("up -d"), "taking over what still runs")
	if a, b := s.component(before, "api"), s.component(s.status(0), "api"); a.PID != b.PID {
		t.Errorf("api was restarted: %d, %d", a.PID, b.PID)
	}

	s.killSupervisor()
	s.expect(0, words("down --delete-data"), "Stopped 3 processes that ran without a supervisor", "Deleted "+s.dir)
	if mustIdentity(t, before, "api").Alive() {
		t.Error("api still runs")
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("data directory: %v", err)
	}
}

func mustIdentity(t *testing.T, st topology.Status, name string) process.Identity {
	t.Helper()
	for _, z := range st.Zones {
		for _, c := range z.Components {
			if c.Name == name {
				id, err := process.Identify(c.PID)
				if err != nil {
					return process.Identity{PID: -1}
				}
				return id
			}
		}
	}
	return process.Identity{PID: -1}
}

func TestUpReportsWhatFails(t *testing.T) {
	s := newTestStack(t, "broken")
	out := s.expect(1, words("up --detach"), "api is failed: ended with exit status 9", "line 2\n  line 3\n  line 4\n  line 5\n  line 6\n", "fournines logs api", "fournines down")
	if strings.Contains(out, "line 1\n  line 2\n  line 3\n  line 4") {
		t.Errorf("more than five lines of the log:\n%s", out)
	}
}

func TestUpNamesThePortInUse(t *testing.T) {
	s := newTestStack(t, "port")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	file := filepath.Join(filepath.Dir(s.dir), "s.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "local:\n  ports:\n    gateway: %d\n", port), 0o600); err != nil {
		t.Fatal(err)
	}
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	s.expect(1, []string{"up", "-d", "-f", file}, fmt.Sprintf("port %d on 127.0.0.1 is in use by %s (pid %d); stop it or set local.ports.gateway in fournines.yaml", port, strings.TrimSpace(string(name)), os.Getpid()))
	_ = ln.Close()
	// What the failed attempt left behind is no obstacle.
	s.expect(0, []string{"up", "-d", "-f", file}, "The stack is ready")
}

// attached starts `up` without --detach and waits until it is attached.
func (s *testStack) attached() (*exec.Cmd, *servertest.Output) {
	s.t.Helper()
	cmd := s.command("up")
	out := &servertest.Output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill() })
	out.Await(s.t, testLimit, "Attached")
	return cmd, out
}

func TestAttachedUpShowsChangesAndStopsOnInterrupt(t *testing.T) {
	s := newTestStack(t, "plain")
	cmd, out := s.attached()
	s.expect(0, words("kill db-a"))
	out.Await(t, testLimit, "db-a  degraded: killed by SIGKILL")
	out.Await(t, testLimit, "db-a  ready")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("up: %v\n%s", err, out)
	}
	out.Await(t, testLimit, "Stopped in")
	s.status(4)
}

func TestSecondInterruptKills(t *testing.T) {
	s := newTestStack(t, "stubborn")
	cmd, out := s.attached()
	for _, want := range []string{"Stopping in order", "Killing what is left"} {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		out.Await(t, testLimit, want)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("up: %v\n%s", err, out)
	}
	s.status(4)
}

func TestChecklistFitsTheTerminal(t *testing.T) {
	var b bytes.Buffer
	l := newChecklist(&b)
	l.terminal, l.width, l.height = true, 60, 20
	for i := range 30 {
		c := topology.Component{Name: "unit-" + strconv.Itoa(i), State: topology.Ready}
		if i == 17 {
			c.State, c.Reason = topology.Starting, strings.Repeat("waits ", 30)
		}
		l.show(local.Event{Zone: string(rune('a' + i%3)), Component: &c})
	}
	l.show(local.Event{Synced: true})
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 4 || !strings.Contains(b.String(), "zone c  9 of 10 ready\n  starting unit-17") {
		t.Errorf("%d lines:\n%s", len(lines), b.String())
	}
	for _, line := range lines {
		if n := len([]rune(line)); n > 66 { // with the escape at the start
			t.Errorf("line of %d columns: %q", n, line)
		}
	}
	if c := l.firstUnready(); c == nil || c.Name != "unit-17" {
		t.Errorf("first unready: %+v", c)
	}
}

func TestHumanBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "", 2048: "2 KiB", 5 << 20: "5 MiB", 3 << 29: "1.50 GiB"} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
