package reactor

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestDirectPassesEverything(t *testing.T) {
	a, b, _ := pair(t)
	d := Direct(a)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // more than the kernel takes at once
	done := make(chan error, 1)
	go func() {
		n, err := d.Write(sent)
		if err == nil && n != len(sent) {
			err = io.ErrShortWrite
		}
		done <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("received: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = b.Write(sent)
		_ = b.CloseWrite()
	}()
	if got, err := io.ReadAll(d); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if n, err := d.Read(nil); n != 0 || err != nil {
		t.Fatalf("nothing: %d, %v", n, err)
	}
}

func TestOnReadable(t *testing.T) {
	a, b, _ := pair(t)
	d := Direct(a)
	var p [8]byte
	var calls, n int
	var err error
	read := func(fd uintptr) bool {
		if calls++; calls == 2 {
			// Only now, so that it has waited.
			_, _ = b.Write([]byte("late"))
		}
		n, err = ReadNow(int(fd), p[:])
		return !errors.Is(err, ErrAgain)
	}
	first := make(chan struct{})
	go func() {
		<-first
		_, _ = b.Write([]byte("here"))
	}()
	ok, werr := OnReadable(d, func(fd uintptr) bool {
		done := read(fd)
		if calls == 1 {
			close(first)
		}
		return done
	})
	if !ok || werr != nil || err != nil || string(p[:n])[:4] != "here" {
		t.Errorf("%q, %v, %v, %v", p[:n], ok, werr, err)
	}
	_ = d.SetReadDeadline(time.Unix(1, 0))
	if _, err := OnReadable(d, read); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after its time: %v", err)
	}
	if ok, _ := OnReadable(a, read); ok {
		t.Error("a connection of package net")
	}
}

func TestDirectErrors(t *testing.T) {
	a, b, _ := pair(t)
	d := Direct(a)
	var p [1]byte
	_ = d.SetReadDeadline(time.Unix(1, 0))
	if _, err := d.Read(p[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after its time: %v", err)
	}
	_ = d.SetReadDeadline(time.Time{})
	waits := make(chan error, 1)
	go func() { _, err := d.Read(p[:]); waits <- err }()
	_ = d.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if err := <-waits; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while it waits: %v", err)
	}
	_ = d.SetReadDeadline(time.Time{})
	_ = b.SetLinger(0)
	_ = b.Close()
	var op *net.OpError
	if _, err := d.Read(p[:]); !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("after a reset: %v", err)
	}
	_ = d.Close()
	if _, err := d.Read(p[:]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := d.Write(p[:]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

func TestDirectNeedsTCP(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Direct(a) != a {
		t.Error("a pipe is not left as it is")
	}
	tcp, _, _ := pair(t)
	if u, ok := Direct(tcp).(interface{ NetConn() net.Conn }); !ok || u.NetConn() != net.Conn(tcp) {
		t.Error("the connection below is not found")
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{"net": func(c net.Conn) net.Conn { return c }, "direct": Direct} {
		b.Run(name, func(b *testing.B) {
			x, y, _ := pair(b)
			near, far := wrap(x), wrap(y)
			go func() { // ends when the pair is closed
				p := make([]byte, 512)
				for {
					n, err := far.Read(p)
					if err != nil {
						return
					}
					if _, err := far.Write(p[:n]); err != nil {
						return
					}
				}
			}()
			p := make([]byte, 64)
			for b.Loop() {
				if _, err := near.Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(near, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
