//go:build linux

package reactor

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"fournines/internal/eventually"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func run(tb testing.TB) *Loop {
	tb.Helper()
	l, err := New()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	tb.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	return l
}

// pair returns two ends and the descriptor of the first.
func pair(tb testing.TB) (a, b *net.TCPConn, fd int) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	ca, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	cb, err := ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ca.Close(); _ = cb.Close() })
	a, b = ca.(*net.TCPConn), cb.(*net.TCPConn)
	raw, err := a.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	if err := raw.Control(func(u uintptr) { fd = int(u) }); err != nil {
		tb.Fatal(err)
	}
	return a, b, fd
}

// handler is a function that is one.
type handler func(e Events) Next

// Ready implements Handler.
func (h handler) Ready(e Events) Next { return h(e) }

// reader counts what comes, buf bytes at a time.
func reader(fd int, size int, got *atomic.Int64, ended chan<- struct{}) Handler {
	buf := make([]byte, size)
	return handler(func(e Events) Next {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EAGAIN:
			return Wait
		case n <= 0:
			close(ended)
			return Stop
		}
		got.Add(int64(n))
		if n == len(buf) || e&Hangup != 0 {
			return Again
		}
		return Wait
	})
}

func TestLoopReadsEverything(t *testing.T) {
	l := run(t)
	const conns, size = 40, 100_000
	var wg sync.WaitGroup
	for range conns {
		_, b, fd := pair(t)
		var got atomic.Int64
		ended := make(chan struct{})
		w := &Watch{}
		if err := l.Add(w, fd, Readable, reader(fd, 512, &got, ended)); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			piece := make([]byte, 777)
			for left := size; left > 0; {
				n, err := b.Write(piece[:min(left, len(piece))])
				if err != nil {
					t.Error(err)
					return
				}
				left -= n
			}
			_ = b.Close()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Error("no end seen")
			}
			w.Stop()
			if got.Load() != size {
				t.Errorf("got %d of %d bytes", got.Load(), size)
			}
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) != len(l.slots) {
		t.Fatalf("%d of %d slots are free", len(l.free), len(l.slots))
	}
}

func TestWhatHappenedBefore(t *testing.T) {
	l := run(t)
	_, b, fd := pair(t)
	_, _ = b.Write([]byte("x"))
	var got atomic.Int64
	w := &Watch{}
	if err := l.Add(w, fd, Readable, reader(fd, 512, &got, make(chan struct{}))); err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	eventually.Nil(t, patience, func() error {
		if got.Load() != 1 {
			return errors.New("nothing came")
		}
		return nil
	})
}

func TestHangup(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn){
		"closed": func(c *net.TCPConn) { _ = c.Close() },
		"half":   func(c *net.TCPConn) { _ = c.CloseWrite() },
		"reset":  func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := run(t)
			_, b, fd := pair(t)
			seen := make(chan Events, 8)
			w := &Watch{}
			if err := l.Add(w, fd, 0, handler(func(e Events) Next { seen <- e; return Stop })); err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			_, _ = b.Write([]byte("is not looked at"))
			end(b)
			select {
			case e := <-seen:
				if e&Hangup == 0 {
					t.Fatalf("events %b", e)
				}
			case <-time.After(patience):
				t.Fatal("no hangup")
			}
		})
	}
}

func TestStop(t *testing.T) {
	l := run(t)
	for range 50 {
		a, b, fd := pair(t)
		var running, stopped atomic.Bool
		w := &Watch{}
		err := l.Add(w, fd, Readable, handler(func(Events) Next {
			if stopped.Load() {
				t.Error("called after Stop")
			}
			running.Store(true)
			defer running.Store(false)
			var buf [1]byte
			_, _ = unix.Read(fd, buf[:])
			return Again
		}))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = b.Write([]byte("hello"))
		w.Stop()
		stopped.Store(true)
		if running.Load() {
			t.Error("runs after Stop")
		}
		w.Stop()
		_ = a.Close()
		_ = b.Close() // the next pair gets the same descriptors
	}
}

func TestLoopEnds(t *testing.T) {
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	_, _, fd := pair(t)
	w := &Watch{}
	w.Stop() // of nothing
	if err := l.Add(w, fd, Readable, handler(func(Events) Next { return Wait })); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	<-l.Done()
	w.Stop()
	late := &Watch{}
	if err := l.Add(late, fd, Readable, nil); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
	late.Stop()
}

func TestWriteNow(t *testing.T) {
	_, b, fd := pair(t)
	big := make([]byte, 64<<20)
	n, err := WriteNow(fd, big)
	if err != nil || n == 0 || n == len(big) {
		t.Fatalf("took %d, %v", n, err)
	}
	_ = b.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(b, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	_ = b.SetLinger(0)
	_ = b.Close()
	eventually.Nil(t, patience, func() error {
		if _, err := WriteNow(fd, []byte("x")); err == nil {
			return errors.New("still there")
		}
		return nil
	})
}
