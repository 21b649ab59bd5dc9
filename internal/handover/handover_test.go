package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// generation is one process of the test: it greets each connection with its name.
type generation struct {
	*Set
	name  string
	ready atomic.Bool
	stop  context.CancelFunc
	done  chan error
	wg    sync.WaitGroup
}

func open(t *testing.T, name, path string, sockets ...Socket) *generation {
	t.Helper()
	set, err := Open(t.Context(), Options{Path: path, ReadyTimeout: patience}, sockets...)
	if err != nil {
		t.Fatal(err)
	}
	g := &generation{Set: set, name: name, done: make(chan error, 1)}
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	g.wg.Go(func() {
		g.done <- set.Run(ctx, func() error {
			if !g.ready.Load() {
				return errors.New("not ready")
			}
			return nil
		})
		if g.isOver() {
			_ = set.Close()
		}
	})
	for _, s := range sockets {
		ln := set.Listener(s.Name)
		g.wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, name)
				_ = c.Close()
			}
		})
	}
	t.Cleanup(g.end)
	return g
}

func (g *generation) isOver() bool {
	select {
	case <-g.TakenOver():
		return true
	default:
		return false
	}
}

func (g *generation) end() {
	g.stop()
	_ = g.Close()
	g.wg.Wait()
}

func (g *generation) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-g.done:
		return err
	case <-time.After(patience):
		t.Fatalf("%s: Run does not return", g.name)
		return nil
	}
}

func greet(address string) (string, error) {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		err = errors.New("no greeting")
	}
	return string(b), err
}

func says(address, want string) func() error {
	return func() error {
		if got, err := greet(address); err != nil || got != want {
			return fmt.Errorf("%q %w, want %q", got, err, want)
		}
		return nil
	}
}

func TestNoConnectionIsLostOverManyGenerations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h")
	sockets := []Socket{{"client", servertest.FreeAddress(t)}, {"admin", servertest.FreeAddress(t)}}
	old := open(t, "g0", path, sockets...)
	eventually.Nil(t, patience, says(sockets[0].Address, "g0"))

	stop := make(chan struct{})
	var load sync.WaitGroup
	var made atomic.Int64
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, s := range sockets {
					if _, err := greet(s.Address); err != nil {
						t.Errorf("%s: %v", s.Name, err)
					}
				}
				made.Add(1)
			}
		})
	}
	for i := 1; i <= 5; i++ {
		eventually.Nil(t, patience, func() error {
			if _, err := os.Lstat(path); err != nil {
				return err
			}
			if pid, err := Holder(path); err != nil || pid != os.Getpid() {
				return fmt.Errorf("holder %d: %w", pid, err)
			}
			return nil
		})
		before := made.Load()
		next := open(t, fmt.Sprint("g", i), path, sockets...)
		if !next.Inherited() {
			t.Fatal("made listeners of its own")
		}
		// Not ready: the old one goes on.
		eventually.Nil(t, patience, func() error {
			if made.Load() < before+3 {
				return errors.New("no load")
			}
			return nil
		})
		if err := says(sockets[0].Address, old.name)(); err != nil {
			t.Fatal(err)
		}
		next.ready.Store(true)
		if err := old.wait(t); !errors.Is(err, ErrTakenOver) {
			t.Fatalf("the old one ended with %v", err)
		}
		eventually.Nil(t, patience, says(sockets[1].Address, next.name))
		old = next
	}
	close(stop)
	load.Wait()
	eventually.Nil(t, patience, func() error { _, err := os.Lstat(path); return err })
	if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	old.end()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	t.Logf("%d rounds", made.Load())
}

// inherit opens a set that never becomes ready.
func inherit(t *testing.T, path string, sockets ...Socket) *Set {
	t.Helper()
	var set *Set
	eventually.Nil(t, patience, func() (err error) { // the holder may not have noticed yet that one before has gone
		set, err = Open(t.Context(), Options{Path: path, ReadyTimeout: patience}, sockets...)
		if err == nil && !set.Inherited() {
			t.Fatal("made listeners of its own")
		}
		return err
	})
	t.Cleanup(func() { _ = set.Close() })
	return set
}

func published(t *testing.T, path string) {
	t.Helper()
	eventually.Nil(t, patience, func() error { _, err := os.Lstat(path); return err })
}

func TestTheHolderGoesOnWhenItsSuccessorFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h")
	socket := Socket{"client", servertest.FreeAddress(t)}
	old := open(t, "old", path, socket)
	published(t, path)
	for range 3 {
		next := inherit(t, path, socket)
		if _, err := Open(t.Context(), Options{Path: path}, socket); err == nil || !strings.Contains(err.Error(), "another hand-over is under way") {
			t.Fatalf("second successor: %v", err)
		}
		_ = next.Close() // as the kernel does for a process that is killed
		if err := says(socket.Address, "old")(); err != nil {
			t.Fatal(err)
		}
	}
	// One that cannot get ready says so and changes nothing.
	next := inherit(t, path, socket)
	next.limit = 10 * time.Millisecond
	if err := next.Run(t.Context(), func() error { return errors.New("no instance") }); err == nil || !strings.Contains(err.Error(), "not ready after 10ms") || !strings.Contains(err.Error(), "no instance") {
		t.Fatalf("Run: %v", err)
	}
	_ = next.Close()
	eventually.Nil(t, patience, says(socket.Address, "old"))
	// And a good one still takes over.
	good := inherit(t, path, socket)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- good.Run(ctx, func() error { return nil }) }()
	if err := old.wait(t); !errors.Is(err, ErrTakenOver) {
		t.Fatalf("the old one ended with %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestASuccessorGoesOnWhenTheHolderDies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h")
	socket := Socket{"client", servertest.FreeAddress(t)}
	old := open(t, "old", path, socket)
	published(t, path)
	next := open(t, "next", path, socket)
	if !next.Inherited() {
		t.Fatal("made listeners of its own")
	}
	old.end()
	eventually.Nil(t, patience, says(socket.Address, "next"))
	published(t, path)
	third := open(t, "third", path, socket)
	third.ready.Store(true)
	if err := next.wait(t); !errors.Is(err, ErrTakenOver) {
		t.Fatalf("next ended with %v", err)
	}
	eventually.Nil(t, patience, says(socket.Address, "third"))
}

// A holder that dies while it is asked leaves its port free.
func TestAHolderThatDiesWhileItIsAsked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.AcceptUnix()
		if err != nil {
			t.Error(err)
			return
		}
		_, _, _ = receive(conn, patience)
		ln.SetUnlinkOnClose(false)
		_ = ln.Close()
		_ = conn.Close()
	}()
	socket := Socket{"client", servertest.FreeAddress(t)}
	g := open(t, "new", path, socket)
	<-done
	if g.Inherited() {
		t.Error("inherited from a dead process")
	}
	eventually.Nil(t, patience, says(socket.Address, "new"))
}

func TestWhatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h")
	sockets := []Socket{{"client", servertest.FreeAddress(t)}, {"admin", servertest.FreeAddress(t)}}
	open(t, "old", path, sockets...)
	published(t, path)
	for _, tc := range []struct {
		name string
		want []Socket
		says string
	}{
		{"another address", []Socket{sockets[0], {"admin", servertest.FreeAddress(t)}}, "an address cannot change"},
		{"another name", []Socket{sockets[0], {"metrics", sockets[1].Address}}, "is new"},
		{"one more", append(sockets[:2:2], Socket{"x", servertest.FreeAddress(t)}), "is new"},
		{"one less", sockets[:1], "1 listeners are wanted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set, err := Open(t.Context(), Options{Path: path}, tc.want...)
			if err == nil {
				_ = set.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), path) {
				t.Fatalf("%v, want %q", err, tc.says)
			}
		})
	}
	for _, packet := range []string{`{"fourninesHandover":2,"op":"hello"}`, `{"fourninesHandover":1,"op":"takeOver"}`, `nonsense`, `{"fourninesHandover":1,"op":"hello"}` + strings.Repeat(" ", maxMessage)} {
		conn, err := dial(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(packet)); err != nil {
			t.Fatal(err)
		}
		m, fds, err := receive(conn, patience)
		closeAll(fds)
		_ = conn.Close()
		if err != nil || m.Op != opRefused || len(fds) != 0 {
			t.Errorf("%.40s: %+v %v", packet, m, err)
		}
	}
}

func TestPaths(t *testing.T) {
	t.Run("left by a process that was killed", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "h")
		ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		_ = ln.Close()
		socket := Socket{"client", servertest.FreeAddress(t)}
		g := open(t, "new", path, socket)
		eventually.Nil(t, patience, says(socket.Address, "new"))
		eventually.Nil(t, patience, func() error {
			if pid, err := Holder(path); err != nil || pid != os.Getpid() {
				return fmt.Errorf("holder %d: %w", pid, err)
			}
			return nil
		})
		g.end()
		if pid, err := Holder(path); err != nil || pid != 0 {
			t.Errorf("holder %d after the end, %v", pid, err)
		}
	})
	t.Run("a file that is no socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "h")
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		set, err := Open(t.Context(), Options{Path: path}, Socket{"client", servertest.FreeAddress(t)})
		if err == nil {
			err = set.Run(t.Context(), func() error { return nil })
			_ = set.Close()
		}
		if err == nil {
			t.Fatal("accepted")
		}
		if b, _ := os.ReadFile(path); string(b) != "mine" {
			t.Errorf("overwritten with %q", b)
		}
	})
	t.Run("longer than a socket address", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "h")
		socket := Socket{"client", servertest.FreeAddress(t)}
		old := open(t, "old", path, socket)
		published(t, path)
		next := open(t, "next", path, socket)
		next.ready.Store(true)
		if err := old.wait(t); !errors.Is(err, ErrTakenOver) {
			t.Fatal(err)
		}
	})
	t.Run("none", func(t *testing.T) {
		socket := Socket{"client", servertest.FreeAddress(t)}
		g := open(t, "alone", "", socket)
		eventually.Nil(t, patience, says(socket.Address, "alone"))
		g.stop()
		if err := g.wait(t); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(`{"fourninesHandover":1,"op":"hello","sockets":[{"name":"client","address":":8080"}]}`))
	f.Add([]byte(`{"fourninesHandover":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err == nil && (m.Version != protocolVersion || len(m.Sockets) > maxSockets) {
			t.Errorf("accepted %+v", m)
		}
	})
}
