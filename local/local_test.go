package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/process"
	"fournines/internal/servertest"
	"fournines/topology"
)

const limit = 60 * time.Second

// superviseEnv makes the test binary a supervisor of the directory it names.
const superviseEnv = "FOURNINES_TEST_SUPERVISE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(superviseEnv); dir != "" {
		os.Exit(superviseMain(dir))
	}
	if path := os.Getenv(heirEnv); path != "" {
		os.Exit(heirMain(path))
	}
	goleak.VerifyTestMain(m)
}

// superviseMain runs the plan of adoptionPlan until it is killed or told to stop.
func superviseMain(dir string) int {
	err := func() error {
		lock, err := Acquire(dir)
		if err != nil {
			return err
		}
		defer lock.Release()
		plan := adoptionPlan(dir)
		if address := os.Getenv(heirAddressEnv); address != "" {
			plan = heirPlan(dir, address)
		}
		s, err := New(Options{Plan: plan, Dir: dir, MinBackoff: 20 * time.Millisecond})
		if err != nil {
			return err
		}
		ln, err := ListenControl(lock, dir)
		if err != nil {
			return err
		}
		return s.Run(context.Background(), lock, ln)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func newDir(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "fournines-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(base, "data", logDir, "*"))
			for _, path := range logs {
				text, _ := os.ReadFile(path)
				t.Logf("%s (end):\n%s", filepath.Base(path), lastLines(text, 20))
			}
		}
		_ = os.RemoveAll(base)
	})
	if err := os.Chmod(base, 0o755); err != nil { // other accounts pass through
		t.Fatal(err)
	}
	dir := filepath.Join(base, "data")
	if err := PrepareDir(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func shell(script string) *process.Spec {
	return &process.Spec{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

// journal collects what happened, in order.
type journal struct {
	mu   sync.Mutex
	list []string
}

func (j *journal) add(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.list = append(j.list, s)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.list)
}

func (j *journal) index(t *testing.T, s string) int {
	t.Helper()
	i := slices.Index(j.all(), s)
	if i < 0 {
		t.Fatalf("%q did not happen: %v", s, j.all())
	}
	return i
}

// stack is a supervisor that runs inside the test.
type stack struct {
	*Supervisor
	dir    string
	client *Client
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func run(t *testing.T, dir string, p *Plan, change ...func(*Options)) *stack {
	t.Helper()
	log := &servertest.Output{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("supervisor:\n%s", log)
		}
	})
	o := Options{Plan: p, Dir: dir, Logger: slog.New(slog.NewTextHandler(log, nil)), MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond, FirstPoll: 5 * time.Millisecond, MaxPoll: 50 * time.Millisecond, Recheck: 20 * time.Millisecond}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ListenControl(lock, dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	st := &stack{Supervisor: s, dir: dir, client: NewClient(dir), cancel: cancel, done: make(chan struct{})}
	serving := make(chan struct{})
	s.opts.Serving = func() { close(serving) }
	go func() {
		defer close(st.done)
		st.err = s.Run(ctx, lock, ln)
		lock.Release()
	}()
	t.Cleanup(func() {
		s.Hurry()
		cancel()
		st.wait(t)
		st.client.Close()
	})
	select {
	case <-serving:
	case <-st.done:
	}
	return st
}

func (s *stack) wait(t *testing.T) {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(limit):
		t.Fatal("the supervisor did not end")
	}
}

func (s *stack) component(name string) topology.Component {
	return *s.byName[name].view.Load()
}

func (s *stack) await(t *testing.T, name string, want topology.State) topology.Component {
	t.Helper()
	var c topology.Component
	eventually.Nil(t, limit, func() error {
		if c = s.component(name); c.State != want {
			return fmt.Errorf("%s is %s (%s), want %s", name, c.State, c.Reason, want)
		}
		return nil
	})
	return c
}

func (s *stack) awaitStack(t *testing.T, want topology.State) topology.Status {
	t.Helper()
	var st topology.Status
	eventually.Nil(t, limit, func() (err error) {
		if st, err = s.client.Status(t.Context()); err == nil && st.State != want {
			err = fmt.Errorf("stack is %s, want %s: %+v", st.State, want, st.Zones)
		}
		return err
	})
	return st
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not contain %q", err, p)
		}
	}
}

func TestPlanValidate(t *testing.T) {
	task := func(context.Context) error { return nil }
	for _, tc := range []struct {
		name  string
		units []process.Unit
		want  string
	}{
		{"good", []process.Unit{{Name: "a", Process: shell("")}, {Name: "b", Task: task, After: []string{"a"}}}, ""},
		{"duplicate", []process.Unit{{Name: "a", Process: shell("")}, {Name: "a", Task: task}}, `two units are called "a"`},
		{"unknown", []process.Unit{{Name: "a", Process: shell(""), After: []string{"z"}}}, `"a" comes after "z", which does not exist`},
		{"neither", []process.Unit{{Name: "a"}}, `unit "a" must be either a process or a task`},
		{"both", []process.Unit{{Name: "a", Process: shell(""), Task: task}}, "either a process or a task"},
		{"zone", []process.Unit{{Name: "a", Task: task, Zone: "q"}}, `zone "q", which does not exist`},
		{"log name", []process.Unit{{Name: "../a", Task: task}}, "cannot name a log file"},
		{"cycle", []process.Unit{{Name: "a", Task: task, After: []string{"b"}}, {Name: "b", Task: task, After: []string{"c"}}, {Name: "c", Task: task, After: []string{"b"}}}, "wait for each other: b after c after b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := (&Plan{Units: tc.units, Zones: []string{"a"}}).Validate()
			if tc.want == "" {
				ok(t, err)
				return
			}
			wantError(t, err, tc.want)
		})
	}
}

// A unit starts only when what it needs is ready, and stops before that does.
func TestOrder(t *testing.T) {
	dir := newDir(t)
	var j journal
	release := make(chan struct{})
	trap := func(name string) *process.Spec {
		return shell(fmt.Sprintf(`trap 'echo stop %[1]s >>%[2]s/order; exit 0' TERM; echo >%[2]s/%[1]s.up; while :; do sleep 0.02; done`, name, dir))
	}
	unit := func(name string, after ...string) process.Unit {
		return process.Unit{
			Name: name, Kind: "k", Process: trap(name), After: after,
			Prepare: func(context.Context) error { j.add("prepare " + name); return nil },
			Ready: func(context.Context) error {
				if name == "base" {
					select {
					case <-release:
					default:
						return errors.New("held back")
					}
				}
				if _, err := os.Stat(filepath.Join(dir, name+".up")); err != nil {
					return err // until then a signal would just end it
				}
				j.add("ready " + name)
				return nil
			},
		}
	}
	s := run(t, dir, &Plan{Units: []process.Unit{
		unit("top", "left", "right"), unit("left", "task"), unit("right", "base"), unit("base"),
		{Name: "task", After: []string{"base"}, Task: func(context.Context) error { j.add("task"); return nil }},
	}})
	eventually.Nil(t, limit, func() error {
		if c := s.component("base"); c.Reason != "held back" {
			return fmt.Errorf("reason %q", c.Reason)
		}
		return nil
	})
	if c := s.component("right"); c.State != topology.Starting || c.Reason != "waits for base" {
		t.Errorf("right: %+v", c)
	}
	if got := j.all(); len(got) != 1 {
		t.Errorf("started too early: %v", got)
	}
	close(release)
	st := s.awaitStack(t, topology.Ready)
	if st.StartSeconds <= 0 {
		t.Error("no start time")
	}
	for _, p := range [][2]string{
		{"ready base", "task"}, {"task", "prepare left"}, {"ready base", "prepare right"},
		{"ready left", "prepare top"}, {"ready right", "prepare top"},
	} {
		if j.index(t, p[0]) > j.index(t, p[1]) {
			t.Errorf("%q came after %q: %v", p[0], p[1], j.all())
		}
	}

	ok(t, s.client.Down(t.Context(), false))
	s.wait(t)
	ok(t, s.err)
	b, err := os.ReadFile(filepath.Join(dir, "order"))
	ok(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 4 || lines[0] != "stop top" || lines[3] != "stop base" {
		t.Errorf("stop order: %v", lines)
	}
	if _, err := s.client.Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("status after down: %v", err)
	}
}

func TestRestartWithBackoffAndTheReason(t *testing.T) {
	dir := newDir(t)
	s := run(t, dir, &Plan{Units: []process.Unit{{Name: "crash", Process: shell("echo oops; exit 7")}, {Name: "fine", Process: shell("exec sleep 1000")}}})
	c := s.await(t, "crash", topology.Failed)
	if c.Restarts < failedAfter-1 || !strings.Contains(c.Reason, "ended with exit status 7; next try in 100ms") {
		t.Errorf("%+v", c)
	}
	first := s.await(t, "fine", topology.Ready)
	ok(t, s.client.Kill(t.Context(), "fine"))
	eventually.Nil(t, limit, func() error {
		if c := s.component("fine"); c.Restarts != 1 || c.State != topology.Ready || c.PID == first.PID {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if b, err := TailLog(dir, "crash", 2); err != nil || string(b) != "oops\noops\n" {
		t.Errorf("log %q, %v", b, err)
	}
}

// A task is tried until it succeeds, and runs only once in a start.
func TestTaskRetriesAndRunsOnce(t *testing.T) {
	dir := newDir(t)
	tries := 0 // the supervisor runs one try at a time
	var done journal
	task := func(context.Context) error {
		if tries++; tries < 3 {
			return fmt.Errorf("try %d", tries)
		}
		done.add("done")
		return nil
	}
	s := run(t, dir, &Plan{Units: []process.Unit{{Name: "form", Task: task}, {Name: "after", After: []string{"form"}, Process: shell("exec sleep 1000")}}})
	s.awaitStack(t, topology.Ready)
	ok(t, s.client.Kill(t.Context(), "after"))
	eventually.Nil(t, limit, func() error {
		if c := s.component("after"); c.Restarts != 1 || c.State != topology.Ready {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if got := done.all(); len(got) != 1 {
		t.Errorf("the task was done %d times", len(got))
	}
	wantError(t, s.client.Stop(t.Context(), "form"), "form is a task")
}

// saidUp is a unit's readiness: it has written something to its log. A shell
// that sets a trap says so then, since before it a signal would just end it.
func saidUp(dir, name string) func(context.Context) error {
	return func(context.Context) error {
		b, err := TailLog(dir, name, 1)
		if err == nil && len(b) == 0 {
			err = errors.New("not up")
		}
		return err
	}
}

func TestStopTimeoutKills(t *testing.T) {
	dir := newDir(t)
	stubborn := shell(`trap '' TERM; sleep 1000 & echo up; while :; do sleep 0.02; done`)
	stubborn.StopTimeout = 100 * time.Millisecond
	s := run(t, dir, &Plan{Units: []process.Unit{{Name: "stubborn", Process: stubborn, Ready: saidUp(dir, "stubborn")}}})
	s.await(t, "stubborn", topology.Ready)
	mark := s.byName["stubborn"].mark
	ok(t, s.client.Down(t.Context(), false))
	s.wait(t)
	ok(t, s.err)
	noneLeft(t, mark)
}

func noneLeft(t *testing.T, mark string) {
	t.Helper()
	table, err := process.Scan()
	ok(t, err)
	if left := table.Members(process.Identity{}, mark); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
}

// Down cancels what is under way: a start that waits, a task, a Ready that hangs.
func TestDownWhileStarting(t *testing.T) {
	dir := newDir(t)
	inTask := make(chan struct{})
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	s := run(t, dir, &Plan{Units: []process.Unit{
		{Name: "never", Process: shell("exec sleep 1000"), Ready: hang},
		{Name: "waits", Process: shell("exec sleep 1000"), After: []string{"never"}},
		{Name: "task", Task: func(ctx context.Context) error {
			close(inTask)
			return hang(ctx)
		}},
	}})
	<-inTask
	eventually.Nil(t, limit, func() error {
		if s.component("never").PID == 0 {
			return errors.New("not started")
		}
		return nil
	})
	mark := s.byName["never"].mark
	ok(t, s.client.Down(t.Context(), false))
	s.wait(t)
	ok(t, s.err)
	noneLeft(t, mark)
	if c := s.component("waits"); c.State != topology.Stopped {
		t.Errorf("%+v", c)
	}
}

// Readiness is asked again and again; a unit that stops serving is shown as
// degraded and left running.
func TestStatusStaysTrue(t *testing.T) {
	dir := newDir(t)
	sick := filepath.Join(dir, "sick")
	s := run(t, dir, &Plan{Zones: []string{"a"}, Units: []process.Unit{{
		Name: "db", Kind: "postgres", Zone: "a", Process: shell("exec sleep 1000"),
		Ready: func(context.Context) error {
			if _, err := os.Stat(sick); err == nil {
				return errors.New("too sick")
			}
			return nil
		},
		Role: func(context.Context) (string, error) { return "primary", nil },
	}}})
	before := s.await(t, "db", topology.Ready)
	if before.Role != "primary" {
		t.Errorf("role %q", before.Role)
	}
	ok(t, os.WriteFile(sick, nil, 0o600))
	after := s.await(t, "db", topology.Degraded)
	if after.Reason != "too sick" || after.PID != before.PID || after.Role != "" {
		t.Errorf("%+v", after)
	}
	if st := s.awaitStack(t, topology.Degraded); st.Zones[0].Components[0].MemoryBytes == 0 {
		t.Error("no memory")
	}
	ok(t, os.Remove(sick))
	s.await(t, "db", topology.Ready)
}

func TestReadyTimeoutNamesTheReason(t *testing.T) {
	s := run(t, newDir(t), &Plan{Units: []process.Unit{{
		Name: "slow", Process: shell("exec sleep 1000"), ReadyTimeout: 500 * time.Millisecond, // long enough to be asked once
		Ready: func(context.Context) error { return errors.New("port 1 is closed") },
	}}})
	if c := s.await(t, "slow", topology.Failed); c.Reason != "not ready after 500ms: port 1 is closed" {
		t.Errorf("reason %q", c.Reason)
	}
	if st := s.awaitStack(t, topology.Degraded); st.StartSeconds != 0 {
		t.Error("start time of a stack that never was ready")
	}
}

func TestMissingExecutableFailsAtOnce(t *testing.T) {
	s := run(t, newDir(t), &Plan{Units: []process.Unit{{Name: "gone", Process: &process.Spec{Path: "/no/such/etcd"}}}})
	if c := s.await(t, "gone", topology.Failed); !strings.Contains(c.Reason, "executable /no/such/etcd is missing; run `make setup`") {
		t.Errorf("reason %q", c.Reason)
	}
}

func TestEvents(t *testing.T) {
	s := run(t, newDir(t), &Plan{Zones: []string{"a"}, Units: []process.Unit{{Name: "u", Zone: "a", Process: shell("exec sleep 1000")}}})
	s.await(t, "u", topology.Ready)
	synced := make(chan struct{})
	var states []topology.State
	stopped := make(chan error, 1)
	go func() {
		stopped <- s.client.Events(t.Context(), func(e Event) error {
			if e.Synced {
				close(synced)
			}
			if c := e.Component; c != nil && (len(states) == 0 || states[len(states)-1] != c.State) {
				states = append(states, c.State)
			}
			return nil
		})
	}()
	<-synced
	ok(t, s.client.Stop(t.Context(), "u"))
	ok(t, s.client.Start(t.Context(), "u"))
	s.await(t, "u", topology.Ready)
	ok(t, s.client.Down(t.Context(), false))
	ok(t, <-stopped) // the stream ends with the stack
	if states[0] != topology.Ready || states[len(states)-1] != topology.Stopped {
		t.Errorf("states: %v", states)
	}
}

func TestSecondSupervisorIsRefused(t *testing.T) {
	dir := newDir(t)
	run(t, dir, &Plan{Units: []process.Unit{{Name: "u", Process: shell("exec sleep 1000")}}})
	_, err := Acquire(dir)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Fatalf("got %v", err)
	}
	wantError(t, err, fmt.Sprintf("a supervisor (pid %d) already runs the stack in %s", os.Getpid(), dir), "fournines status")
	wantError(t, DeleteDir(dir), "already runs")
}

// An `up` that was interrupted leaves directories and half-written files; the
// next one goes on.
func TestHalfInitialisedDirectory(t *testing.T) {
	dir := newDir(t)
	ok(t, os.Remove(filepath.Join(dir, logDir)))
	ok(t, os.WriteFile(filepath.Join(dir, ".state.json.123"), []byte("{half"), 0o600))
	ln, err := net.Listen("unix", filepath.Join(dir, socketFile))
	ok(t, err)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ok(t, ln.Close()) // a stale socket
	ok(t, os.WriteFile(filepath.Join(dir, lockFile), []byte("1\n"), 0o600))
	ok(t, PrepareDir(dir))
	s := run(t, dir, adoptionPlan(dir))
	s.awaitStack(t, topology.Ready)
	st, err := os.Stat(filepath.Join(dir, socketFile))
	ok(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v", st.Mode())
	}
}

func TestDamagedState(t *testing.T) {
	dir := newDir(t)
	ok(t, os.WriteFile(filepath.Join(dir, stateFile), []byte("{half"), 0o600))
	s := run(t, dir, adoptionPlan(dir))
	s.wait(t)
	wantError(t, s.err, stateFile, "is damaged", "delete the file")
}

func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600))
	wantError(t, PrepareDir(dir), "is not empty and was not made by fournines")
	wantError(t, DeleteDir(dir), "was not made by fournines")
	if _, err := os.Stat(filepath.Join(dir, "thesis.txt")); err != nil {
		t.Error(err)
	}
}

// Socket paths have at most 107 bytes; directories may have more.
func TestDeleteDirKeepsBackups(t *testing.T) {
	dir := newDir(t)
	if HasBackups(dir) {
		t.Error("an empty directory has backups")
	}
	info := filepath.Join(dir, BackupFolder, "backup", "main", "backup.info")
	ok(t, os.MkdirAll(filepath.Dir(info), 0o700))
	ok(t, os.WriteFile(info, []byte("x"), 0o600))
	ok(t, os.WriteFile(filepath.Join(dir, "other"), []byte("x"), 0o600))
	if !HasBackups(dir) {
		t.Error("the backups are not found")
	}
	ok(t, DeleteDir(dir, BackupFolder))
	if _, err := os.Stat(filepath.Join(dir, "other")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the rest is still there: %v", err)
	}
	if !HasBackups(dir) || !IsDataDir(dir) {
		t.Error("the backups are gone, or the directory is not ours any more")
	}
	ok(t, DeleteDir(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestLongDataDir(t *testing.T) {
	dir := filepath.Join(newDir(t), strings.Repeat("long", 25), "data")
	ok(t, PrepareDir(dir))
	s := run(t, dir, &Plan{Units: []process.Unit{{Name: "u", Process: shell("exec sleep 1000")}}})
	s.awaitStack(t, topology.Ready)
	ok(t, s.client.Down(t.Context(), false))
}

func TestSetupAndTeardown(t *testing.T) {
	var j journal
	p := &Plan{
		Units:    []process.Unit{{Name: "u", Process: shell("exec sleep 1000"), Prepare: func(context.Context) error { j.add("unit"); return nil }}},
		Setup:    func(context.Context) error { j.add("setup"); return nil },
		Teardown: func(context.Context) error { j.add("teardown"); return nil },
	}
	s := run(t, newDir(t), p)
	s.awaitStack(t, topology.Ready)
	ok(t, s.client.Down(t.Context(), false))
	s.wait(t)
	if got, want := j.all(), []string{"setup", "unit", "teardown"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	p.Setup = func(context.Context) error { return errors.New("no bridges here") }
	s = run(t, newDir(t), p)
	s.wait(t)
	wantError(t, s.err, "set up the network", "no bridges here")
}

func TestHurryCutsTheStopShort(t *testing.T) {
	dir := newDir(t)
	slow := func() *process.Spec {
		p := shell(`trap '' TERM; echo up; while :; do sleep 0.02; done`)
		p.StopTimeout = time.Hour
		return p
	}
	s := run(t, dir, &Plan{Units: []process.Unit{
		{Name: "one", Process: slow(), Ready: saidUp(dir, "one")},
		{Name: "two", Process: slow(), Ready: saidUp(dir, "two"), After: []string{"one"}},
	}})
	s.awaitStack(t, topology.Ready)
	down := make(chan error, 1)
	go func() { down <- s.client.Down(t.Context(), false) }()
	eventually.Nil(t, limit, func() error {
		if c := s.component("two"); c.Reason != "stopping" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	s.awaitStack(t, topology.Degraded)
	ok(t, s.client.Down(t.Context(), true))
	ok(t, <-down)
}

func TestStatusJSON(t *testing.T) {
	s := run(t, newDir(t), &Plan{
		Name: "test", Zones: []string{"a"}, Endpoints: map[string]string{"gateway": "http://x"}, CredentialsFile: "/c",
		Units: []process.Unit{{Name: "u", Kind: "k", Address: "1.2.3.4:5", Process: shell("exec sleep 1000")}},
	})
	st := s.awaitStack(t, topology.Ready)
	b, err := json.Marshal(st)
	ok(t, err)
	for _, want := range []string{`"state":"ready"`, `"name":"test"`, `"gateway":"http://x"`, `"credentialsFile":"/c"`, `"address":"1.2.3.4:5"`, `{"name":"a","power":"on","components":[]}`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s has no %s", b, want)
		}
	}
}
