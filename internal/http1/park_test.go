//go:build linux

package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"fournines/internal/eventually"
	"fournines/internal/reactor"
)

// runLoop runs a loop until stop or the test's end.
func runLoop(tb testing.TB) (loop *reactor.Loop, stop func()) {
	tb.Helper()
	loop, err := reactor.New()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := loop.Run(ctx); err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	tb.Cleanup(stop)
	return loop, stop
}

// descriptors counts this process's open files.
func descriptors(tb testing.TB) int {
	tb.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(all)
}

// sameDescriptors checks at the test's end that as many files are open as now;
// what is cleaned up later counts as open.
func sameDescriptors(tb testing.TB) {
	tb.Helper()
	tb.Helper()
	// The first connection of a process opens files of the runtime's poller.
	warm, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	_ = warm.Close()
	before := descriptors(tb)
	tb.Cleanup(func() {
		eventually.Nil(tb, patience, func() error {
			if now := descriptors(tb); now != before {
				return fmt.Errorf("%d files are open, before it were %d", now, before)
			}
			return nil
		})
	})
}

// speaker answers every request with a stream of what comes on say until "end",
// or until "die", which breaks off.
func speaker(tb testing.TB, say <-chan string) string {
	tb.Helper()
	addr, _ := server(tb, func(w http.ResponseWriter, r *http.Request) {
		if n, _ := io.Copy(io.Discard, r.Body); r.Method == http.MethodPut {
			fmt.Fprint(w, n)
			return
		}
		_ = http.NewResponseController(w).Flush()
		for text := range say {
			switch text {
			case "end":
				return
			case "die":
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		}
	})
	return addr
}

var errEnough = errors.New("enough")

// collect takes everything, and tells on heard what has come so far.
type collect struct {
	all    string
	heard  chan string
	enough bool // after each piece
}

// Take implements Taker.
func (c *collect) Take(p []byte) error {
	c.all += string(p)
	select {
	case c.heard <- c.all:
	default:
	}
	if c.enough {
		return errEnough
	}
	return nil
}

func TestEachOn(t *testing.T) {
	for name, tc := range map[string]struct {
		// act ends the stream, of which "one" has come.
		act    func(say chan<- string, cancel context.CancelCauseFunc, end *Cancel, stopLoop func())
		all    string
		err    error
		reused bool
	}{
		"ends":      {act: func(say chan<- string, _ context.CancelCauseFunc, _ *Cancel, _ func()) { say <- "two"; say <- "end" }, all: "onetwo", reused: true},
		"dies":      {act: func(say chan<- string, _ context.CancelCauseFunc, _ *Cancel, _ func()) { say <- "die" }, all: "one", err: io.ErrUnexpectedEOF},
		"cancelled": {act: func(_ chan<- string, c context.CancelCauseFunc, _ *Cancel, _ func()) { c(errEnough) }, all: "one", err: errEnough},
		"given up":  {act: func(_ chan<- string, _ context.CancelCauseFunc, e *Cancel, _ func()) { e.Cancel(errEnough) }, all: "one", err: errEnough},
		"loop gone": {act: func(_ chan<- string, _ context.CancelCauseFunc, _ *Cancel, stop func()) { stop() }, all: "one", err: reactor.ErrStopped},
	} {
		t.Run(name, func(t *testing.T) {
			sameDescriptors(t)
			loop, stopLoop := runLoop(t)
			say := make(chan string, 4)
			addr := speaker(t, say)
			t.Cleanup(func() { close(say) })
			tr := testTransport(t)
			ctx, cancel := context.WithCancelCause(testContext(t))
			defer cancel(nil)
			r := request(addr, "GET", "")
			r.Cancel = new(Cancel)
			resp, err := tr.Do(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			b := resp.Body.(*Body)
			cc := b.c.counting
			c := &collect{heard: make(chan string, 1)}
			done := make(chan error, 1)
			go func() { done <- b.EachOn(loop, c) }()
			say <- "one"
			if got := <-c.heard; got != "one" {
				t.Fatalf("heard %q", got)
			}
			tc.act(say, cancel, r.Cancel, stopLoop)
			if err := <-done; !errors.Is(err, tc.err) || tc.err == nil && err != nil || c.all != tc.all {
				t.Fatalf("got %q, %v", c.all, err)
			}
			_ = b.Close()
			if cc.bare {
				t.Error("nobody closes the descriptor")
			}
			tr.idle.mu.Lock()
			kept := len(tr.idle.conns[addr])
			tr.idle.mu.Unlock()
			if want := map[bool]int{true: 1}[tc.reused]; kept != want {
				t.Fatalf("%d connections are kept", kept)
			}
			tr.CloseIdle()
		})
	}
}

// A connection that was on a loop is one like others afterwards.
func TestAfterEachOn(t *testing.T) {
	sameDescriptors(t)
	loop, _ := runLoop(t)
	say := make(chan string, 4)
	addr := speaker(t, say)
	t.Cleanup(func() { close(say) })
	tr := testTransport(t)
	var first *countingConn
	for range 3 {
		resp, err := tr.Do(testContext(t), request(addr, "GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		b := resp.Body.(*Body)
		cc := b.c.counting
		if first == nil {
			first = cc
		}
		if cc != first {
			t.Fatal("the connection was not used again")
		}
		say <- "one"
		c := &collect{}
		go func() { say <- "end" }()
		if err := b.EachOn(loop, c); err != nil || c.all != "one" {
			t.Fatalf("got %q, %v", c.all, err)
		}
		_ = b.Close()
		if idle, err := unix.GetsockoptInt(cc.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); err != nil || idle != 3 {
			t.Errorf("keep-alive begins after %d s, %v", idle, err)
		}
		large := strings.Repeat("x", 2*inlineBody)
		if got := do(t, tr, request(addr, "PUT", large)); got != fmt.Sprint(len(large)) {
			t.Errorf("got %q", got)
		}
	}
	tr.CloseIdle()
}

// After an error of the taker the rest may be had in each way, or not at all.
func TestEachOnGoesOn(t *testing.T) {
	rest := func(b *Body) (string, error) { all, err := io.ReadAll(b); return string(all), err }
	for name, how := range map[string]func(*Body, *reactor.Loop) (string, error){
		"loop": func(b *Body, loop *reactor.Loop) (string, error) {
			c := &collect{}
			err := b.EachOn(loop, c)
			return c.all, err
		},
		"each":    func(b *Body, _ *reactor.Loop) (string, error) { return byEach(b) },
		"read":    func(b *Body, _ *reactor.Loop) (string, error) { return rest(b) },
		"no":      func(b *Body, _ *reactor.Loop) (string, error) { _ = b.Close(); return "two", nil },
		"aborted": nil,
	} {
		t.Run(name, func(t *testing.T) {
			sameDescriptors(t)
			loop, _ := runLoop(t)
			say := make(chan string, 4)
			addr := speaker(t, say)
			t.Cleanup(func() { close(say) })
			tr := testTransport(t)
			resp, err := tr.Do(testContext(t), request(addr, "GET", ""))
			if err != nil {
				t.Fatal(err)
			}
			b := resp.Body.(*Body)
			say <- "one"
			if err := b.EachOn(loop, &collect{enough: true}); !errors.Is(err, errEnough) {
				t.Fatal(err)
			}
			if !b.c.counting.bare || b.c.counting.Conn != nil {
				t.Error("the runtime's poller watches a connection that is on a loop")
			}
			if how == nil {
				// The deadline that was set meanwhile counts.
				b.abort()
				if _, err := rest(b); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			} else {
				say <- "two"
				say <- "end"
				if got, err := how(b, loop); got != "two" || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
			}
			_ = b.Close()
			_ = b.Close()
			tr.CloseIdle()
		})
	}
}

// The answer may come while the request is still being sent.
func TestEachOnWhileSending(t *testing.T) {
	sameDescriptors(t)
	loop, _ := runLoop(t)
	got := make(chan string, 1)
	addr := raw(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		r, err := http.ReadRequest(br)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
		all, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- string(all)
		_, _ = io.WriteString(c, "3\r\ntwo\r\n0\r\n\r\n")
	})
	tr := testTransport(t)
	body, write := io.Pipe()
	r := request(addr, "POST", "")
	r.Rest, r.Length = body, -1
	resp, err := tr.Do(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	c := &collect{heard: make(chan string, 1)}
	go func() {
		<-c.heard
		_, _ = io.WriteString(write, "sent late")
		_ = write.Close()
	}()
	if err := resp.Body.(*Body).EachOn(loop, c); err != nil || c.all != "onetwo" {
		t.Errorf("got %q, %v", c.all, err)
	}
	if sent := <-got; sent != "sent late" {
		t.Errorf("sent %q", sent)
	}
	_ = resp.Body.Close()
	tr.CloseIdle()
}
