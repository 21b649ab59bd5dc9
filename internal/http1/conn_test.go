package http1

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

func pair(t *testing.T) (*countingConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := newCountingConn(conn)
	t.Cleanup(func() { _ = conn.Close(); _ = peer.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	return c, peer.(*net.TCPConn)
}

func TestUntouched(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs the kernel's count of acknowledged bytes")
	}
	exchange := func(t *testing.T, c *countingConn, peer *net.TCPConn) int64 {
		t.Helper()
		if _, err := c.Write([]byte("first request")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(peer, make([]byte, len("first request"))); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Write([]byte("answer")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, len("answer"))); err != nil {
			t.Fatal(err)
		}
		return c.written.Load()
	}
	fail := func(t *testing.T, c *countingConn) {
		t.Helper()
		if _, err := io.ReadAll(c); err != nil {
			t.Log("read:", err)
		}
		_, _ = c.Read(make([]byte, 1)) // the first error is remembered, whichever it was
	}
	t.Run("peer was gone before", func(t *testing.T) {
		c, peer := pair(t)
		before := exchange(t, c, peer)
		_ = peer.Close() // as a kill does: the kernel closes, late bytes are reset
		if _, err := c.Write([]byte("second request")); err != nil {
			t.Skip("the reset came first:", err)
		}
		fail(t, c)
		if !c.untouched(before) {
			t.Fatalf("written %d, acknowledged %d, before %d: should be untouched", c.written.Load(), c.acked.Load(), before)
		}
	})
	t.Run("peer read it and died", func(t *testing.T) {
		c, peer := pair(t)
		before := exchange(t, c, peer)
		if _, err := c.Write([]byte("second request")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(peer, make([]byte, len("second request"))); err != nil {
			t.Fatal(err)
		}
		_ = peer.Close()
		fail(t, c)
		if c.untouched(before) {
			t.Fatalf("written %d, acknowledged %d, before %d: was received", c.written.Load(), c.acked.Load(), before)
		}
	})
	t.Run("peer received it and did not read", func(t *testing.T) {
		c, peer := pair(t)
		before := exchange(t, c, peer)
		if _, err := c.Write([]byte("second request")); err != nil {
			t.Fatal(err)
		}
		_ = peer.SetLinger(0)
		// Received means acknowledged; wait for it by peeking at the other end's buffer.
		if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = peer.Close()
		fail(t, c)
		if c.untouched(before) {
			t.Fatal("was received")
		}
	})
	t.Run("nothing written", func(t *testing.T) {
		c, peer := pair(t)
		before := exchange(t, c, peer)
		_ = peer.Close()
		fail(t, c)
		if !c.untouched(before) {
			t.Fatal("nothing was written")
		}
	})
}
