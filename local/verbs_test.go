package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/process"
	"fournines/topology"
)

func TestUnitVerbs(t *testing.T) {
	s := run(t, newDir(t), &Plan{Units: []process.Unit{{Name: "u", Process: shell("exec sleep 1000")}}})
	ctx := t.Context()
	first := s.await(t, "u", topology.Ready)

	ok(t, s.client.Pause(ctx, "u"))
	if c := s.await(t, "u", topology.Degraded); !strings.Contains(c.Reason, "paused") {
		t.Errorf("%+v", c)
	}
	awaitStopped(t, first.PID, true)
	ok(t, s.client.Resume(ctx, "u"))
	s.await(t, "u", topology.Ready)
	awaitStopped(t, first.PID, false)

	ok(t, s.client.Pause(ctx, "u")) // a paused unit can be stopped
	ok(t, s.client.Stop(ctx, "u"))
	if c := s.await(t, "u", topology.Stopped); !strings.Contains(c.Reason, "stopped by hand") || c.PID != 0 {
		t.Errorf("%+v", c)
	}
	wantError(t, s.client.Pause(ctx, "u"), "u is not running")
	ok(t, s.client.Stop(ctx, "u"))
	ok(t, s.client.Start(ctx, "u"))
	second := s.await(t, "u", topology.Ready)
	ok(t, s.client.Restart(ctx, "u"))
	third := s.await(t, "u", topology.Ready)
	if first.PID == second.PID || second.PID == third.PID {
		t.Errorf("pids %d %d %d", first.PID, second.PID, third.PID)
	}
	wantError(t, s.client.Stop(ctx, "nobody"), `there is no component "nobody"; there are u`)
	wantError(t, s.client.unit(ctx, "u", "dance"), `there is no verb "dance"`)
}

// awaitStopped waits until the kernel has stopped a process, or let it go on:
// that is some time after the signal was sent.
func awaitStopped(t *testing.T, pid int, want bool) {
	t.Helper()
	eventually.Nil(t, limit, func() error {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err == nil && strings.Contains(string(b), "State:\tT") != want {
			err = fmt.Errorf("process %d: stopped should be %v", pid, want)
		}
		return err
	})
}

// fakeNetwork remembers what was asked.
type fakeNetwork struct {
	mu  sync.Mutex
	cut map[string]bool
}

func (n *fakeNetwork) set(zone string, down bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[zone] = down
	return nil
}
func (n *fakeNetwork) Cut(zone string) error  { return n.set(zone, true) }
func (n *fakeNetwork) Heal(zone string) error { return n.set(zone, false) }
func (n *fakeNetwork) LinkState(zone string) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[zone] {
		return "down", nil
	}
	return "up", nil
}

func TestZonePower(t *testing.T) {
	dir := newDir(t)
	var j journal
	unit := func(name, zone string, after ...string) process.Unit {
		return process.Unit{
			Name: name, Zone: zone, After: after, Process: shell("sleep 1000 & exec sleep 1000"),
			Prepare: func(context.Context) error { j.add("start " + name); return nil },
			Ready:   func(context.Context) error { j.add("ready " + name); return nil },
		}
	}
	s := run(t, dir, &Plan{Zones: []string{"a", "b"}, Network: &fakeNetwork{cut: map[string]bool{}}, Units: []process.Unit{
		unit("etcd-a", "a"), unit("db-a", "a", "etcd-a", "etcd-b"), unit("etcd-b", "b"), unit("db-b", "b", "etcd-a", "etcd-b", "db-a"),
	}})
	ctx := t.Context()
	s.awaitStack(t, topology.Ready)
	keeps := s.component("db-a").PID
	ok(t, s.client.PowerOff(ctx, "b"))
	noneLeft(t, s.byName["etcd-b"].mark)
	noneLeft(t, s.byName["db-b"].mark)
	st := s.awaitStack(t, topology.Degraded)
	if st.Zones[1].Power != "off" || st.Zones[0].Power != "on" || st.Zones[1].Components[0].State != topology.Stopped {
		t.Errorf("%+v", st.Zones)
	}
	wantError(t, s.client.Start(ctx, "db-b"), "zone b, which has no power")
	eventually.Nil(t, limit, func() error { // the state is saved
		saved, err := loadState(dir)
		if err == nil && !slices.Equal(saved.PowerOff, []string{"b"}) {
			err = fmt.Errorf("power off: %v", saved.PowerOff)
		}
		return err
	})

	j.mu.Lock()
	j.list = nil
	j.mu.Unlock()
	ok(t, s.client.PowerOn(ctx, "b"))
	s.awaitStack(t, topology.Ready)
	if j.index(t, "ready etcd-b") > j.index(t, "start db-b") {
		t.Errorf("order: %v", j.all())
	}
	if s.component("db-a").PID != keeps {
		t.Error("the other zone was touched")
	}

	ok(t, s.client.Cut(ctx, "a"))
	if st := s.awaitStack(t, topology.Ready); st.Zones[0].Link != "down" || st.Zones[1].Link != "up" {
		t.Errorf("%+v", st.Zones)
	}
	ok(t, s.client.Heal(ctx, "a"))
	wantError(t, s.client.Cut(ctx, "q"), `there is no zone "q"; there are a, b`)
}

func TestCutWithoutNetwork(t *testing.T) {
	s := run(t, newDir(t), &Plan{Zones: []string{"a"}, Units: []process.Unit{{Name: "u", Zone: "a", Process: shell("exec sleep 1000")}}})
	wantError(t, s.client.Cut(t.Context(), "a"), "share one network", "as root")
}

func TestObserverOnlyLooks(t *testing.T) {
	dir := newDir(t)
	lock, err := Acquire(dir)
	ok(t, err)
	ln, err := ListenStatus(lock, dir, process.Owner{})
	ok(t, err)
	lock.Release()
	s := run(t, dir, adoptionPlan(dir), func(o *Options) { o.StatusListener = ln })
	s.awaitStack(t, topology.Ready)
	observer := NewObserver(dir)
	t.Cleanup(observer.Close)
	_, err = observer.Status(t.Context())
	ok(t, err)
	const unit = "one"
	for what, err := range map[string]error{
		"kill": observer.Kill(t.Context(), unit), "zone off": observer.PowerOff(t.Context(), "a"), "down": observer.Down(t.Context(), false),
	} {
		if err == nil {
			t.Errorf("the observer's socket takes the order %s", what)
		}
	}
	// What was asked through the other socket is told through this one.
	ok(t, s.client.Stop(t.Context(), unit))
	st, err := observer.Status(t.Context())
	ok(t, err)
	if n := len(st.Actions); n != 1 || st.Actions[0].Verb != "stop" || st.Actions[0].Component != unit || st.Actions[0].Seq != 1 {
		t.Errorf("orders %+v, want the stop of %s", st.Actions, unit)
	}
	info, err := os.Stat(filepath.Join(dir, statusFile))
	ok(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v of the status socket, want 0600", info.Mode())
	}
	// Its end is seen: the events end.
	ended := make(chan error, 1)
	go func() { ended <- observer.Events(context.Background(), func(Event) error { return nil }) }()
	s.cancel()
	s.wait(t)
	select {
	case <-ended:
	case <-time.After(limit):
		t.Error("the stream of events does not end")
	}
	if _, err := os.Stat(filepath.Join(dir, statusFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
