package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/handover"
	"fournines/internal/process"
	"fournines/internal/servertest"
	"fournines/topology"
)

const (
	// heirEnv makes the test binary a server that hands over at the path it names.
	heirEnv = "FOURNINES_TEST_HEIR"
	// heirAddressEnv is where it listens; it also gives a supervisor heirPlan.
	heirAddressEnv = "FOURNINES_TEST_HEIR_ADDRESS"
)

// heirMain writes its pid to each connection and keeps it until the client
// closes it. Files beside its socket make it fail ("broken") or never get
// ready ("slow").
func heirMain(path string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(path), name))
		return err == nil
	}
	if has("broken") {
		return 3
	}
	set, err := handover.Open(ctx, handover.Options{Path: path}, handover.Socket{Name: "client", Address: os.Getenv(heirAddressEnv)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 4
	}
	var conns sync.WaitGroup
	ln := set.Listener("client")
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_, _ = fmt.Fprintln(c, os.Getpid())
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	err = set.Run(ctx, func() error {
		if has("slow") {
			return errors.New("slow")
		}
		return nil
	})
	if !errors.Is(err, handover.ErrTakenOver) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 5
		}
		return 0
	}
	_ = set.Close()
	ended := make(chan struct{})
	go func() {
		conns.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	return 0
}

func heirPlan(dir, address string) *Plan {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	path := filepath.Join(dir, "heir.sock")
	return &Plan{Units: []process.Unit{{
		Name: "heir", Address: address,
		Process: &process.Spec{
			Path: exe, Dir: dir, Handover: path, StopTimeout: limit,
			Env: []string{heirEnv + "=" + path, heirAddressEnv + "=" + address},
		},
		Ready: func(ctx context.Context) error {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err == nil {
				_ = c.Close()
			}
			return err
		},
	}}}
}

// visit opens a connection and returns it with the pid of who serves it.
func visit(address string) (net.Conn, int, error) {
	c, err := net.DialTimeout("tcp", address, limit)
	if err != nil {
		return nil, 0, err
	}
	_ = c.SetReadDeadline(time.Now().Add(limit))
	b := make([]byte, 32)
	n, err := c.Read(b)
	if err != nil {
		_ = c.Close()
		return nil, 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return c, pid, err
}

// isOpen tells whether the other side has neither ended the connection nor
// written to it. It asks the kernel: Read with a deadline that is over does not
// look at the connection at all.
func isOpen(t *testing.T, c net.Conn) bool {
	t.Helper()
	ok(t, c.SetReadDeadline(time.Time{}))
	raw, err := c.(*net.TCPConn).SyscallConn()
	ok(t, err)
	var got error
	ok(t, raw.Read(func(fd uintptr) bool {
		_, _, got = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	}))
	return errors.Is(got, syscall.EAGAIN)
}

// visitors connect without a pause until the test stops them, and report what failed.
func visitors(t *testing.T, address string) (count *atomic.Int64, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	count = new(atomic.Int64)
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, _, err := visit(address)
				if err != nil {
					t.Errorf("refused or cut: %v", err)
					return
				}
				_ = c.Close()
				count.Add(1)
			}
		})
	}
	return count, func() {
		cancel()
		wg.Wait()
	}
}

func TestRestartWithHandOver(t *testing.T) {
	dir, address := newDir(t), servertest.FreeAddress(t)
	s := run(t, dir, heirPlan(dir, address))
	ctx := t.Context()
	s.await(t, "heir", topology.Ready)
	count, stop := visitors(t, address)
	var streams []net.Conn
	pids := map[int]bool{}
	for range 5 {
		c, serving, err := visit(address)
		ok(t, err)
		streams = append(streams, c)
		before := s.component("heir").PID
		if serving != before {
			t.Errorf("served by %d, want %d", serving, before)
		}
		pids[before] = true
		ok(t, s.client.Restart(ctx, "heir"))
		after := s.component("heir")
		if after.State != topology.Ready || pids[after.PID] {
			t.Fatalf("after the restart: %+v", after)
		}
		from := count.Load()
		eventually.Nil(t, limit, func() error {
			if count.Load() < from+20 {
				return errors.New("no visits")
			}
			return nil
		})
	}
	stop()
	for i, c := range streams {
		if !isOpen(t, c) {
			t.Errorf("stream %d was cut", i)
		}
	}
	if c := s.component("heir"); c.Restarts != 5 {
		t.Errorf("%d restarts", c.Restarts)
	}
	_ = streams[0].Close() // its process ends by itself
	eventually.Nil(t, limit, func() error { return processes(s.byName["heir"].mark, 5) })
	// down ends them all, those with streams too.
	ok(t, s.client.Down(ctx, false))
	noneLeft(t, s.byName["heir"].mark)
	for _, c := range streams {
		_ = c.Close()
	}
	t.Logf("%d visits", count.Load())
}

func processes(mark string, want int) error {
	table, err := process.Scan()
	if err != nil {
		return err
	}
	if n := len(table.Marked(mark)); n != want {
		return fmt.Errorf("%d processes, want %d", n, want)
	}
	return nil
}

func TestRestartWhoseSuccessorFails(t *testing.T) {
	dir, address := newDir(t), servertest.FreeAddress(t)
	s := run(t, dir, heirPlan(dir, address))
	ctx := t.Context()
	first := s.await(t, "heir", topology.Ready)
	_, stop := visitors(t, address)
	touch := func(name string) (remove func()) {
		t.Helper()
		path := filepath.Join(dir, name)
		ok(t, os.WriteFile(path, nil, 0o600))
		return func() { ok(t, os.Remove(path)) }
	}
	same := func() {
		t.Helper()
		if c := s.component("heir"); c.PID != first.PID || c.State != topology.Ready || c.Restarts != 0 {
			t.Errorf("%+v", c)
		}
	}
	remove := touch("broken")
	wantError(t, s.client.Restart(ctx, "heir"), "the process that runs goes on", "exit status 3")
	same()
	remove()

	remove = touch("slow")
	answer := make(chan error, 1)
	go func() { answer <- s.client.Restart(ctx, "heir") }()
	next := awaitNextOf(t, dir, first.PID)
	wantError(t, s.client.Restart(ctx, "heir"), "being restarted already")
	same()
	ok(t, process.SignalAll([]process.Identity{next}, syscall.SIGKILL))
	wantError(t, <-answer, "the process that runs goes on", "SIGKILL")
	same()

	// A holder that dies while its successor gets ready: the successor goes on.
	go func() { answer <- s.client.Restart(ctx, "heir") }()
	next = awaitNextOf(t, dir, first.PID)
	stop()
	ok(t, syscall.Kill(first.PID, syscall.SIGKILL))
	ok(t, <-answer)
	remove()
	eventually.Nil(t, limit, func() error {
		if c := s.component("heir"); c.PID != next.PID || c.State != topology.Ready {
			return fmt.Errorf("%+v, want pid %d", c, next.PID)
		}
		return nil
	})

	// One that hangs is restarted in the old way, and a crash is a crash.
	ok(t, s.client.Pause(ctx, "heir"))
	ok(t, s.client.Restart(ctx, "heir"))
	third := s.await(t, "heir", topology.Ready)
	ok(t, s.client.Kill(ctx, "heir"))
	eventually.Nil(t, limit, func() error {
		if c := s.component("heir"); c.PID == third.PID || c.State != topology.Ready {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	eventually.Nil(t, limit, func() error { return processes(s.byName["heir"].mark, 1) })

	// A stop ends a successor too.
	touch("slow")
	go func() { answer <- s.client.Restart(ctx, "heir") }()
	awaitNextOf(t, dir, s.component("heir").PID)
	ok(t, s.client.Stop(ctx, "heir"))
	wantError(t, <-answer, "is being stopped")
	noneLeft(t, s.byName["heir"].mark)
}

// awaitNextOf returns the successor of holder that state.json names. The file
// may still name the holder itself, from when it was one.
func awaitNextOf(t *testing.T, dir string, holder int) process.Identity {
	t.Helper()
	var next process.Identity
	eventually.Nil(t, limit, func() error {
		st, err := loadState(dir)
		if err != nil {
			return err
		}
		if next = st.Units["heir"].Next; next.PID == holder || !next.Alive() {
			return errors.New("no successor")
		}
		return nil
	})
	return next
}

// A supervisor that dies in the middle of a hand-over, with a process that
// still ends its streams: the next one finds who is who.
func TestAdoptionDuringAHandOver(t *testing.T) {
	dir, address := newDir(t), servertest.FreeAddress(t)
	t.Cleanup(func() { _ = process.KillTree(process.Identity{}, Mark(dir, "heir"), limit) })
	exe, err := os.Executable()
	ok(t, err)
	supervisor := exec.Command(exe)
	supervisor.Env = append(os.Environ(), superviseEnv+"="+dir, heirAddressEnv+"="+address)
	supervisor.Stderr = os.Stderr
	ok(t, supervisor.Start())
	t.Cleanup(func() {
		_ = supervisor.Process.Kill()
		_ = supervisor.Wait()
	})
	client := NewClient(dir)
	defer client.Close()
	eventually.Nil(t, limit, func() error {
		st, err := client.Status(t.Context())
		if err == nil && st.State != topology.Ready {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
	stream, _, err := visit(address)
	ok(t, err)
	defer stream.Close()
	ok(t, client.Restart(t.Context(), "heir"))
	_, holder, err := visit(address)
	ok(t, err)
	slow := filepath.Join(dir, "slow")
	ok(t, os.WriteFile(slow, nil, 0o600))
	go func() { _ = client.Restart(context.Background(), "heir") }()
	next := awaitNextOf(t, dir, holder)
	_ = supervisor.Process.Kill()
	_ = supervisor.Wait()
	ok(t, awaitUnlocked(t.Context(), dir))

	s := run(t, dir, heirPlan(dir, address))
	if c := s.await(t, "heir", topology.Ready); c.PID != holder {
		t.Errorf("adopted %d, want %d", c.PID, holder)
	}
	if !isOpen(t, stream) {
		t.Error("the stream was cut")
	}
	// A process that has just begun its program has no environment for a moment.
	eventually.Nil(t, limit, func() error { return processes(Mark(dir, "heir"), 3) })
	ok(t, os.Remove(slow))
	eventually.Nil(t, limit, func() error {
		if c := s.component("heir"); c.PID != next.PID || c.State != topology.Ready {
			return fmt.Errorf("%+v, want pid %d", c, next.PID)
		}
		return nil
	})
	if !isOpen(t, stream) {
		t.Error("the stream was cut")
	}
	ok(t, s.client.Down(t.Context(), false))
	noneLeft(t, Mark(dir, "heir"))
}
